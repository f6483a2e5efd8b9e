"""Scheduled runs that are under way, as the engine tells of them: their ends are recorded, and those over their time stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from the0.documents import Bot
from the0.errors import Fault
from the0.orchestrate.engine import Engine, Instance
from the0.orchestrate.run_counts import Counts
from the0.orchestrate.run_keeper import TIMED_OUT, RunKeeper
from the0.orchestrate.scheduler_tasks import Tasks
from the0.orchestrate.timetable import Current, Entry, Timetable
from the0.orchestrate.turns import Turns
from the0.runs import Run

KILL_AFTER_S: Final = 60.0
"""What the final sync may take after the grace period, before a run over its time is killed."""
FOLD_EVERY_S: Final = 86400.0


class UnderWay:
    """For passes of the scheduler."""

    def __init__(
        self,
        engine: Engine,
        keeper: RunKeeper,
        table: Timetable,
        tasks: Tasks,
        counts: Counts,
        turns: Turns,
        *,
        grace_s: float,
        lost_after_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lost_after_s`: how long one that the engine does not know any more may still come back."""
        self._engine = engine
        self._keeper = keeper
        self._table = table
        self._tasks = tasks
        self._counts = counts
        self._turns = turns
        self._grace_s = grace_s
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._monotonic = monotonic
        self._finishing: set[str] = set()

    def look(self, actual: Sequence[Instance], now_s: float) -> None:
        seen: dict[str, Instance] = {}
        for instance in actual:
            if instance.kind != "scheduled":
                continue
            seen[instance.name] = instance
            entry = self._table.entry(instance.bot_id)
            current = entry.current
            if instance.state == "ended":
                mine = current is not None and current.phase == "starting" and current.slot == instance.slot
                if not mine and instance.name not in self._finishing:
                    self._finish(instance.bot_id, instance.slot, instance.name, instance)
            elif current is None:
                found = Current(None, instance.slot, "running", instance.started_s, name=instance.name)
                self._turns.set_current(instance.bot_id, entry, found)
        self._table.live = {each.bot_id: each.slot for each in seen.values() if each.state != "ended"}
        for bot_id, entry in list(self._turns.busy.items()):
            current = entry.current
            if current is None or current.phase != "running" or current.name in self._finishing:
                continue
            running = seen.get(current.name)
            if running is not None:
                current.gone_s = None
                self._limit(entry, current, running, now_s)
            elif current.gone_s is None:
                current.gone_s = now_s
            elif now_s - current.gone_s >= self._lost_after_s:
                self._finish(bot_id, current.slot, current.name, None)

    def due_s(self) -> float | None:
        """When there is something to be done about a run although nothing happened."""
        return min(
            (due_s for entry in self._turns.busy.values() if (due_s := self._deadline_s(entry)) is not None),
            default=None,
        )

    def _limit(self, entry: Entry, current: Current, instance: Instance, now_s: float) -> None:
        """Stops a run that is over its time, and kills it when that does not help."""
        current.stop_s = instance.stop_asked_s or current.stop_s
        moment = self._deadline_s(entry)
        if moment is None or now_s < moment or current.killed:
            return
        if current.stop_s is None:
            current.stop_s = now_s
            self._counts.say("timeout", "The run is over its timeout_s and is stopped.", bot=instance.bot_id)
            work = partial(self._engine.stop, current.name, grace_s=self._grace_s, reason=TIMED_OUT)
        else:
            current.killed = True
            work = partial(self._engine.kill, current.name)

        def done(outcome: Fault | None) -> None:
            if isinstance(outcome, Fault):
                self._counts.say("trouble", outcome.sentence, bot=instance.bot_id)
                current.stop_s, current.killed = None, False

        self._tasks.do("other", work, done)

    def _deadline_s(self, entry: Entry) -> float | None:
        current = entry.current
        if current is None or current.phase != "running" or current.killed:
            return None
        if current.gone_s is not None:
            return current.gone_s + self._lost_after_s
        if current.stop_s is not None:
            return current.stop_s + self._grace_s + KILL_AFTER_S
        limit_s = entry.bot.policies.timeout_s if isinstance(entry.bot, Bot) else None
        return None if limit_s is None else current.since_s + limit_s

    def _finish(self, bot_id: str, slot: str | None, name: str, instance: Instance | None) -> None:
        self._finishing.add(name)

        def done(outcome: Run | Fault | None) -> None:
            if isinstance(outcome, Fault):
                self._counts.say("trouble", outcome.sentence, bot=bot_id)
                self._tasks.again(partial(self._finishing.discard, name))
                return
            self._finishing.discard(name)
            entry = self._table.entry(bot_id)
            if instance is not None and instance.exit is not None:
                entry.last_exit = instance.exit
            if outcome is not None:
                self._counts.add(outcome)
                self._fold(bot_id, entry)
            if entry.current is not None and entry.current.name == name:
                self._turns.free(bot_id, entry)

        self._tasks.do("other", partial(self._keeper.finish, bot_id, slot, instance), done)

    def _fold(self, bot_id: str, entry: Entry) -> None:
        ticks = self._monotonic()
        if entry.folded_s and ticks - entry.folded_s < FOLD_EVERY_S:
            return
        entry.folded_s = ticks

        def done(outcome: object) -> None:
            if isinstance(outcome, Fault):
                self._counts.say("trouble", outcome.sentence, bot=bot_id)

        self._tasks.do("other", partial(self._keeper.runs.fold, bot_id, now_s=self._clock()), done)
