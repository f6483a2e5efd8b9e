"""Runs scheduled bots at their slots: sleeps until the next one, decides by `slots`, and acts in a few threads.

`Scheduler(bots, store, engine, objects, bucket=…, say=…, grace_s=…)`, then `start()`; `hold()` starts nothing more,
`close()` ends it. `run(stop)` is its loop, `one_pass()` one round of it. Several schedulers may share a store and an
engine's machine: the claim of a slot's record decides between them.
"""

from __future__ import annotations

import heapq
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final, Literal, TypeVar

from the0.documents import BadBot, Bot
from the0.errors import ExitCode, Fault, Permanent, clip
from the0.objects.store import ObjectStore
from the0.orchestrate.bots import BotStore
from the0.orchestrate.engine import Engine, Instance
from the0.orchestrate.run_keeper import TIMED_OUT, Begun, RunKeeper, Turn
from the0.orchestrate.slots import overlap
from the0.orchestrate.timetable import Current, Entry, Timetable, Told
from the0.runs import MANUAL, Run, slot_name, slot_s

__all__ = ["Counts", "Scheduler", "Told"]

T = TypeVar("T")
Say = Callable[..., None]
"""`say(event, message, bot=…)`: news for a person or a log."""

AGAIN_S: Final = 5.0
"""After a store or engine that failed."""
KILL_AFTER_S: Final = 60.0
"""What the final sync may take after the grace period, before a run over its time is killed."""
CLOCK_S: Final = 2.0
"""A wall clock that is further behind than this, as measured by the other one, was set back."""
FOLD_EVERY_S: Final = 86400.0


