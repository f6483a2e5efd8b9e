"""The reconciler: single decisions, and random worlds driven through a simulated engine."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from the0 import documents
from the0.documents import BadBot, Bot
from the0.errors import ExitCode
from the0.orchestrate import actions, backoff, reconcile
from the0.orchestrate.actions import KillInstance, RemoveInstance, StartBot, StopInstance
from the0.orchestrate.engine import Exit, Instance
from the0.orchestrate.reconcile import Desired, Failed, Memory, Plan

NOW = 1_800_000_000.0
GRACE_S = 30.0


def bot(bot_id: str = "b", *, kind: documents.Kind = "realtime", enabled: bool = True, **config: Any) -> Bot:
    document = {
        "id": bot_id,
        "enabled": enabled,
        "config": {"schedule": "* * * * *", **config},
        "custom": {
            "version": "1",
            "filePath": "u/b/1",
            "config": {"runtime": "python3.11", "entrypoints": {"bot": "main.py"}},
        },
    }
    made = documents.read(document, kind=kind)
    assert isinstance(made, Bot)
    return made


def instance(of: Bot, **changes: Any) -> Instance:
    made = Instance(
        bot_id=of.id,
        kind=of.kind,
        name=of.id,
        config_hash=of.config_hash,
        restart=0,
        failures=0,
        state="running",
        started_s=NOW - 50,
    )
    return replace(made, **changes)


def ended(of: Bot, *, code: int = 1, by: Any = "bot", at_s: float = NOW - 10, **changes: Any) -> Instance:
    return instance(of, state="ended", exit=Exit(code=code, by=by, reason="It ended.", at_s=at_s), **changes)


def plan(
    bots: list[Bot | BadBot],
    actual: list[Instance],
    *,
    now_s: float = NOW,
    removed: tuple[str, ...] = (),
    **memory: Any,
) -> Plan:
    desired = Desired(bots={each.id: each for each in bots}, removed=frozenset(removed))
    return reconcile.reconcile(desired, actual, now_s=now_s, memory=Memory(**memory), grace_s=GRACE_S)


def test_a_new_bot_is_started() -> None:
    assert plan([bot()], []).actions == (StartBot(bot(), 0, 0, None),)


def test_what_runs_is_adopted() -> None:
    assert plan([bot()], [instance(bot())]) == Plan(actions=(), due_s=None, missing=frozenset())


def test_what_was_before_is_told_of_a_bot_that_came_back_by_itself_only() -> None:
    previous = Exit(code=1, by="bot", reason="It ended.", at_s=NOW - 10)
    for failures, reason in ((2, "It ended."), (0, "")):
        running = instance(bot(), previous=previous, failures=failures)
        shown = reconcile.decide(
            "b", bot(), [running], desired=Desired(bots={}), memory=Memory(), now_s=NOW, grace_s=GRACE_S
        )
        assert (shown.status, shown.reason) == ("running", reason)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (bot(enabled=False), "it was stopped"),
        (bot(a=1), "its configuration or code changed"),
        (bot(kind="scheduled"), "it became a scheduled bot"),
    ],
)
def test_what_must_not_run_is_stopped_and_nothing_started_before_it_has_ended(stored: Bot, reason: str) -> None:
    running = instance(bot())
    assert plan([stored], [running]).actions == (StopInstance("b", "b", reason),)
    stopping = replace(running, state="stopping", stop_asked_s=NOW)
    assert plan([stored], [stopping], now_s=NOW + 1).actions == ()


def test_another_configuration_starts_at_once_after_the_old_one() -> None:
    old = ended(bot(), at_s=NOW, stop_asked_s=NOW - 1, failures=7, restart=9)
    (start,) = plan([bot(a=1)], [old]).actions
    assert start == StartBot(bot(a=1), 0, 0, old.exit)


def test_a_slow_stop_is_ended_by_force_in_the_end() -> None:
    stopping = instance(bot(), state="stopping", stop_asked_s=NOW)
    late_s = NOW + GRACE_S + reconcile.KILL_AFTER_S
    assert plan([bot(enabled=False)], [stopping]).due_s == late_s
    assert plan([bot(enabled=False)], [stopping], now_s=late_s).actions == (KillInstance("b", "b", NOW),)


def test_an_end_unasked_is_followed_by_a_longer_and_longer_wait() -> None:
    waits = []
    last = ended(bot(), started_s=NOW - 10, at_s=NOW)
    for _ in range(12):
        waiting = plan([bot()], [last], now_s=NOW)
        assert waiting.actions == ()
        assert waiting.due_s is not None
        waits.append(waiting.due_s - NOW)
        (start,) = plan([bot()], [last], now_s=waiting.due_s).actions
        assert isinstance(start, StartBot)
        assert (start.restart, start.previous) == (last.restart + 1, last.exit)
        last = ended(bot(), started_s=NOW - 10, at_s=NOW, restart=start.restart, failures=start.failures)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_ten_minutes_of_health_begin_the_waits_anew() -> None:
    last = ended(bot(), started_s=NOW - backoff.HEALTHY_S, at_s=NOW, failures=9)
    assert plan([bot()], [last], now_s=NOW).due_s == NOW + 1


def test_a_clock_that_was_set_back_delays_nothing() -> None:
    assert plan([bot()], [ended(bot(), at_s=NOW + 3600)]).actions


@pytest.mark.parametrize("code", [ExitCode.FENCED, ExitCode.REFUSED, ExitCode.USAGE, ExitCode.CODE])
def test_what_needs_a_person_is_not_tried_again_until_the_document_changes(code: ExitCode) -> None:
    last = ended(bot(), code=int(code), by="runtime", at_s=NOW - 1e6)
    assert plan([bot()], [last]) == Plan(actions=(), due_s=None, missing=frozenset())
    assert plan([bot(a=1)], [last]).actions
    assert plan([bot()], [last], asked_s={"b": NOW}).actions
    # The same number of the bot's own means nothing.
    assert plan([bot()], [ended(bot(), code=int(code), by="bot")]).actions


def test_a_restart_that_was_asked_for_is_served_once() -> None:
    running = instance(bot())
    assert plan([bot()], [running], asked_s={"b": NOW}).actions == (StopInstance("b", "b", "a restart was asked for"),)
    after = ended(bot(), at_s=NOW, stop_asked_s=NOW)
    (start,) = plan([bot()], [after], asked_s={"b": NOW}).actions
    assert isinstance(start, StartBot)
    assert plan([bot()], [instance(bot(), started_s=NOW + 1)], asked_s={"b": NOW}).actions == ()


def test_a_start_that_failed_waits_or_is_held() -> None:
    failed = Failed(bot().config_hash, 3, NOW, "No memory.", held=False)
    assert plan([bot()], [], failed={"b": failed}).due_s == NOW + 4
    assert plan([bot()], [], failed={"b": failed}, now_s=NOW + 4).actions
    assert plan([bot()], [], failed={"b": replace(failed, held=True)}, now_s=NOW + 1e9).actions == ()
    assert plan([bot(a=1)], [], failed={"b": replace(failed, held=True)}).actions


def test_a_bad_document_starts_nothing_and_leaves_what_runs() -> None:
    bad = BadBot(id="b", kind="realtime", enabled=True, reason="Bot b has no runtime.")
    assert plan([bad], []).actions == ()
    assert plan([bad], [instance(bot())]).actions == ()
    assert plan([replace(bad, enabled=False)], [instance(bot())]).actions != ()
    assert plan([bad, bot("c")], []).actions == (StartBot(bot("c"), 0, 0, None),)


def test_two_copies_become_one() -> None:
    older, younger = instance(bot(), name="x", started_s=1.0), instance(bot(), name="a", started_s=2.0)
    assert plan([bot()], [younger, older]).actions == (StopInstance("a", "b", "another copy of it runs"),)


def test_runs_of_scheduled_bots_are_the_schedulers_but_for_stopped_ones() -> None:
    run = instance(bot(kind="scheduled"), config_hash="other")
    assert plan([bot(kind="scheduled")], [run]).actions == ()
    assert plan([bot(kind="scheduled")], []).actions == ()
    assert len(plan([bot(kind="scheduled", enabled=False)], [run]).actions) == 1
    # One that became realtime starts after the run has ended only.
    assert plan([bot()], [run]).actions == (StopInstance("b", "b", "it became a realtime bot"),)


def running(count: int) -> list[Instance]:
    return [instance(bot(f"b{number}")) for number in range(count)]


@pytest.mark.parametrize(
    ("runs", "stored", "stopped"), [(10, 7, 3), (10, 6, 0), (10, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1)]
)
def test_absence_is_not_deletion(runs: int, stored: int, stopped: int) -> None:
    bots: list[Bot | BadBot] = [bot(f"b{number}") for number in range(stored)]
    found = plan(bots, running(runs))
    assert len(found.actions) == stopped
    assert len(found.missing) == (0 if stopped else runs - stored)
    gone = tuple(f"b{number}" for number in range(stored, runs))
    assert len(plan(bots, running(runs), removed=gone).actions) == runs - stored
    assert len(plan(bots, running(runs), confirmed=frozenset(gone)).actions) == runs - stored


def test_many_that_are_missing_are_named() -> None:
    said = reconcile.missing_sentence(frozenset(f"b{number}" for number in range(7)))
    assert said.startswith("7 running bots are missing")
    assert "and 2 more" in said


def test_of_a_removed_bot_nothing_is_left_once_all_is_stored() -> None:
    assert plan([], [ended(bot())], removed=("b",)).actions == (RemoveInstance("b", "b", discard=True),)
    unsaved = ended(bot(), code=int(ExitCode.FINAL_SYNC), by="runtime")
    assert plan([], [unsaved], removed=("b",)).actions == (RemoveInstance("b", "b", discard=False),)
    assert plan([], [ended(bot())]).actions == (RemoveInstance("b", "b", discard=False),)


def test_the_plan_can_be_read() -> None:
    for action in plan([bot("new"), bot("old", enabled=False)], [instance(bot("old"))]).actions:
        assert actions.describe(action) in ("start new", "stop old: it was stopped")


def test_ten_thousand_bots_take_little() -> None:
    bots: list[Bot | BadBot] = [replace(bot(), id=f"b{number}") for number in range(10_000)]
    actual = [instance(each) for each in bots if isinstance(each, Bot)]
    began_s = time.process_time()
    assert plan(bots, actual).actions == ()
    assert time.process_time() - began_s < 0.5


# --- random worlds ------------------------------------------------------------------------------------


@dataclass
class World:
    """A store, an engine and a clock, all simulated. Each action is checked before it is carried out."""

    random: random.Random
    now_s: float = NOW
    bots: dict[str, Bot | BadBot] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    instances: dict[str, Instance] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    quiet: bool = False
    serial: int = 0

    def desired(self) -> Desired:
        return Desired(bots=dict(self.bots), removed=frozenset(self.removed - self.bots.keys()))

    def live(self, bot_id: str) -> list[Instance]:
        return [each for each in self.instances.values() if each.bot_id == bot_id and each.state != "ended"]

    def one_pass(self) -> Plan:
        found = reconcile.reconcile(
            self.desired(), list(self.instances.values()), now_s=self.now_s, memory=self.memory, grace_s=GRACE_S
        )
        for action in found.actions:
            self.carry_out(action, found)
        return found

    def carry_out(self, action: reconcile.Action, found: Plan) -> None:
        if isinstance(action, StartBot):
            self.start(action)
        elif isinstance(action, StopInstance):
            self.check_stop(self.instances[action.name], found)
            self.instances[action.name] = replace(
                self.instances[action.name], state="stopping", stop_asked_s=self.now_s, stop_reason=action.reason
            )
        elif isinstance(action, KillInstance):
            slow = self.instances[action.name]
            assert slow.stop_asked_s is not None
            assert self.now_s >= slow.stop_asked_s + GRACE_S
            self.end(action.name, code=137, by="runtime")
        else:
            assert self.instances[action.name].state == "ended"
            assert action.bot_id not in self.bots
            del self.instances[action.name]

    def start(self, action: StartBot) -> None:
        stored = self.bots[action.bot.id]
        assert stored == action.bot
        assert isinstance(stored, Bot)
        assert stored.enabled
        assert stored.kind == "realtime"
        assert not self.live(stored.id), "never two copies"
        former = [each for each in self.instances.values() if each.bot_id == stored.id]
        if former:
            self.check_start_after(max(former, key=_age), action)
        for each in former:
            del self.instances[each.name]
        if not self.quiet and self.random.random() < 0.1:
            before = self.memory.failed.get(stored.id)
            failed = Failed(
                stored.config_hash,
                before.failures + 1 if before else 1,
                self.now_s,
                "No.",
                held=self.random.random() < 0.2,
            )
            self.memory = replace(self.memory, failed={**self.memory.failed, stored.id: failed})
            return
        failed_others = {other: each for other, each in self.memory.failed.items() if other != stored.id}
        self.memory = replace(self.memory, failed=failed_others)
        self.serial += 1
        self.instances[f"i{self.serial}"] = instance(
            stored,
            name=f"i{self.serial}",
            restart=action.restart,
            failures=action.failures,
            previous=action.previous,
            started_s=self.now_s,
        )

    def check_start_after(self, former: Instance, action: StartBot) -> None:
        """No restart without its reason, its record and its wait."""
        assert former.exit is not None
        assert action.previous is not None
        if former.config_hash != action.bot.config_hash or former.kind != "realtime":
            assert action.restart == 0
            return
        assert action.restart == former.restart + 1
        asked = self.memory.asked_s.get(former.bot_id, 0) > former.started_s
        if former.stop_asked_s is None and not asked:
            assert self.now_s - former.exit.at_s >= 1
            assert not (former.exit.by == "runtime" and former.exit.code in reconcile.HELD)

    def check_stop(self, running: Instance, found: Plan) -> None:
        stored = self.bots.get(running.bot_id)
        assert running.state in ("running", "starting")
        assert running.bot_id not in found.missing
        if stored is None or not stored.enabled or stored.kind != running.kind:
            return
        second = len([each for each in self.live(running.bot_id) if each.state == "running"]) > 1
        asked = self.memory.asked_s.get(running.bot_id, 0) > running.started_s
        changed = isinstance(stored, Bot) and stored.config_hash != running.config_hash
        assert second or asked or changed, "a restart without a reason"

    def end(self, name: str, *, code: int, by: Any) -> None:
        how = Exit(code=code, by=by, reason="It ended.", at_s=self.now_s)
        self.instances[name] = replace(self.instances[name], state="ended", exit=how)

    def shake(self) -> None:
        """Something happens."""
        chosen = self.random.choice([f"b{number}" for number in range(6)])
        live = [each.name for each in self.instances.values() if each.state != "ended"]
        what = self.random.randrange(12)
        if what <= 1:
            self.bots[chosen] = bot(chosen, a=self.random.randrange(3))
        elif what == 2:
            self.bots[chosen] = bot(chosen, enabled=False)
        elif what == 3:
            self.bots[chosen] = bot(chosen, kind="scheduled")
        elif what == 4:
            self.bots[chosen] = BadBot(id=chosen, kind="realtime", enabled=True, reason="Bad.")
        elif what == 5:
            self.bots.pop(chosen, None)
            if self.random.random() < 0.7:
                self.removed.add(chosen)
        elif what == 6 and live:
            code = self.random.choice([0, 1, 137, 200, 205, 209, 210, 211])
            self.end(self.random.choice(live), code=code, by=self.random.choice(["bot", "runtime"]))
        elif what == 7:
            self.memory = Memory()  # the service was killed and is back
        elif what == 8:
            self.memory = replace(self.memory, asked_s={**self.memory.asked_s, chosen: self.now_s})
        elif what == 9 and chosen in self.bots and self.random.random() < 0.3:
            # Somebody else started a copy.
            self.serial += 1
            self.instances[f"i{self.serial}"] = instance(bot(chosen), name=f"i{self.serial}", started_s=self.now_s)
        elif what == 10:
            self.bots.clear()  # a store that answers with nothing
        self.now_s += self.random.choice([0.0, 0.1, 1.0, 20.0, 700.0])
        self.finish_stops()

    def finish_stops(self) -> None:
        for each in list(self.instances.values()):
            if each.state == "stopping" and self.random.random() < (1.0 if self.quiet else 0.5):
                self.end(each.name, code=0, by="bot")

    def settle(self) -> None:
        """Nothing happens any more, but what was begun is finished: this must come to rest."""
        self.quiet = True
        for _ in range(100):
            found = self.one_pass()
            self.finish_stops()
            if not found.actions and found.due_s is None:
                return
            self.now_s = max(self.now_s, found.due_s if found.due_s is not None else self.now_s) + 0.01
        raise AssertionError("it does not come to rest")


def _age(ended: Instance) -> tuple[float, float, str]:
    return ended.started_s, ended.exit.at_s if ended.exit else 0.0, ended.name


@pytest.mark.parametrize("seed", range(300))
def test_random_worlds_come_to_rest_as_wanted(seed: int) -> None:
    world = World(random.Random(seed))
    for _ in range(60):
        world.shake()
        world.one_pass()
    world.settle()
    missing = reconcile.missing_bots(world.desired(), list(world.instances.values()), confirmed=frozenset())
    for bot_id in sorted({*world.bots, *(each.bot_id for each in world.instances.values())} - missing):
        stored, live = world.bots.get(bot_id), world.live(bot_id)
        if isinstance(stored, Bot) and stored.enabled and stored.kind == "realtime":
            held = world.memory.failed.get(bot_id)
            last = [each.exit for each in world.instances.values() if each.bot_id == bot_id and each.exit]
            if not live:
                assert (held and held.held) or any(each.code in reconcile.HELD for each in last), bot_id
            else:
                assert [each.config_hash for each in live] == [stored.config_hash]
        elif isinstance(stored, BadBot):
            assert len(live) <= 1
        elif isinstance(stored, Bot) and stored.enabled:
            assert all(each.kind == "scheduled" for each in live)
        else:
            assert live == []
