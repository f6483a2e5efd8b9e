"""What the scheduler does to store and engine about one run: claim and start it, record its end, find what was lost.

Every call may block, and runs in a thread of the scheduler's. All are safe to repeat.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from the0.documents import Bot
from the0.errors import ExitCode, Fault
from the0.objects.store import ObjectStore
from the0.orchestrate.engine import Engine, Exit, Instance, Start
from the0.orchestrate.schedule import Schedule
from the0.orchestrate.slots import Missed, stretch
from the0.runs import Changed, Result, Run, Runs, slot_name
from the0.sync.head import HeadFile

TIMED_OUT: Final = "it ran for longer than its timeout_s"
"""Why such an instance is stopped; an engine keeps the reason, so that whoever adopts it knows it, too."""
LOOKED_BACK: Final = 20
ENDED_BEFORE: Final = 4
"""So many newest records, and so many ended ones among them, are looked at for one without an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A slot that is to be run."""

    bot: Bot
    slot: str
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    previous: Exit | None = None
    """How the bot's former run ended."""


@dataclass(frozen=True, slots=True)
class Begun:
    run: Run
    name: str
    """The engine's; "" where it could not be started, which the record says."""


class RunKeeper:
    def __init__(
        self,
        objects: ObjectStore,
        engine: Engine,
        *,
        bucket: str,
        holder: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.runs = Runs(objects, bucket=bucket)
        self._objects = objects
        self._bucket = bucket
        self._engine = engine
        self._holder = holder
        self._clock = clock

    def queue(self, turn: Turn) -> Run | None:
        """Claims a slot that waits behind another run; None: it is somebody else's."""
        return self._claim(turn, waiting=True)

    def begin(self, turn: Turn) -> Begun | None:
        """Claims the slot and starts its run; None: it is somebody else's. A Fault of the store: nothing runs, and it may be
        begun again; a Fault of the engine is the end of the run."""
        run = self._claim(turn, waiting=False)
        if run is None:
            return None
        if run.waiting:
            try:
                run = self.runs.change(run, waiting=False, generation_before=self._generation(turn.bot.id))
            except Changed:
                return None  # it was given up as lost
        wanted = Start(bot=turn.bot, slot=turn.slot, token=turn.token, previous=turn.previous)
        try:
            name = self._engine.start(wanted)
        except Fault as fault:
            result: Result = "skipped" if fault.code == ExitCode.RUNNING_HERE else "failed"
            ended = self._close(run, result=result, code=int(fault.code), by="runtime", reason=fault.sentence)
            return Begun(ended or run, "")
        return Begun(run, name)

    def finish(self, bot_id: str, slot: str | None, instance: Instance | None) -> Run | None:
        """Records how the run ended and lets the engine forget it. `instance` None: it is gone, and nobody saw its end. None
        where the record has an end already, or there is none."""
        run = self.runs.read(bot_id, slot) if slot is not None else None
        ended: Run | None = None
        if run is not None and run.is_open:
            ended = self._close(run, **_ending(instance, generation_after=self._generation(bot_id)))
        if instance is not None:
            self._engine.remove(instance.name)
        return ended

    def missed(self, bot_id: str, schedule: Schedule, stretched: Missed, *, reason: str) -> list[Run]:
        """Records the stretch, but for slots that have a record."""
        taken = sorted(self.runs.taken(bot_id, stretched.first, stretched.last))
        parts: list[Missed] = [] if taken else [stretched]
        first = stretched.first
        for at in taken:
            if first < at:
                parts.append(stretch(schedule, first=first, before=at))
            first = schedule.next(at)
        if taken and first <= stretched.last:
            parts.append(stretch(schedule, first=first, before=stretched.last + 1))
        noted: list[Run] = []
        for part in parts:
            last = slot_name(part.last) if part.count > 1 else None
            run = self._unrun(bot_id, slot_name(part.first), result="missed", reason=reason)
            noted += self._note(replace(run, count=part.count, last=last))
        return noted

    def skipped(self, bot_id: str, slot: str, *, behind: str | None) -> list[Run]:
        reason = f"Run {behind} was under way." if behind else "Another run was under way."
        return self._note(replace(self._unrun(bot_id, slot, result="skipped", reason=reason), behind=behind))

    def dropped(self, bot_id: str, slot: str) -> list[Run]:
        """Its bot was stopped or removed before the slot had its turn."""
        reason = "The bot was stopped before the run could begin."
        run = self.runs.read(bot_id, slot)
        if run is None:
            return self._note(self._unrun(bot_id, slot, result="skipped", reason=reason))
        if not run.waiting or not run.is_open or run.holder != self._holder:
            return []
        ended = self._close(run, result="skipped", reason=reason, waiting=False)
        return [ended] if ended is not None else []

    def _note(self, run: Run) -> list[Run]:
        noted = self.runs.note(run)
        return [noted] if noted is not None else []

    def find_open(self, bot_id: str) -> list[Run]:
        """Runs without an end among the newest ones: one may have been under way, another queued, and a few ended since."""
        found: list[Run] = []
        ended = 0
        for run in self.runs.each_newest(bot_id, limit=LOOKED_BACK, now_s=self._clock()):
            if run.is_open:
                found.append(run)
            elif run.behind is not None and all(run.behind != each.slot for each in found):
                behind = self.runs.read(bot_id, run.behind)
                found += [behind] if behind is not None and behind.is_open else []
            ended += not run.is_open
            if ended > ENDED_BEFORE:
                break
        return found

    def lose(self, bot_id: str, slot: str) -> Run | None:
        """Gives up a run that was claimed, has no end, and of which nothing runs; None where it has an end after all."""
        run = self.runs.read(bot_id, slot)
        if run is None or not run.is_open:
            return None
        return self._close(run, **_ending(None, generation_after=self._generation(bot_id)))

    def _claim(self, turn: Turn, *, waiting: bool) -> Run | None:
        return self.runs.claim(
            turn.bot.id,
            turn.slot,
            holder=self._holder,
            token=turn.token,
            now_s=self._clock(),
            waiting=waiting,
            generation_before=self._generation(turn.bot.id),
        )

    def _close(self, run: Run, **ending: Any) -> Run | None:
        """None: somebody else recorded an end first."""
        ending.setdefault("end_s", self._clock())
        while True:
            try:
                return self.runs.change(run, **ending)
            except Changed as changed:
                if changed.run is None or not changed.run.is_open:
                    return None
                run = changed.run

    def _unrun(self, bot_id: str, slot: str, *, result: Result, reason: str) -> Run:
        return Run(bot_id=bot_id, slot=slot, holder=self._holder, claimed_s=self._clock(), result=result, reason=reason)

    def _generation(self, bot_id: str) -> int | None:
        try:
            stored = HeadFile(self._objects, bucket=self._bucket, bot_id=bot_id).read()
        except Fault:
            return None  # shown beside the run only; whoever needs the state finds out himself
        return stored.head.content.generation if stored is not None else None


def _ending(instance: Instance | None, *, generation_after: int | None) -> dict[str, Any]:
    if instance is None or instance.exit is None:
        known = {} if instance is None else {"start_s": instance.started_s}
        reason = "It was claimed, nothing of it runs, and nobody saw its end."
        return {"result": "lost", "reason": reason, "generation_after": generation_after, "waiting": False, **known}
    result: Result = "ok" if instance.exit.code == 0 else "failed"
    if instance.stop_reason == TIMED_OUT:
        result = "timed out"
    elif instance.stop_asked_s is not None:
        result = "stopped"
    reason = instance.exit.reason
    if instance.stop_reason:
        reason = f"{reason} (stopped: {instance.stop_reason})"
    return {
        "result": result,
        "code": instance.exit.code,
        "by": instance.exit.by,
        "reason": reason,
        "start_s": instance.started_s,
        "end_s": instance.exit.at_s,
        "generation_after": generation_after,
        "waiting": False,
    }
