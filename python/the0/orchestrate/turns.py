"""Slots whose turn it is, until their run has begun: in the order of slots, a few at a time, and no more than may run at once."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Literal

from the0.documents import BadBot, Bot
from the0.errors import Fault
from the0.orchestrate.lost_runs import LostRuns
from the0.orchestrate.run_counts import Counts
from the0.orchestrate.run_keeper import Begun, RunKeeper, Turn
from the0.orchestrate.scheduler_tasks import Tasks
from the0.orchestrate.slots import overlap
from the0.orchestrate.timetable import Current, Entry, Timetable
from the0.runs import MANUAL, Run, slot_s


class Turns:
    """For passes of the scheduler."""

    def __init__(
        self,
        keeper: RunKeeper,
        table: Timetable,
        tasks: Tasks,
        counts: Counts,
        lost: LostRuns,
        *,
        at_once: int,
        starts: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`at_once`: so many scheduled runs at the same time; `starts`: so many of them starting."""
        self._keeper = keeper
        self._table = table
        self._tasks = tasks
        self._counts = counts
        self._lost = lost
        self._at_once = at_once
        self._starts = starts
        self._clock = clock
        self.busy: dict[str, Entry] = {}
        """Those with a current run."""
        self._lane: list[tuple[int, int, str]] = []
        """Heap: slot, order, bot; those whose turn it is, until there is a place."""
        self._order = count()

    def choose(self, bot: Bot, entry: Entry) -> Literal["start", "queue", "skip"]:
        """What becomes of another slot of the bot now, by its policy."""
        busy = entry.current is not None or bot.id in self._table.live
        return overlap(bot.policies.overlap, busy=busy, queued=entry.queued is not None)

    def take(self, entry: Entry, bot: Bot, slot: str, *, choice: Literal["start", "queue", "skip"]) -> None:
        turn = Turn(bot=bot, slot=slot, previous=entry.last_exit)
        if choice == "start":
            self._wait(entry, turn)
        elif choice == "queue":
            entry.queued = turn
            self._tasks.do("other", partial(self._keeper.queue, turn), partial(self._queued, entry, turn))
        else:
            behind = entry.current.slot if entry.current is not None else None
            self.record(bot.id, slot_s(slot), partial(self._keeper.skipped, bot.id, slot, behind=behind))

    def record(self, bot_id: str, slot: int, work: Callable[[], list[Run]]) -> None:
        """Records slots that are not run, as often as it takes."""

        def done(outcome: list[Run] | Fault) -> None:
            if isinstance(outcome, Fault):
                self._counts.say("trouble", outcome.sentence, bot=bot_id)
                self._tasks.again(partial(self.record, bot_id, slot, work))
                return
            self._table.decided(bot_id, slot)
            for run in outcome:
                self._counts.add(run)

        self._tasks.do("other", work, done)

    def fill_places(self) -> None:
        """Begins as many as may begin now."""
        starting = sum(entry.current.phase == "starting" for entry in self.busy.values() if entry.current)
        running = sum(entry.current.phase == "running" for entry in self.busy.values() if entry.current)
        while self._lane and starting < self._starts and starting + running < self._at_once:
            _, _, bot_id = heapq.heappop(self._lane)
            entry = self._table.entries.get(bot_id)
            if entry is None or entry.current is None or entry.current.phase != "turn" or entry.current.turn is None:
                continue
            current, turn = entry.current, entry.current.turn
            if not _may_run(entry.bot, turn):
                if entry.bot is not None:
                    self.record(bot_id, slot_s(turn.slot), partial(self._keeper.dropped, bot_id, turn.slot))
                self.free(bot_id, entry)
                continue
            if bot_id in self._table.live:  # another scheduler was quicker, with another slot
                self.free(bot_id, entry)
                self.take(entry, turn.bot, turn.slot, choice=self.choose(turn.bot, entry))
                continue
            # As it is now: what is run is the bot of today, whenever its turn came.
            turn = replace(turn, bot=entry.bot, previous=entry.last_exit) if isinstance(entry.bot, Bot) else turn
            current.phase = "starting"
            starting += 1
            self._tasks.do("start", partial(self._keeper.begin, turn), partial(self._begun, entry, current, turn))

    def set_current(self, bot_id: str, entry: Entry, current: Current) -> None:
        entry.current = current
        self.busy[bot_id] = entry

    def free(self, bot_id: str, entry: Entry) -> None:
        """Its run is over; the next one may have its turn."""
        entry.current = None
        self.busy.pop(bot_id, None)
        turn, entry.queued = entry.queued, None
        if turn is not None:
            self._wait(entry, turn)
        self._table.forget_idle(bot_id)

    def _wait(self, entry: Entry, turn: Turn) -> None:
        self.set_current(turn.bot.id, entry, Current(turn, turn.slot, "turn", self._clock()))
        heapq.heappush(self._lane, (slot_s(turn.slot), next(self._order), turn.bot.id))

    def _queued(self, entry: Entry, turn: Turn, outcome: Run | Fault | None) -> None:
        if isinstance(outcome, Fault):
            self._counts.say("trouble", outcome.sentence, bot=turn.bot.id)  # it is claimed when its turn comes
            return
        self._table.decided(turn.bot.id, slot_s(turn.slot))
        if outcome is None and entry.queued is turn:
            entry.queued = None
            self._lost.watch(turn.bot.id, turn.slot)

    def _begun(self, entry: Entry, current: Current, turn: Turn, outcome: Begun | Fault | None) -> None:
        bot_id = turn.bot.id
        if isinstance(outcome, Fault):
            self._counts.say("trouble", outcome.sentence, bot=bot_id)
            current.phase = "turn"
            again = (slot_s(turn.slot), next(self._order), bot_id)
            self._tasks.again(partial(heapq.heappush, self._lane, again))
            return
        self._table.decided(bot_id, slot_s(turn.slot))
        if outcome is None:
            self._lost.watch(bot_id, turn.slot)
            self.free(bot_id, entry)
        elif not outcome.name:
            self._counts.say("not-started", outcome.run.reason, bot=bot_id)
            self._counts.add(outcome.run)
            self.free(bot_id, entry)
        else:
            current.phase, current.name, current.since_s = "running", outcome.name, self._clock()
            self._counts.late_s = max(self._counts.late_s, current.since_s - slot_s(turn.slot))


def _may_run(bot: Bot | BadBot | None, turn: Turn) -> bool:
    """It may have changed while the slot waited for its place."""
    return isinstance(bot, Bot) and bot.enabled and (not bot.paused or turn.slot.endswith(MANUAL))
