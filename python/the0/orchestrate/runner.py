"""Keeps realtime bots as the store wants them: wakes when something happened, decides by `reconcile`, and acts.

It sleeps until the engine or a command wakes it, until a backoff is over, or for `interval_s`; then it asks the store for
its revision, and does nothing more where nothing changed.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from the0.documents import BadBot, Bot
from the0.errors import Fault
from the0.orchestrate import reconcile
from the0.orchestrate.actions import Action, KillInstance, StartBot, StopInstance
from the0.orchestrate.bots import BotStore
from the0.orchestrate.engine import Engine, Instance, Start
from the0.orchestrate.known_bots import KnownBots
from the0.orchestrate.reconcile import Decision, Desired, Failed, Memory, Plan
from the0.orchestrate.runner_news import InstanceNews, Say

WORKERS: Final = 4
"""Actions that are carried out at the same time."""


class Runner:
    def __init__(
        self,
        store: BotStore,
        engine: Engine,
        *,
        say: Say,
        grace_s: float,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._known = KnownBots(store)
        self._engine = engine
        self._say = say
        self._grace_s = grace_s
        self._interval_s = interval_s
        self._changed: list[Callable[[], None]] = []
        self._clock = clock
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._desired = Desired(bots={})
        self._memory = Memory()
        self._missing: frozenset[str] = frozenset()
        self._store_fault: str | None = None
        self._news = InstanceNews(say, known=engine.actual())
        self._killed: frozenset[tuple[str, float]] = frozenset()
        """Which stops were said to take too long: names and when they were asked for."""
        self._due_s: float | None = None
        self._actions: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._thread: threading.Thread | None = None

    # --- its life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """In threads of its own, until `close`."""
        self._engine.subscribe(self.wake)
        self._workers = [
            threading.Thread(target=self._work, name=f"runner-{number}", daemon=True) for number in range(WORKERS)
        ]
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        for thread in (*self._workers, self._thread):
            thread.start()

    def close(self) -> None:
        """Decides nothing more, and waits for what is being carried out. Idempotent."""
        self._stop.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            for _ in self._workers:
                self._actions.put(None)
            for worker in self._workers:
                worker.join()
            self._thread, self._workers = None, []

    def subscribe(self, changed: Callable[[], None]) -> None:
        """`changed` is called whenever other bots were read than before. Before `start`."""
        self._changed.append(changed)

    def wake(self) -> None:
        """Something happened. From any thread; returns at once."""
        self._woken.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.one_pass()
            except Exception as reason:  # noqa: BLE001 - the next pass may do better; the traceback goes to stderr
                sys.excepthook(type(reason), reason, reason.__traceback__)
                self._due_s = None
            timeout_s = self._interval_s
            if self._due_s is not None:
                timeout_s = min(timeout_s, max(self._due_s - self._clock(), 0.0) + 0.001)
            self._woken.wait(timeout_s)
            self._woken.clear()

    def one_pass(self) -> Plan:
        """Looks once and begins what is to be done."""
        self._refresh()
        with self._lock:
            actual = self._engine.actual()
            now_s = self._clock()
            self._news.tell(actual, decide=self._decide_after, now_s=now_s)
            plan = reconcile.reconcile(self._desired, actual, now_s=now_s, memory=self._memory, grace_s=self._grace_s)
            self._due_s = plan.due_s
            self._tell_missing(plan.missing)
            if plan.actions:
                self._memory = replace(self._memory, busy=self._memory.busy | {_bot_id(each) for each in plan.actions})
        for action in plan.actions:
            self._actions.put(action)
        return plan

    def plan(self) -> Plan:
        """What a pass would do now: the dry run."""
        self._refresh()
        with self._lock:
            return reconcile.reconcile(
                self._desired, self._engine.actual(), now_s=self._clock(), memory=self._memory, grace_s=self._grace_s
            )

    def _refresh(self) -> None:
        """Reads the bots again where they changed. While the store does not answer, the last ones count."""
        try:
            news = self._known.refresh()
        except Fault as fault:
            self._tell_store(fault.sentence)
            return
        self._tell_store(None)
        if not news:
            return
        with self._lock:
            self._desired = Desired(bots=self._known.bots, removed=self._known.removed)
            self._forget_gone()
        for changed in self._changed:
            changed()

    def _forget_gone(self) -> None:
        bots = self._desired.bots
        self._memory = replace(
            self._memory,
            asked_s={bot_id: at_s for bot_id, at_s in self._memory.asked_s.items() if bot_id in bots},
            # Who was stopped and is started again by a person starts at once.
            failed={
                bot_id: failed
                for bot_id, failed in self._memory.failed.items()
                if (bot := bots.get(bot_id)) is not None and bot.enabled
            },
            confirmed=self._memory.confirmed - bots.keys(),
        )

    # --- requests ---------------------------------------------------------------------------------

    def restart(self, bot_id: str) -> None:
        """Also where its last end forbids a start, or its backoff is not over."""
        with self._lock:
            asked_s = {**self._memory.asked_s, bot_id: self._clock()}
            failed = {other: failed for other, failed in self._memory.failed.items() if other != bot_id}
            self._memory = replace(self._memory, asked_s=asked_s, failed=failed)
        self.wake()

    def confirm(self) -> list[str]:
        """Missing bots are gone: what runs of them is stopped."""
        with self._lock:
            missing = self._missing
            self._memory = replace(self._memory, confirmed=self._memory.confirmed | missing)
        self.wake()
        return sorted(missing)

    # --- what others want to know -----------------------------------------------------------------

    def not_ready(self) -> str | None:
        """Why this is not ready, in one sentence."""
        with self._lock:
            if self._known.revision is None and self._store_fault is None:
                return "The bots were not read yet."
            if self._missing:
                return reconcile.missing_sentence(self._missing)
            return self._store_fault

    def bots(self) -> Mapping[str, Bot | BadBot]:
        """As last read, by id."""
        with self._lock:
            return self._desired.bots

    def decisions(self, bot_ids: Sequence[str] | None = None) -> dict[str, tuple[Decision, Instance | None]]:
        """By bot id, with its newest instance: all bots, stored or running, or those."""
        now_s = self._clock()
        with self._lock:
            desired, memory = self._desired, self._memory
        actual = self._engine.actual()
        instances = reconcile.by_bot(actual)
        missing = reconcile.missing_bots(desired, actual, confirmed=memory.confirmed)
        wanted = bot_ids if bot_ids is not None else sorted(desired.bots.keys() | instances.keys())
        found = {}
        for bot_id in wanted:
            bot, its = desired.bots.get(bot_id), instances.get(bot_id, ())
            if bot is None and not its:
                continue
            decision = reconcile.decide(
                bot_id, bot, its, desired=desired, memory=memory, now_s=now_s, grace_s=self._grace_s
            )
            newest = max(its, key=lambda each: each.started_s, default=None)
            if bot_id in missing and newest is not None and newest.stop_asked_s is None:
                decision = Decision(status="running", reason=reconcile.LEFT_RUNNING, since_s=newest.started_s)
            found[bot_id] = (decision, newest)
        return found

    # --- acting -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while (action := self._actions.get()) is not None:
            failed: Failed | None = None
            try:
                failed = self._carry_out(action)
            except Fault as fault:
                self._say("trouble", fault.sentence, bot=_bot_id(action))
            except Exception as reason:  # noqa: BLE001 - one bot's trouble is its own; the traceback goes to stderr
                sys.excepthook(type(reason), reason, reason.__traceback__)
                failed = self._failure(action, f"{type(reason).__name__}, which is a bug of the runtime.", held=False)
            self._done(action, failed)

    def _carry_out(self, action: Action) -> Failed | None:
        if isinstance(action, StartBot):
            if self._stop.is_set():
                return None
            wanted = Start(bot=action.bot, restart=action.restart, failures=action.failures, previous=action.previous)
            try:
                self._engine.start(wanted)
            except Fault as fault:
                self._say("not-started", fault.sentence, bot=action.bot.id)
                return self._failure(action, fault.sentence, held=fault.code in reconcile.HELD)
        elif isinstance(action, StopInstance):
            self._say("stop", action.reason, bot=action.bot_id)
            self._engine.stop(action.name, grace_s=self._grace_s, reason=action.reason)
        elif isinstance(action, KillInstance):
            self._say_once(action)
            self._engine.kill(action.name)
        elif action.discard:
            self._engine.discard(action.bot_id)
        else:
            self._engine.remove(action.name)
        return None

    def _say_once(self, action: KillInstance) -> None:
        with self._lock:
            said = (action.name, action.asked_s) in self._killed
            live = {(each.name, each.stop_asked_s) for each in self._engine.actual() if each.state != "ended"}
            self._killed = frozenset(each for each in self._killed if each in live) | {(action.name, action.asked_s)}
        if not said:
            self._say("kill", "it has not stopped in time", bot=action.bot_id)

    def _failure(self, action: Action, sentence: str, *, held: bool) -> Failed | None:
        if not isinstance(action, StartBot):
            return None
        former = self._memory.failed.get(action.bot.id)
        count = former.failures if former is not None and former.config_hash == action.bot.config_hash else 0
        return Failed(action.bot.config_hash, count + 1, self._clock(), sentence, held)

    def _done(self, action: Action, failed: Failed | None) -> None:
        bot_id = _bot_id(action)
        with self._lock:
            others = {other: each for other, each in self._memory.failed.items() if other != bot_id}
            known = self._memory.failed.get(bot_id)
            if failed is not None:
                others[bot_id] = failed
            elif known is not None and not isinstance(action, StartBot):
                others[bot_id] = known
            self._memory = replace(self._memory, failed=others, busy=self._memory.busy - {bot_id})
        self.wake()

    # --- news -------------------------------------------------------------------------------------

    def _decide_after(self, ended: Instance) -> Decision:
        return reconcile.decide(
            ended.bot_id,
            self._desired.bots.get(ended.bot_id),
            [ended],
            desired=self._desired,
            memory=self._memory,
            now_s=self._clock(),
            grace_s=self._grace_s,
        )

    def _tell_missing(self, missing: frozenset[str]) -> None:
        if missing != self._missing:
            self._missing = missing
            if missing:
                self._say("missing", reconcile.missing_sentence(missing))

    def _tell_store(self, sentence: str | None) -> None:
        if sentence != self._store_fault:
            self._say("store", sentence or "The bots can be read again.")
            with self._lock:
                self._store_fault = sentence


def _bot_id(action: Action) -> str:
    return action.bot.id if isinstance(action, StartBot) else action.bot_id
