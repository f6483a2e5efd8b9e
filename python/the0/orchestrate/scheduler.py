"""Runs scheduled bots at their slots: sleeps until the next one, decides by `slots`, and acts in a few threads.

`Scheduler(bots, store, engine, objects, bucket=…, say=…, grace_s=…)`, then `start()`; `hold()` starts nothing more,
`close()` ends it. `run(stop)` is its loop, `one_pass()` one round of it. Several schedulers may share a store and an
engine's machine: the claim of a slot's record decides between them.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from the0.documents import BadBot, Bot
from the0.errors import ExitCode, Fault, Permanent, clip
from the0.objects.store import ObjectStore
from the0.orchestrate.bots import BotStore
from the0.orchestrate.engine import Engine
from the0.orchestrate.lost_runs import LostRuns
from the0.orchestrate.run_counts import Counts, Say
from the0.orchestrate.run_keeper import RunKeeper
from the0.orchestrate.scheduler_tasks import AGAIN_S, Tasks
from the0.orchestrate.timetable import Timetable, Told
from the0.orchestrate.turns import Turns
from the0.orchestrate.under_way import UnderWay
from the0.runs import slot_name

__all__ = ["Counts", "Scheduler", "Told"]

CLOCK_S: Final = 2.0
"""A wall clock that is further behind than this, as measured by the other one, was set back."""


class Scheduler:
    def __init__(
        self,
        bots: Callable[[], Mapping[str, Bot | BadBot]],
        store: BotStore,
        engine: Engine,
        objects: ObjectStore,
        *,
        bucket: str,
        say: Say,
        grace_s: float,
        at_once: int = 32,
        starts: int = 4,
        interval_s: float = 10.0,
        lost_after_s: float = 60.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bots`: all of them by id, cheaply, and the same object while nothing changed (as Runner.bots). `at_once`: so many
        scheduled runs at the same time; `starts`: so many of them starting. `lost_after_s`: how long a claimed run of which
        nothing is seen may still begin."""
        self._bots = bots
        self._store = store
        self._engine = engine
        self._say = say
        self._interval_s = interval_s
        self._clock = clock
        self._monotonic = monotonic
        self.holder = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self.counts = Counts(say)
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._holding = False
        self._known: Mapping[str, Bot | BadBot] | None = None
        self._noting = False
        self._not_noted: str | None = None
        """Why, as it was said last."""
        self._before: tuple[float, float] | None = None
        self._thread: threading.Thread | None = None
        keeper = RunKeeper(objects, engine, bucket=bucket, holder=self.holder, clock=clock)
        self._keeper = keeper
        self._table = table = Timetable()
        self._tasks = tasks = Tasks(starts=starts, wake=self.wake, monotonic=monotonic)
        self._lost = LostRuns(keeper, table, tasks, self.counts, after_s=lost_after_s, clock=clock)
        self._turns = Turns(keeper, table, tasks, self.counts, self._lost, at_once=at_once, starts=starts, clock=clock)
        self._under_way = UnderWay(
            engine,
            keeper,
            table,
            tasks,
            self.counts,
            self._turns,
            grace_s=grace_s,
            lost_after_s=lost_after_s,
            clock=clock,
            monotonic=monotonic,
        )

    # --- its life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """In a thread of its own, until `close`."""
        self._thread = threading.Thread(target=self.run, args=(self._stop,), name="scheduler", daemon=True)
        self._thread.start()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set and `wake` called; then the ends that the engine knows by then are recorded."""
        self._engine.subscribe(self.wake)
        while not stop.is_set():
            wait_s = AGAIN_S
            try:
                wait_s = self.one_pass()
            except Fault as fault:
                self._say("trouble", fault.sentence)
            except Exception as reason:  # noqa: BLE001 - the next pass may do better; the traceback goes to stderr
                sys.excepthook(type(reason), reason, reason.__traceback__)
            self._woken.wait(wait_s)
            self._woken.clear()
        self.hold()
        self._tasks.stop("look")
        self._drain()
        try:
            self.one_pass()
        except Fault as fault:
            self._say("trouble", fault.sentence)
        self._tasks.end()
        self._drain()

    def hold(self) -> None:
        """Starts nothing more, and waits for what is being started; ends are still recorded. What was due and did not start is
        missed, or left to another scheduler."""
        with self._lock:
            self._holding = True
        self._tasks.stop("start")

    def close(self) -> None:
        """Waits for what is being carried out. Leaves what runs alone. Idempotent."""
        self._stop.set()
        self.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Something happened. From any thread; returns at once."""
        self._woken.set()

    # --- requests ---------------------------------------------------------------------------------

    def run_now(self, bot_id: str) -> str:
        """Begins a run outside the schedule, under the bot's overlap policy, and returns its slot. Permanent where that is not
        possible. From any thread."""
        with self._lock:
            self._refresh(self._clock())
            entry = self._table.entries.get(bot_id)
            if entry is None or entry.bot is None:
                raise _refused(f"There is no scheduled bot {clip(bot_id)}: `runtime ps` lists those there are.")
            if isinstance(entry.bot, BadBot):
                raise _refused(entry.bot.reason)
            if not entry.bot.enabled:
                raise _refused(f"Bot {clip(bot_id)} is stopped: `runtime start` it first.")
            if self._holding:
                raise _refused("The platform is stopping: run the bot when it is up again.")
            choice = self._turns.choose(entry.bot, entry)
            if choice == "skip":
                under_way = entry.current.slot if entry.current is not None else None
                raise _refused(
                    f"Bot {clip(bot_id)} is running already ({under_way or 'another run'}): wait for its end, "
                    "or set config.the0.overlap to queue."
                )
            entry.last_manual_s = max(int(self._clock()), entry.last_manual_s + 1)
            slot = slot_name(entry.last_manual_s, manual=True)
            self._turns.take(entry, entry.bot, slot, choice=choice)
        self.wake()
        return slot

    def told(self, bot_id: str) -> Told | None:
        """None: no such scheduled bot. From any thread."""
        with self._lock:
            return self._table.told(bot_id)

    # --- one pass ---------------------------------------------------------------------------------

    def one_pass(self) -> float:
        """Looks once and begins what is to be done; returns after how many seconds to look again, should nothing happen."""
        self._drain()
        actual = self._engine.actual()
        with self._lock:
            now_s, ticks = self._clock(), self._monotonic()
            self._refresh(now_s)
            self._check_clock(now_s, ticks)
            self._under_way.look(actual, now_s)
            self._tasks.do_due(ticks)
            if not self._holding:
                self._pass_slots(now_s)
                self._turns.fill_places()
            self._note_nexts()
            return self._wait_s(now_s, ticks)

    def _wait_s(self, now_s: float, ticks: float) -> float:
        first_s = None if self._holding else self._table.first_s()
        limit_s = self._under_way.due_s()
        waits = (
            self._interval_s,
            first_s - now_s if first_s is not None else None,
            self._tasks.due_in_s(ticks),
            limit_s - now_s if limit_s is not None else None,
        )
        return max(min(wait_s for wait_s in waits if wait_s is not None), 0.0) + 0.001

    def _refresh(self, now_s: float) -> None:
        found = self._bots()
        if found is self._known:
            return
        self._known = found
        news = self._table.refresh(found, now_s=now_s)
        for bot_id, sentence in news.bad.items():
            self._say("schedule", sentence, bot=bot_id)
        for bot_id in news.resumed:
            self._lost.look_for(bot_id)

    def _check_clock(self, now_s: float, ticks: float) -> None:
        before, self._before = self._before, (now_s, ticks)
        if before is not None and now_s - before[0] - (ticks - before[1]) < -CLOCK_S:
            self._say("clock", f"The clock was set back by {before[0] + ticks - before[1] - now_s:.0f} s.")
            self._table.set_back(now_s=now_s)

    def _pass_slots(self, now_s: float) -> None:
        for bot, entry, schedule, found in self._table.pass_slots(now_s=now_s):
            if found.missed is not None:
                reason = "It was not started in time: no scheduler was up, or it was busy."
                work = partial(self._keeper.missed, bot.id, schedule, found.missed, reason=reason)
                self._turns.record(bot.id, found.missed.first, work)
            if found.run is not None:
                self._turns.take(entry, bot, slot_name(found.run), choice=self._turns.choose(bot, entry))

    def _note_nexts(self) -> None:
        """Keeps `next_execution_time`, in one thread, as of the last pass."""
        if self._noting or not (nexts := self._table.take_nexts()):
            return
        self._noting = True

        def done(outcome: Fault | None) -> None:
            fault = outcome if isinstance(outcome, Fault) else None
            if fault is None:
                self._noting = False
            else:
                self._table.give_back(nexts)
                self._tasks.again(self._note_again)
            self._tell_noting(fault.sentence if fault is not None else None)

        self._tasks.do("other", partial(self._store.set_nexts, nexts), done)

    def _note_again(self) -> None:
        self._noting = False

    def _tell_noting(self, fault: str | None) -> None:
        if fault != self._not_noted:
            self._not_noted = fault
            said = (
                f"The next slots cannot be noted, and are kept in mind. {fault}"
                if fault
                else "The next slots can be noted again."
            )
            self._say("slots", said)

    def _drain(self) -> None:
        with self._lock:
            self._tasks.use_outcomes()


def _refused(sentence: str) -> Permanent:
    return Permanent(sentence, code=ExitCode.USAGE)
