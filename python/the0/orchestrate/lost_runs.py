"""Runs that somebody claimed and that may have no end: looked at again until they have one, run, or are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from the0.errors import Fault
from the0.orchestrate.run_counts import Counts
from the0.orchestrate.run_keeper import RunKeeper
from the0.orchestrate.scheduler_tasks import Tasks
from the0.orchestrate.timetable import Timetable
from the0.runs import Run, slot_s


class LostRuns:
    """For passes of the scheduler."""

    def __init__(
        self,
        keeper: RunKeeper,
        table: Timetable,
        tasks: Tasks,
        counts: Counts,
        *,
        after_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`after_s`: how long a claimed run of which nothing is seen may still begin."""
        self._keeper = keeper
        self._table = table
        self._tasks = tasks
        self._counts = counts
        self._after_s = after_s
        self._clock = clock
        self._watched: set[tuple[str, str]] = set()

    def look_for(self, bot_id: str) -> None:
        """What a former scheduler left of this bot."""
        self._tasks.do("look", partial(self._keeper.find_open, bot_id), partial(self._found, bot_id))

    def _found(self, bot_id: str, outcome: list[Run] | Fault) -> None:
        if isinstance(outcome, Fault):
            self._counts.say("trouble", outcome.sentence, bot=bot_id)
            return
        for run in outcome:
            self.watch(bot_id, run.slot, wait_s=self._after_s - max(0.0, self._clock() - run.claimed_s))

    def watch(self, bot_id: str, slot: str, *, wait_s: float | None = None) -> None:
        """Somebody else claimed it: later, it has an end, or runs, or is lost."""
        if (bot_id, slot) not in self._watched:
            self._watched.add((bot_id, slot))
            self._tasks.at(self._after_s if wait_s is None else max(wait_s, 0.0), partial(self._settle, bot_id, slot))

    def _settle(self, bot_id: str, slot: str) -> None:
        if self._may_have_a_future(bot_id, slot):
            self._tasks.at(self._after_s, partial(self._settle, bot_id, slot))
            return

        def done(outcome: Run | Fault | None) -> None:
            if isinstance(outcome, Fault):
                self._counts.say("trouble", outcome.sentence, bot=bot_id)
                self._tasks.again(partial(self._settle, bot_id, slot))
                return
            self._watched.discard((bot_id, slot))
            if outcome is not None:
                self._counts.add(outcome)

        self._tasks.do("other", partial(self._keeper.lose, bot_id, slot), done)

    def _may_have_a_future(self, bot_id: str, slot: str) -> bool:
        """It runs, waits for its turn here, or may be queued behind an earlier slot that runs."""
        entry = self._table.entries.get(bot_id)
        if entry is not None and any(each is not None and each.slot == slot for each in (entry.current, entry.queued)):
            return True
        running = self._table.live.get(bot_id)
        return running is not None and slot_s(running) <= slot_s(slot)
