"""What to do about a bot's slots: pure decisions of the scheduler, without clock, store or engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from the0.documents import Policies
from the0.orchestrate.schedule import Schedule, slots, start_deadline_s

COUNTED: Final = 5000
"""Missed slots are counted one by one up to here; beyond, as many as the time would hold at the same pace."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A stretch of slots whose time went by."""

    first: int
    last: int
    count: int


@dataclass(frozen=True, slots=True)
class Due:
    run: int | None
    """The slot whose turn it is."""
    late: bool
    """It is run although it is over its start deadline."""
    missed: Missed | None
    """All that came before it, or that nothing is run for."""
    next: int
    """The slot to wait for."""


def due(schedule: Schedule, policies: Policies, *, cursor: int, now_s: float) -> Due:
    """`cursor` is the first slot that nothing was decided about. Of several due slots only the newest can still be run: within
    its start deadline, or later where the policy is to catch up with one."""
    if cursor > now_s:
        return Due(None, False, None, cursor)
    following = schedule.next(cursor)
    newest = cursor if following > now_s else latest(schedule, now_s=now_s)
    next_slot = following if newest == cursor else schedule.next(newest)
    in_time = now_s - newest <= start_deadline_s(schedule, newest, wanted_s=policies.start_deadline_s)
    runs = in_time or policies.catch_up == "one"
    if runs and newest == cursor:
        return Due(newest, not in_time, None, next_slot)
    missed = stretch(schedule, first=cursor, before=newest if runs else next_slot)
    return Due(newest if runs else None, runs and not in_time, missed, next_slot)


def latest(schedule: Schedule, *, now_s: float) -> int:
    """The newest slot that is not after `now_s`."""
    width = 1
    while (found := schedule.next(now_s - width)) > now_s:
        width *= 2
    while (following := schedule.next(found)) <= now_s:
        found = following
    return found


def stretch(schedule: Schedule, *, first: int, before: int) -> Missed:
    """The slots from `first` on, which is one, that come before `before`, which comes later."""
    counted = [first]
    for slot in islice(slots(schedule, after_s=first), COUNTED - 1):
        if slot >= before:
            return Missed(first, counted[-1], len(counted))
        counted.append(slot)
    pace_s = (counted[-1] - first) / (len(counted) - 1)
    last = latest(schedule, now_s=before - 1)
    return Missed(first, last, len(counted) + round((last - counted[-1]) / pace_s))


def first_cursor(schedule: Schedule, *, stored_s: int | None, now_s: float) -> int:
    """Where to begin with a bot that is seen for the first time: at what a former scheduler noted to be next, unless that is
    later than it can be (another schedule, or a clock that was ahead)."""
    ahead = schedule.next(now_s)
    if stored_s is None or stored_s > now_s:
        return ahead
    return min(schedule.next(stored_s - 1), ahead)


def overlap(policy: Literal["skip", "queue"], *, busy: bool, queued: bool) -> Literal["start", "queue", "skip"]:
    """What becomes of a slot whose turn it is. One at most waits behind the run that is under way."""
    if not busy:
        return "start"
    return "queue" if policy == "queue" and not queued else "skip"
