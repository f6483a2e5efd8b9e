"""The scheduler with real processes: when it starts, what it records, and what it does when things go wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrate.schedule_place import Place, document
from rig.server import wait_until
from the0.documents import Policies, read_all
from the0.errors import ExitCode, Permanent
from the0.objects.folder import Folder
from the0.objects.store import Unavailable
from the0.orchestrate.scheduler import Scheduler
from the0.runs import Run, slot_name, slot_s

EVERY_SECOND = "* * * * * *"
NEVER = "0 0 29 2 *"
"""Not within a test."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def hours_ago(hours: float) -> int:
    return int(time.time() - hours * 3600)


def the0(**policies: Any) -> dict[str, Any]:
    assert policies.keys() <= Policies.__dataclass_fields__.keys()
    return {"the0": policies}


def test_slots_are_run_and_recorded(place: Place) -> None:
    place.add(document("bot-1", EVERY_SECOND), document("bot-2", EVERY_SECOND, code=3))
    with place.running() as scheduler:
        records = place.until_ended("bot-1", count=3)
        failed = place.until_ended("bot-2", count=1)[0]
    slots = [slot_s(run.slot) for run in records]
    assert slots == list(range(slots[0], slots[0] + len(slots))), "no second is left out"
    done = [run for run in records if run.result == "ok"]
    assert len(done) >= 3
    for run in done:
        assert (run.code, run.by, run.holder) == (0, "bot", scheduler.holder)
        assert run.start_s is not None
        assert run.end_s is not None
        assert run.due_s <= run.start_s <= run.end_s < run.due_s + 5
    assert (failed.result, failed.code, failed.reason) == ("failed", 3, "It ended with 3.")
    assert scheduler.counts.results["ok"] >= 3


def test_it_notes_what_comes_next(place: Place) -> None:
    place.add(document("bot-1", "@hourly"))
    with place.running() as scheduler:
        wait_until(lambda: place.next_s("bot-1") is not None, deadline_s=10, what="the next time is noted")
        noted = place.next_s("bot-1")
        told = scheduler.told("bot-1")
    assert noted is not None
    assert noted % 3600 == 0
    assert 0 < noted - time.time() <= 3600
    assert told is not None
    assert (told.next_s, told.error, told.phase) == (noted, None, None)
    assert scheduler.told("bot-2") is None


def test_it_sleeps_between_slots(place: Place) -> None:
    place.add(document("bot-1", "@hourly"))
    scheduler = place.scheduler(interval_s=7.0)
    scheduler.one_pass()
    assert 6.9 < scheduler.one_pass() < 7.1
    scheduler.close()


def test_a_bad_schedule_is_the_trouble_of_that_bot(place: Place) -> None:
    place.add(
        document("bad", "0 0 30 2 *"),
        document("worse", EVERY_SECOND, the0={"overlap": "sometimes"}),
        document("lost", EVERY_SECOND, the0={"timezone": "Mars/Olympus"}),
        document("good", EVERY_SECOND),
    )
    with place.running() as scheduler:
        place.until_ended("good", count=1)
        told = {bot_id: scheduler.told(bot_id) for bot_id in ("bad", "worse", "lost", "good")}
    assert "no date ever fits" in str(told["bad"])
    assert "overlap" in str(told["worse"])
    assert "Mars/Olympus" in str(told["lost"])
    assert told["good"] is not None
    assert told["good"].error is None


# --- overlap --------------------------------------------------------------------------------------


def test_a_slot_that_comes_while_the_bot_runs_is_skipped(place: Place) -> None:
    place.add(document("bot-1", EVERY_SECOND, seconds=2.5))
    with place.running():
        records = place.until_ended("bot-1", count=4)
    kinds = [run.result for run in records if not run.is_open]
    assert kinds[:3] == ["ok", "skipped", "skipped"]
    assert records[1].behind == records[0].slot
    assert records[0].slot in records[1].reason