@dataclass(slots=True)
class Counts:
    """Since this scheduler began."""

    results: dict[str, int] = field(default_factory=dict)
    late_s: float = 0.0
    """How late the latest start was."""


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
        self._grace_s = grace_s
        self._at_once = at_once
        self._starts = starts
        self._interval_s = interval_s
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._monotonic = monotonic
        self.holder = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self.counts = Counts()
        self._keeper = RunKeeper(objects, engine, bucket=bucket, holder=self.holder, clock=clock)
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._holding = False
        self._ended = False
        self._known: Mapping[str, Bot | BadBot] | None = None
        self._table = Timetable()
        self._busy: dict[str, Entry] = {}
        """Those with a current run."""
        self._live: dict[str, str | None] = {}
        """Bots of which something runs, as the engine said last, and its slot."""
        self._lane: list[tuple[int, int, str]] = []
        """Heap: slot, order, bot; those whose turn it is, until there is a place."""
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        """Heap: moment (monotonic), order, what to do in a pass then."""
        self._noting = False
        self._finishing: set[str] = set()
        self._watched: set[tuple[str, str]] = set()
        self._order = count()
        self._before: tuple[float, float] | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._starters = ThreadPoolExecutor(starts, thread_name_prefix="scheduler-start")
        self._others = ThreadPoolExecutor(2, thread_name_prefix="scheduler")
        self._lookers = ThreadPoolExecutor(1, thread_name_prefix="scheduler-look")
        self._thread: threading.Thread | None = None

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
        self._lookers.shutdown(cancel_futures=True)
        self._drain()
        try:
            self.one_pass()
        except Fault as fault:
            self._say("trouble", fault.sentence)
        self._others.shutdown()
        self._ended = True
        self._drain()

    def hold(self) -> None:
        """Starts nothing more, and waits for what is being started; ends are still recorded. What was due and did not start is
        missed, or left to another scheduler."""
        with self._lock:
            self._holding = True
        self._starters.shutdown(cancel_futures=True)

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
            busy = entry.current is not None or bot_id in self._live
            choice = overlap(entry.bot.policies.overlap, busy=busy, queued=entry.queued is not None)
            if choice == "skip":
                under_way = entry.current.slot if entry.current is not None else None
                raise _refused(
                    f"Bot {clip(bot_id)} is running already ({under_way or 'another run'}): wait for its end, "
                    "or set config.the0.overlap to queue."
                )
            entry.last_manual_s = max(int(self._clock()), entry.last_manual_s + 1)
            slot = slot_name(entry.last_manual_s, manual=True)
            self._take_turn(entry, entry.bot, slot, choice=choice)
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
            self._look(actual, now_s)
            while self._later and self._later[0][0] <= ticks:
                heapq.heappop(self._later)[2]()
            self._pass_slots(now_s)
            self._fill_places()
            self._note_nexts()
            return self._wait_s(now_s, ticks)

    def _wait_s(self, now_s: float, ticks: float) -> float:
        wait_s = self._interval_s
        first_s = None if self._holding else self._table.first_s()
        if first_s is not None:
            wait_s = min(wait_s, first_s - now_s)
        if self._later:
            wait_s = min(wait_s, self._later[0][0] - ticks)
        for entry in self._busy.values():
            moment = self._deadline_s(entry)
            if moment is not None:
                wait_s = min(wait_s, moment - now_s)
        return max(wait_s, 0.0) + 0.001

    def _refresh(self, now_s: float) -> None:
        found = self._bots()
        if found is self._known:
            return
        self._known = found
        news = self._table.refresh(found, now_s=now_s)
        for bot_id, sentence in news.bad.items():
            self._say("schedule", sentence, bot=bot_id)
        for bot_id in news.resumed:
            self._do(self._lookers, partial(self._keeper.find_open, bot_id), partial(self._found_open, bot_id))

    def _check_clock(self, now_s: float, ticks: float) -> None:
        before, self._before = self._before, (now_s, ticks)
        if before is not None and now_s - before[0] - (ticks - before[1]) < -CLOCK_S:
            self._say("clock", f"The clock was set back by {before[0] + ticks - before[1] - now_s:.0f} s.")
            self._table.set_back(now_s=now_s)

    # --- what runs --------------------------------------------------------------------------------

    def _look(self, actual: Any, now_s: float) -> None:
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
                self._set_current(instance.bot_id, entry, found)
        self._live = {each.bot_id: each.slot for each in seen.values() if each.state != "ended"}
        for bot_id, entry in list(self._busy.items()):
            current = entry.current
            if current is None or current.phase != "running" or current.name in self._finishing:
                continue
            instance = seen.get(current.name)
            if instance is not None:
                current.gone_s = None
                self._limit(entry, current, instance, now_s)
            elif current.gone_s is None:
                current.gone_s = now_s
            elif now_s - current.gone_s >= self._lost_after_s:
                self._finish(bot_id, current.slot, current.name, None)

    def _limit(self, entry: Entry, current: Current, instance: Instance, now_s: float) -> None:
        """Stops a run that is over its time, and kills it when that does not help."""
        current.stop_s = instance.stop_asked_s or current.stop_s
        moment = self._deadline_s(entry)
        if moment is None or now_s < moment or current.killed:
            return
        if current.stop_s is None:
            current.stop_s = now_s
            self._say("timeout", "The run is over its timeout_s and is stopped.", bot=instance.bot_id)
            work = partial(self._engine.stop, current.name, grace_s=self._grace_s, reason=TIMED_OUT)
        else:
            current.killed = True
            work = partial(self._engine.kill, current.name)

        def done(outcome: Fault | None) -> None:
            if isinstance(outcome, Fault):
                self._say("trouble", outcome.sentence, bot=instance.bot_id)
                current.stop_s, current.killed = None, False

        self._do(self._others, work, done)

    def _deadline_s(self, entry: Entry) -> float | None:
        """When there is something to be done about the current run although nothing happened."""
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
                self._say("trouble", outcome.sentence, bot=bot_id)
                self._at(AGAIN_S, partial(self._finishing.discard, name))
                return
            self._finishing.discard(name)
            entry = self._table.entry(bot_id)
            if instance is not None and instance.exit is not None:
                entry.last_exit = instance.exit
            if outcome is not None:
                self._count(outcome)
                self._fold(bot_id, entry)
            if entry.current is not None and entry.current.name == name:
                self._free(bot_id, entry)

        self._do(self._others, partial(self._keeper.finish, bot_id, slot, instance), done)

    def _fold(self, bot_id: str, entry: Entry) -> None:
        ticks = self._monotonic()
        if entry.folded_s and ticks - entry.folded_s < FOLD_EVERY_S:
            return
        entry.folded_s = ticks
        self._do(self._others, partial(self._keeper.runs.fold, bot_id, now_s=self._clock()), self._tell_fault(bot_id))

    # --- slots ------------------------------------------------------------------------------------

    def _pass_slots(self, now_s: float) -> None:
        if self._holding:
            return
        for bot, entry, schedule, found in self._table.pass_slots(now_s=now_s):
            if found.missed is not None:
                reason = "It was not started in time: no scheduler was up, or it was busy."
                work = partial(self._keeper.missed, bot.id, schedule, found.missed, reason=reason)
                self._persist(bot.id, found.missed.first, work)
            if found.run is not None:
                busy = entry.current is not None or bot.id in self._live
                choice = overlap(bot.policies.overlap, busy=busy, queued=entry.queued is not None)
                self._take_turn(entry, bot, slot_name(found.run), choice=choice)

    def _take_turn(self, entry: Entry, bot: Bot, slot: str, *, choice: Literal["start", "queue", "skip"]) -> None:
        turn = Turn(bot=bot, slot=slot, previous=entry.last_exit)
        if choice == "start":
            self._set_current(bot.id, entry, Current(turn, slot, "turn", self._clock()))
            heapq.heappush(self._lane, (slot_s(slot), next(self._order), bot.id))
        elif choice == "queue":
            entry.queued = turn
            self._do(self._others, partial(self._keeper.queue, turn), partial(self._queued, entry, turn))
        else:
            behind = entry.current.slot if entry.current is not None else None
            self._persist(bot.id, slot_s(slot), partial(self._keeper.skipped, bot.id, slot, behind=behind))

    def _queued(self, entry: Entry, turn: Turn, outcome: Run | Fault | None) -> None:
        if isinstance(outcome, Fault):
            self._say("trouble", outcome.sentence, bot=turn.bot.id)  # it is claimed when its turn comes
            return
        self._table.decided(turn.bot.id, slot_s(turn.slot))
        if outcome is None and entry.queued is turn:
            entry.queued = None
            self._watch(turn.bot.id, turn.slot)

    def _fill_places(self) -> None:
        starting = sum(entry.current.phase == "starting" for entry in self._busy.values() if entry.current)
        running = sum(entry.current.phase == "running" for entry in self._busy.values() if entry.current)
        while self._lane and not self._holding and starting < self._starts and starting + running < self._at_once:
            _, _, bot_id = heapq.heappop(self._lane)
            entry = self._table.entries.get(bot_id)
            if entry is None or entry.current is None or entry.current.phase != "turn" or entry.current.turn is None:
                continue
            current, turn = entry.current, entry.current.turn
            if not self._may_run(entry.bot, turn):
                if entry.bot is not None:
                    self._persist(bot_id, slot_s(turn.slot), partial(self._keeper.dropped, bot_id, turn.slot))
                self._free(bot_id, entry)
                continue
            if bot_id in self._live:  # another scheduler was quicker, with another slot
                self._free(bot_id, entry)
                choice = overlap(turn.bot.policies.overlap, busy=True, queued=entry.queued is not None)
                self._take_turn(entry, turn.bot, turn.slot, choice=choice)
                continue
            # As it is now: what is run is the bot of today, whenever its turn came.
            turn = replace(turn, bot=entry.bot, previous=entry.last_exit) if isinstance(entry.bot, Bot) else turn
            current.phase = "starting"
            starting += 1
            self._do(self._starters, partial(self._keeper.begin, turn), partial(self._begun, entry, current, turn))

    def _may_run(self, bot: Bot | BadBot | None, turn: Turn) -> bool:
        """It may have changed while the slot waited for its place."""
        return isinstance(bot, Bot) and bot.enabled and (not bot.paused or turn.slot.endswith(MANUAL))

    def _begun(self, entry: Entry, current: Current, turn: Turn, outcome: Begun | Fault | None) -> None:
        bot_id = turn.bot.id
        if isinstance(outcome, Fault):
            self._say("trouble", outcome.sentence, bot=bot_id)
            current.phase = "turn"
            again = (slot_s(turn.slot), next(self._order), bot_id)
            self._at(AGAIN_S, partial(heapq.heappush, self._lane, again))
            return
        self._table.decided(bot_id, slot_s(turn.slot))
        if outcome is None:
            self._watch(bot_id, turn.slot)
            self._free(bot_id, entry)
        elif not outcome.name:
            self._say("not-started", outcome.run.reason, bot=bot_id)
            self._count(outcome.run)
            self._free(bot_id, entry)
        else:
            current.phase, current.name, current.since_s = "running", outcome.name, self._clock()
            self.counts.late_s = max(self.counts.late_s, current.since_s - slot_s(turn.slot))

    def _set_current(self, bot_id: str, entry: Entry, current: Current) -> None:
        entry.current = current
        self._busy[bot_id] = entry

    def _free(self, bot_id: str, entry: Entry) -> None:
        """Its run is over; the next one may have its turn."""
        entry.current = None
        self._busy.pop(bot_id, None)
        turn, entry.queued = entry.queued, None
        if turn is not None:
            self._set_current(bot_id, entry, Current(turn, turn.slot, "turn", self._clock()))
            heapq.heappush(self._lane, (slot_s(turn.slot), next(self._order), bot_id))
        self._table.forget_idle(bot_id)

    # --- lost runs --------------------------------------------------------------------------------

    def _found_open(self, bot_id: str, outcome: list[Run] | Fault) -> None:
        if isinstance(outcome, Fault):
            self._say("trouble", outcome.sentence, bot=bot_id)
            return
        for run in outcome:
            self._watch(bot_id, run.slot, wait_s=self._lost_after_s - max(0.0, self._clock() - run.claimed_s))

    def _watch(self, bot_id: str, slot: str, *, wait_s: float | None = None) -> None:
        """Somebody else claimed it: later, it has an end, or runs, or is lost."""
        if (bot_id, slot) not in self._watched:
            self._watched.add((bot_id, slot))
            self._at(self._lost_after_s if wait_s is None else max(wait_s, 0.0), partial(self._settle, bot_id, slot))

    def _settle(self, bot_id: str, slot: str) -> None:
        if self._may_have_a_future(bot_id, slot):
            self._at(self._lost_after_s, partial(self._settle, bot_id, slot))
            return

        def done(outcome: Run | Fault | None) -> None:
            if isinstance(outcome, Fault):
                self._say("trouble", outcome.sentence, bot=bot_id)
                self._at(AGAIN_S, partial(self._settle, bot_id, slot))
                return
            self._watched.discard((bot_id, slot))
            if outcome is not None:
                self._count(outcome)

        self._do(self._others, partial(self._keeper.lose, bot_id, slot), done)

    def _may_have_a_future(self, bot_id: str, slot: str) -> bool:
        """It runs, waits for its turn here, or may be queued behind an earlier slot that runs."""
        entry = self._table.entries.get(bot_id)
        if entry is not None and any(each is not None and each.slot == slot for each in (entry.current, entry.queued)):
            return True
        running = self._live.get(bot_id)
        return running is not None and slot_s(running) <= slot_s(slot)

    # --- notes ------------------------------------------------------------------------------------

    def _note_nexts(self) -> None:
        """Keeps `next_execution_time`, in one thread, as of the last pass."""
        if self._noting or not (nexts := self._table.take_nexts()):
            return
        self._noting = True

        def note() -> None:
            for bot_id, moment in nexts.items():
                self._store.set_next(bot_id, moment)

        def done(outcome: Fault | None) -> None:
            self._noting = False
            if isinstance(outcome, Fault):
                self._say("trouble", outcome.sentence)
                self._table.give_back(nexts)

        self._do(self._others, note, done)

    def _persist(self, bot_id: str, slot: int, work: Callable[[], list[Run]]) -> None:
        """Records slots that are not run, as often as it takes."""

        def done(outcome: list[Run] | Fault) -> None:
            if isinstance(outcome, Fault):
                self._say("trouble", outcome.sentence, bot=bot_id)
                self._at(AGAIN_S, partial(self._persist, bot_id, slot, work))
                return
            self._table.decided(bot_id, slot)
            for run in outcome:
                self._count(run)

        self._do(self._others, work, done)

    def _count(self, run: Run) -> None:
        if run.result is None:
            return
        self.counts.results[run.result] = self.counts.results.get(run.result, 0) + run.count
        if run.result in ("lost", "missed", "skipped"):
            more = f" and {run.count - 1} more slots" if run.count > 1 else ""
            self._say(run.result, f"Run {run.slot}{more}: {run.reason}", bot=run.bot_id)

    def _tell_fault(self, bot_id: str) -> Callable[[object], None]:
        def tell(outcome: object) -> None:
            if isinstance(outcome, Fault):
                self._say("trouble", outcome.sentence, bot=bot_id)

        return tell

    # --- threads ----------------------------------------------------------------------------------

    def _at(self, wait_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self._monotonic() + wait_s, next(self._order), act))

    def _do(self, pool: ThreadPoolExecutor, work: Callable[[], T], then: Callable[[T | Fault], None]) -> None:
        """`work` in a thread; `then` with its outcome in a pass."""

        def act() -> None:
            outcome: T | Fault
            try:
                outcome = work()
            except Fault as fault:
                outcome = fault
            except Exception as reason:  # noqa: BLE001 - one bot's trouble is its own; the traceback goes to stderr
                sys.excepthook(type(reason), reason, reason.__traceback__)
                outcome = Permanent(f"{type(reason).__name__}, which is a bug of the runtime.", code=ExitCode.INTERNAL)
            self._inbox.put(partial(then, outcome))
            self.wake()

        if not self._ended:
            pool.submit(act)

    def _drain(self) -> None:
        with self._lock:
            while not self._inbox.empty():
                self._inbox.get()()


def _refused(sentence: str) -> Permanent:
    return Permanent(sentence, code=ExitCode.USAGE)
