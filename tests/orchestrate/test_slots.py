"""Decisions about slots: what is run, what is missed, what comes next."""

from __future__ import annotations

import random

import pytest

from the0.documents import Policies
from the0.orchestrate.schedule import parse, slots
from the0.orchestrate.slots import Due, Missed, due, first_cursor, latest, overlap, stretch

NOON = 1_790_078_400
"""2026-09-22T12:00:00Z"""
MINUTELY = parse("* * * * *")
HOURLY = parse("@hourly")
DEFAULT = Policies()


def test_nothing_is_due_before_its_time() -> None:
    assert due(HOURLY, DEFAULT, cursor=NOON, now_s=NOON - 0.001) == Due(None, False, None, NOON)


@pytest.mark.parametrize("late_s", [0.0, 0.2, 30.0])
def test_a_slot_in_time(late_s: float) -> None:
    assert due(MINUTELY, DEFAULT, cursor=NOON, now_s=NOON + late_s) == Due(NOON, False, None, NOON + 60)


def test_the_start_deadline() -> None:
    """Half a period, at most 300 s, or as the policy has it."""
    assert due(MINUTELY, DEFAULT, cursor=NOON, now_s=NOON + 31) == Due(None, False, Missed(NOON, NOON, 1), NOON + 60)
    assert due(HOURLY, DEFAULT, cursor=NOON, now_s=NOON + 300).run == NOON
    assert due(HOURLY, DEFAULT, cursor=NOON, now_s=NOON + 301).missed == Missed(NOON, NOON, 1)
    patient = Policies(start_deadline_s=1800)
    assert due(HOURLY, patient, cursor=NOON, now_s=NOON + 1800).run == NOON
    assert due(HOURLY, patient, cursor=NOON, now_s=NOON + 1801).run is None


def test_of_several_the_newest_is_run() -> None:
    assert due(MINUTELY, DEFAULT, cursor=NOON, now_s=NOON + 190) == Due(
        NOON + 180, False, Missed(NOON, NOON + 120, 3), NOON + 240
    )


def test_catching_up_with_one() -> None:
    one = Policies(catch_up="one")
    now_s = NOON + 5 * 3600 + 1000
    assert due(HOURLY, one, cursor=NOON, now_s=now_s) == Due(
        NOON + 5 * 3600, True, Missed(NOON, NOON + 4 * 3600, 5), NOON + 6 * 3600
    )
    assert due(HOURLY, DEFAULT, cursor=NOON, now_s=now_s) == Due(
        None, False, Missed(NOON, NOON + 5 * 3600, 6), NOON + 6 * 3600
    )


def test_every_slot_is_decided_once() -> None:
    """Whenever the scheduler wakes, however long it slept."""
    of = random.Random("slots")
    for expression in ("*/7 * * * *", "0 */5 9-17 * * *", "@every 90s", "CRON_TZ=Europe/Berlin 30 2 * * *"):
        schedule = parse(expression)
        for policies in (DEFAULT, Policies(catch_up="one"), Policies(start_deadline_s=5)):
            cursor = first_cursor(schedule, stored_s=None, now_s=NOON)
            expected = slots(schedule, after_s=NOON)
            now_s = float(NOON)
            for _ in range(100):
                now_s += of.choice([0.5, 20, 100, 4000, 90000])
                found = due(schedule, policies, cursor=cursor, now_s=now_s)
                decided: list[int] = []
                if found.missed is not None:
                    decided += [next(expected) for _ in range(found.missed.count)]
                    assert (decided[0], decided[-1]) == (found.missed.first, found.missed.last)
                if found.run is not None:
                    assert next(expected) == found.run
                assert found.next > now_s
                cursor = found.next
            assert next(expected) == cursor


def test_a_long_absence_costs_little() -> None:
    everysecond = parse("* * * * * *")
    missed = due(everysecond, DEFAULT, cursor=NOON, now_s=NOON + 30 * 86400 + 0.1).missed
    assert missed == Missed(NOON, NOON + 30 * 86400 - 1, 30 * 86400)
    assert stretch(HOURLY, first=NOON, before=NOON + 1) == Missed(NOON, NOON, 1)


def test_the_newest_slot() -> None:
    assert latest(HOURLY, now_s=NOON) == NOON
    assert latest(HOURLY, now_s=NOON + 3599.9) == NOON
    assert latest(parse("@yearly"), now_s=NOON) == 1_767_225_600


def test_where_a_scheduler_begins() -> None:
    assert first_cursor(HOURLY, stored_s=None, now_s=NOON) == NOON + 3600
    assert first_cursor(HOURLY, stored_s=NOON - 7200, now_s=NOON) == NOON - 7200
    assert first_cursor(HOURLY, stored_s=NOON - 7000, now_s=NOON) == NOON - 3600  # of another schedule
    assert first_cursor(HOURLY, stored_s=NOON + 10**8, now_s=NOON) == NOON + 3600  # of a clock that was ahead


def test_overlap() -> None:
    assert overlap("skip", busy=False, queued=False) == "start"
    assert overlap("skip", busy=True, queued=False) == "skip"
    assert overlap("queue", busy=True, queued=False) == "queue"
    assert overlap("queue", busy=True, queued=True) == "skip"