def test_a_slot_may_wait(place: Place) -> None:
    place.add(document("bot-1", EVERY_SECOND, seconds=1.6, **the0(overlap="queue")))
    with place.running():
        wait_until(lambda: len(place.engine.ran()) >= 3, deadline_s=20, what="three runs, one after the other")
        first, second = place.engine.ran()[:2]
        records = {run.slot: run for run in place.records("bot-1")}
    ended, waited = records[first[1]], records[second[1]]
    assert slot_s(second[1]) == slot_s(first[1]) + 1, "the very next slot"
    assert ended.end_s is not None
    assert waited.start_s is not None
    assert ended.end_s <= waited.start_s
    assert not waited.waiting
    assert "skipped" in {run.result for run in records.values()}, "one waits, not more"


def test_a_run_by_hand(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=1), document("bot-2", NEVER, seconds=1, **the0(overlap="queue")))
    with place.running() as scheduler:
        slot = scheduler.run_now("bot-1")
        with pytest.raises(Permanent, match="is running already"):
            scheduler.run_now("bot-1")
        assert scheduler.run_now("bot-2") != scheduler.run_now("bot-2")
        with pytest.raises(Permanent, match="is running already"):
            scheduler.run_now("bot-2")
        with pytest.raises(Permanent, match="no scheduled bot bot-3"):
            scheduler.run_now("bot-3")
        (run,) = place.until_ended("bot-1", count=1)
        both = place.until_ended("bot-2", count=2)
    assert (run.slot, run.manual, run.result) == (slot, True, "ok")
    assert [each.result for each in both] == ["ok", "ok"]


def test_a_stopped_bot_is_not_run_by_hand(place: Place) -> None:
    place.add(document("bot-1", NEVER))
    place.bots.set_enabled("bot-1", False)
    with place.running() as scheduler, pytest.raises(Permanent, match="is stopped: `runtime start` it first"):
        scheduler.run_now("bot-1")


# --- late, missed, paused -------------------------------------------------------------------------


def test_what_was_missed_leaves_one_record(place: Place) -> None:
    place.add(document("bot-1", "@hourly", next_s=hours_ago(5)))
    place.clock.ahead_s = 1800 - time.time() % 3600  # half past
    with place.running():
        (run,) = place.until_ended("bot-1", count=1)
        wait_until(lambda: (place.next_s("bot-1") or 0) > place.clock(), deadline_s=10, what="the next time is noted")
    assert (run.result, run.count, run.start_s) == ("missed", 5, None)
    assert run.last is not None
    assert slot_s(run.last) - slot_s(run.slot) == 4 * 3600
    assert place.engine.ran() == []


def test_catching_up_with_one(place: Place) -> None:
    place.add(document("bot-1", "@hourly", next_s=hours_ago(5), **the0(catch_up="one")))
    place.clock.ahead_s = 1800 - time.time() % 3600
    with place.running():
        wait_until(lambda: len(place.records("bot-1")) == 2, deadline_s=10, what="two records")
        missed, run = place.until_ended("bot-1", count=2)
    assert (missed.result, missed.count) == ("missed", 4)
    assert run.result == "ok"
    assert slot_s(run.slot) == slot_s(missed.slot) + 4 * 3600


def test_slots_that_somebody_ran_are_not_missed(place: Place) -> None:
    """A former scheduler had run the third of five, and did not live to note the next one."""
    since = hours_ago(5) // 3600 * 3600
    place.clock.ahead_s = since + 4.5 * 3600 - time.time()
    place.add(document("bot-1", "@hourly", next_s=since))
    run = place.runs.claim("bot-1", slot_name(since + 7200), holder="former", token="t", now_s=since + 7200)
    assert run is not None
    place.runs.change(run, result="ok", end_s=since + 7205.0)
    with place.running():
        wait_until(lambda: len(place.records("bot-1")) == 3, deadline_s=10, what="three records")
        records = place.records("bot-1")
    assert [(run.result, run.count) for run in records] == [("missed", 2), ("ok", 1), ("missed", 2)]


