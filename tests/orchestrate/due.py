"""Many scheduled bots that are due within the same few seconds, and what their records say when all have run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrate.platform_place import Platform
from the0.objects.folder import Folder
from the0.runs import Run, Runs

RAN = "def main(bot_id, config):\n    print('ran', bot_id, flush=True)\n"


@dataclass(frozen=True, slots=True)
class Crowd:
    """`count` bots, in turn due at each of `seconds` moments from `begin_s` (Unix seconds) on, once a year."""

    place: Platform
    count: int
    begin_s: int
    seconds: int

    @property
    def ids(self) -> list[str]:
        return [f"due-{number:04d}" for number in range(self.count)]

    def put(self) -> None:
        """All share one archive."""
        self.place.put("model", RAN, kind="scheduled", schedule="0 0 1 1 *")
        model = self.place.bots.get("model")
        assert model is not None
        for number, bot_id in enumerate(self.ids):
            at = time.gmtime(self.begin_s + number % self.seconds)
            schedule = f"{at.tm_sec} {at.tm_min} {at.tm_hour} {at.tm_mday} {at.tm_mon} *"
            self.place.bots.update(bot_id, "scheduled", config={"schedule": schedule}, custom=model.body["custom"])
        self.place.tell()

    def records(self) -> list[Run]:
        """In the order in which they began; those that never began come last."""
        runs = Runs(Folder(self.place.data.objects), bucket="bot-state")
        found = [run for bot_id in self.ids for run in runs.newest(bot_id)]
        return sorted(found, key=lambda run: (run.start_s is None, run.start_s, run.slot))

    def lines(self) -> int:
        """How often any of them has run, as the bots themselves say."""
        return sum(self.place.printed(bot_id).count("ran ") for bot_id in self.ids)


def overtaken(runs: Sequence[Run], *, starts: int) -> list[Run]:
    """Those that began after a later slot; what is started at the same time, `starts` at most, may change places."""
    return [
        run
        for at, run in enumerate(runs)
        if run.slot < max((other.slot for other in runs[: max(at - 2 * starts, 0)]), default="")
    ]


def most_at_once(runs: Sequence[Run]) -> int:
    """How many ran at the same time, by what their records say."""
    moments = sorted((at, step) for run in runs for at, step in ((run.start_s or 0.0, 1), (run.end_s or 0.0, -1)))
    most = now = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most