def test_a_paused_or_stopped_bot_has_no_slots(place: Place) -> None:
    place.add(document("bot-1", EVERY_SECOND), document("bot-2", EVERY_SECOND))
    with place.running():
        place.until_ended("bot-1", count=1)
        place.bots.set_paused("bot-1", True)
        place.bots.set_enabled("bot-2", False)
        here = len(place.until_ended("bot-2", count=1))
        wait_until(lambda: time.time() > place.records("bot-1")[-1].due_s + 2.5, deadline_s=10, what="two slots")
        paused_at = place.records("bot-1")[-1].due_s
        place.bots.set_paused("bot-1", False)
        wait_until(lambda: place.records("bot-1")[-1].due_s > paused_at, deadline_s=10, what="it goes on")
        records = place.until_ended("bot-1", count=1)
    assert len(place.records("bot-2")) <= here + 1
    after = next(run for run in records if run.due_s > paused_at)
    assert after.due_s >= paused_at + 2
    assert all(run.result != "missed" for run in records), "nobody wanted those"


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_slots_of_a_bot_that_was_away_are_nobodys(place: Place, how: str) -> None:
    """Also where it was started again while no scheduler was up."""
    place.add(document("bot-1", "@hourly", next_s=hours_ago(5), **the0(catch_up="one")))
    away = place.bots.set_paused if how == "paused" else lambda bot_id, off: place.bots.set_enabled(bot_id, not off)
    away("bot-1", True)
    away("bot-1", False)
    with place.running():
        wait_until(lambda: (place.next_s("bot-1") or 0) > time.time(), deadline_s=10, what="the next time is noted")
    assert place.records("bot-1") == []


def test_another_schedule_counts_from_now_on(place: Place) -> None:
    place.add(document("bot-1", NEVER))
    with place.running() as scheduler:
        wait_until(lambda: scheduler.told("bot-1") is not None, deadline_s=10, what="it is known")
        changed = document("bot-1", EVERY_SECOND)
        place.bots.update("bot-1", "scheduled", config=changed.body["config"])
        scheduler.wake()
        place.until_ended("bot-1", count=1)
        place.bots.remove("bot-1")
        wait_until(lambda: scheduler.told("bot-1") is None, deadline_s=10, what="it is forgotten")


# --- clocks ---------------------------------------------------------------------------------------


def test_the_clock_is_set_ahead(place: Place) -> None:
    place.add(document("bot-1", "@hourly"))
    place.clock.ahead_s = 1800 - time.time() % 3600
    with place.running() as scheduler:
        wait_until(lambda: place.next_s("bot-1") is not None, deadline_s=10, what="the next time is noted")
        place.clock.ahead_s += 1800 + 2 * 3600
        records = place.until_ended("bot-1", count=2)
        told = scheduler.told("bot-1")
    assert [(run.result, run.count) for run in records] == [("missed", 2), ("ok", 1)]
    assert told is not None
    assert told.next_s == slot_s(records[1].slot) + 3600


def test_the_clock_is_set_back(place: Place) -> None:
    """What was run stays run; what comes next is not hours away."""
    place.add(document("bot-1", "* * * * *"))
    place.clock.ahead_s = 59.5 - time.time() % 60
    with place.running() as scheduler:
        (first,) = place.until_ended("bot-1", count=1)
        ahead = place.clock.ahead_s
        place.clock.ahead_s = ahead - 7200
        wait_until(lambda: any(event == "clock" for event, _, _ in place.news), deadline_s=10, what="it notices")
        told = scheduler.told("bot-1")
        assert told is not None
        assert told.next_s is not None
        assert told.next_s - place.clock() <= 60
        # Up to just before the slot that was run already: it is not run again.
        place.clock.ahead_s = ahead + first.due_s - 0.5 - (time.time() + ahead)
        wait_until(lambda: place.clock() > first.due_s + 3, deadline_s=10, what="its time comes again")
    assert place.engine.ran() == [("bot-1", first.slot)]


# --- limits ---------------------------------------------------------------------------------------


def test_a_run_over_its_time_is_stopped(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=60, **the0(timeout_s=1)))
    with place.running() as scheduler:
        scheduler.run_now("bot-1")
        (run,) = place.until_ended("bot-1", count=1)
    assert (run.result, run.code) == ("timed out", 143)
    assert "timeout_s" in run.reason
    assert run.start_s is not None
    assert run.end_s is not None
    assert 1 <= run.end_s - run.start_s < 10


def test_somebody_stops_a_run(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=60))
    with place.running() as scheduler:
        scheduler.run_now("bot-1")
        wait_until(lambda: len(place.engine.ran()) == 1, deadline_s=10, what="it runs")
        (instance,) = place.engine.actual()
        place.engine.stop(instance.name, grace_s=5, reason="it was stopped")
        (run,) = place.until_ended("bot-1", count=1)
    assert (run.result, run.code) == ("stopped", 143)
    assert run.reason == "It ended with 143. (stopped: it was stopped)"


def test_no_more_at_once_than_allowed(place: Place) -> None:
    for number in range(9):
        place.add(document(f"bot-{number}", NEVER, seconds=0.4))
    most = 0
    with place.running(at_once=3) as scheduler:
        for number in range(9):
            scheduler.run_now(f"bot-{number}")

        def all_ran() -> bool:
            nonlocal most
            most = max(most, sum(each.state != "ended" for each in place.engine.actual()))
            return len(place.engine.ran()) == 9

        wait_until(all_ran, deadline_s=20, what="all have run")
    assert 2 <= most <= 3


def test_a_thousand_bots_in_one_minute(place: Place) -> None:
    """Five slots of a second each, two hundred bots a slot: all are run, in the order of their slots."""
    lead_s, begin = 6, 0
    while begin <= time.time():  # stored too late, on a slow disk: anew, with more time for it
        lead_s *= 2
        begin = int(time.time()) + lead_s
        for number in range(1000):
            at = time.gmtime(begin + number % 5)
            expression = f"{at.tm_sec} {at.tm_min} {at.tm_hour} {at.tm_mday} {at.tm_mon} *"
            place.bots.remove(f"bot-{number:04d}")
            place.add(document(f"bot-{number:04d}", expression, unchecked=True))
    with place.running(at_once=16, interval_s=10.0) as scheduler:
        wait_until(lambda: len(place.engine.ran()) == 1000, deadline_s=240, what="all have run")
        wait_until(lambda: scheduler.counts.results.get("ok") == 1000, deadline_s=30, what="all are recorded")
    ran = place.engine.ran()
    assert len({bot_id for bot_id, _ in ran}) == 1000
    begun = sorted((run.start_s or 0.0, run.slot) for each in range(1000) for run in place.records(f"bot-{each:04d}"))
    assert len(begun) == 1000
    slots = [slot for _, slot in begun]
    # Four start at the same time, so that neighbours may change places.
    assert all(slot >= max(slots[: max(at - 8, 0)], default="") for at, slot in enumerate(slots))


# --- failures -------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_started(place: Place) -> None:
    place.add(document("bot-1", NEVER))
    place.engine.refuse = "There is no such entrypoint: correct it."
    with place.running() as scheduler:
        scheduler.run_now("bot-1")
        (run,) = place.until_ended("bot-1", count=1)
    assert (run.result, run.by, run.code, run.reason) == (
        "failed",
        "runtime",
        ExitCode.ENTRYPOINT,
        "There is no such entrypoint: correct it.",
    )


class Flaky(Folder):
    """Does not answer while `down`."""

    down = False

    def put_if(self, *arguments: Any, **named: Any) -> str:
        if self.down:
            raise Unavailable("The store does not answer: look for it.")
        return super().put_if(*arguments, **named)


def test_a_store_that_is_away_for_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("the0.orchestrate.scheduler_tasks.AGAIN_S", 0.3)
    store = Flaky(str(place.root / "store"))
    place.objects = store
    place.add(document("bot-1", EVERY_SECOND))
    with place.running():
        place.until_ended("bot-1", count=1)
        store.down = True
        wait_until(lambda: any(event == "trouble" for event, _, _ in place.news), deadline_s=10, what="it says so")
        away = time.time()
        wait_until(lambda: time.time() > away + 2, deadline_s=10, what="some slots")
        store.down = False
        back = time.time()
        wait_until(lambda: any(run.due_s > back for run in place.records("bot-1")), deadline_s=10, what="it goes on")
    assert len(place.engine.ran()) == len(set(place.engine.ran()))
    assert covered(place.records("bot-1"))


def covered(records: list[Run]) -> bool:
    """Every second between the first and the last record has one."""
    found = {run.due_s for run in records if run.last is None}
    for run in records:
        if run.last is not None:
            found |= set(range(run.due_s, slot_s(run.last) + 1))
    return found == set(range(min(found), max(found) + 1))


def test_what_runs_is_adopted(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=1.5))
    with place.running() as first:
        slot = first.run_now("bot-1")
        wait_until(lambda: len(place.engine.ran()) == 1, deadline_s=10, what="it runs")
    with place.running() as second:
        wait_until(lambda: second.told("bot-1") is not None, deadline_s=10, what="it is read")
        told = second.told("bot-1")
        assert told is not None
        assert (told.phase, told.slot) == ("running", slot)
        with pytest.raises(Permanent, match="is running already"):
            second.run_now("bot-1")
        (run,) = place.until_ended("bot-1", count=1)
    assert (run.result, run.holder) == ("ok", first.holder)
    assert len(place.engine.ran()) == 1


def test_what_ended_meanwhile_is_recorded(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=0.5, code=4))
    with place.running() as first:
        first.run_now("bot-1")
        wait_until(lambda: len(place.engine.ran()) == 1, deadline_s=10, what="it runs")
    wait_until(lambda: place.engine.actual()[0].state == "ended", deadline_s=10, what="it ends")
    assert place.records("bot-1")[0].is_open
    with place.running():
        (run,) = place.until_ended("bot-1", count=1)
    assert (run.result, run.code) == ("failed", 4)


def test_a_claimed_run_of_which_there_is_nothing_is_lost(place: Place) -> None:
    """Its scheduler died between claim and start; slots after it were skipped."""
    now = int(time.time())
    place.add(document("bot-1", "@yearly", next_s=now))
    lost, skipped = slot_name(now - 60), slot_name(now - 30)
    assert place.runs.claim("bot-1", lost, holder="former", token="t", now_s=now - 60) is not None
    place.runs.note(
        Run(bot_id="bot-1", slot=skipped, holder="former", claimed_s=now - 30, result="skipped", behind=lost)
    )
    with place.running() as scheduler:
        wait_until(lambda: scheduler.counts.results.get("lost") == 1, deadline_s=10, what="it is found")
    run = place.records("bot-1")[0]
    assert (run.slot, run.result, run.reason) == (
        lost,
        "lost",
        "It was claimed, nothing of it runs, and nobody saw its end.",
    )
    assert any(event == "lost" and bot == "bot-1" for event, _, bot in place.news)
    assert place.engine.ran() == []


def test_nothing_starts_while_it_holds(place: Place) -> None:
    place.add(document("bot-1", NEVER, seconds=60), document("bot-2", EVERY_SECOND))
    with place.running() as scheduler:
        scheduler.run_now("bot-1")
        wait_until(lambda: ("bot-1") in dict(place.engine.ran()), deadline_s=10, what="it runs")
        scheduler.hold()
        ran = len(place.engine.ran())
        with pytest.raises(Permanent, match="is stopping"):
            scheduler.run_now("bot-2")
        held = time.time()
        wait_until(lambda: time.time() > held + 2.2, deadline_s=10, what="two slots")
        instance = next(each for each in place.engine.actual() if each.bot_id == "bot-1")
        place.engine.stop(instance.name, grace_s=5, reason="the platform ends")
        (run,) = place.until_ended("bot-1", count=1)
    assert run.result == "stopped"
    assert len(place.engine.ran()) <= ran + 1


def test_its_threads_end_with_it(place: Place) -> None:
    before = set(threading.enumerate())
    place.add(document("bot-1", EVERY_SECOND))
    with place.running() as scheduler:
        place.until_ended("bot-1", count=1)
    scheduler.close()
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("scheduler")}
    assert left == set()


def test_a_scheduler_reads_ten_thousand_bots_once(place: Place) -> None:
    bots = {}
    for number in range(10_000):
        found = document(f"bot-{number}", f"{number % 60} {number % 24} * * *")
        bots[found.id] = found
    read = read_all(("scheduled", each.body) for each in bots.values())
    scheduler = Scheduler(
        lambda: read, place.bots, place.engine, place.objects, bucket="bot-state", say=place.say, grace_s=1
    )
    scheduler.one_pass()
    began = time.process_time()
    for _ in range(20):
        scheduler.one_pass()
    passes_s = time.process_time() - began
    scheduler.close()
    assert passes_s / 20 < 0.1, "CPU of a pass without change"
