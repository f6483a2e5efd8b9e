"""When a scheduled bot is due: an expression of CONTRACT 5 in a time zone, and the slots it names.

Slots are whole Unix seconds. Each follows from the expression and the slot before it, never from the clock. The package
croniter walks a calendar without time zones; what the fields mean, and how wall clock and time meet, is decided here:

- Both day fields restricted: either suffices. One of them `*` or `?`: the other one decides. `*/n` is a restriction.
- The clock jumps over an hour: a fixed time within it fires once, at the first moment after the jump. An hour comes
  twice: a fixed time fires in the first. Where seconds, minutes or hours begin with `*`, the schedule goes by intervals
  instead: nothing fires in the hour that is left out, and the hour that comes twice is used twice.
- `@every D` fires at whole multiples of D since 1970-01-01T00:00:00Z, whoever computes it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from the0 import durations
from the0.errors import ExitCode, Permanent, clip

LONGEST_START_DEADLINE_S = 300.0
_MONTHS = {
    name: at
    for at, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DAYS = {name: at for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ZONE = re.compile(r"(?:CRON_TZ|TZ)=(\S*)\s+(.*)", re.DOTALL)
_ITEM = re.compile(r"(?P<low>[*?]|\w+)(?:-(?P<high>\w+))?(?:/(?P<step>[0-9]{1,9}))?", re.ASCII)
_NTH_DAY = re.compile(
    r"(?P<day>\w+)#(?P<nth>[1-5])|L(?P<last>\w+)|(?P<final>[0-7]|[A-Z]{3})L", re.ASCII | re.IGNORECASE
)
_FIRST = datetime(2000, 1, 1)
"""Where a look for any slot at all begins; the calendar repeats."""


class Schedule(Protocol):
    @property
    def expression(self) -> str:
        """As it was written."""
        ...

    def next(self, after_s: float) -> int:
        """The first slot after this moment, both in Unix seconds."""
        ...


def parse(expression: str, *, timezone: str = "UTC") -> Schedule:
    """Permanent (USAGE), in one sentence, for what does not parse or never fires. A zone in the expression wins."""
    found = _parsed(expression, timezone)
    if isinstance(found, str):
        raise Permanent(found, code=ExitCode.USAGE)
    return found


def slots(schedule: Schedule, *, after_s: float) -> Iterator[int]:
    """All slots after this moment, without end."""
    slot = after_s
    while True:
        slot = schedule.next(slot)
        yield slot


def start_deadline_s(schedule: Schedule, slot: int, *, wanted_s: float | None) -> float:
    """How late the slot may still start: as wanted, else 300 s, at most half of what lies between it and the next one."""
    if wanted_s is not None:
        return wanted_s
    return min(LONGEST_START_DEADLINE_S, (schedule.next(slot) - slot) / 2)


@lru_cache(maxsize=4096)
def _parsed(expression: str, timezone: str) -> Schedule | str:
    """A schedule, or what is wrong; bots often share one expression."""
    shown = f"The schedule {clip(expression)!r}"
    prefix = _ZONE.fullmatch(expression.strip())
    zone_name, text = (prefix[1] or "UTC", prefix[2].strip()) if prefix else (timezone, expression.strip())
    try:
        zone = ZoneInfo(zone_name)
    except (ValueError, OSError, KeyError):  # KeyError: there is no such zone
        return f"{shown} names the time zone {clip(zone_name)!r}, which is unknown: write one such as Europe/Berlin."
    try:
        if text[:6].lower() == "@every":
            return Every(expression=expression, period_s=_period_s(text[6:]))
        if text.startswith("@"):
            text = _macro(text)
        return _calendar(expression, text, zone)
    except ValueError as reason:
        return f"{shown} cannot be used: {reason}."


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval, whatever the clock on the wall says."""

    expression: str
    period_s: int

    def next(self, after_s: float) -> int:
        return (int(after_s // self.period_s) + 1) * self.period_s


Walk = Callable[[datetime], datetime]
"""The next date and time, on a clock without time zone, that the fields name."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """Fields on the wall clock of a zone."""

    expression: str
    zone: ZoneInfo
    walk: Walk
    intervals: bool
    """Goes by intervals rather than by fixed times, see above."""

    def next(self, after_s: float) -> int:
        after = int(after_s // 1)
        return self._next_interval(after) if self.intervals else self._next_fixed(after)

    def _next_fixed(self, after: int) -> int:
        wall = self._wall(after)
        while True:
            wall = self.walk(wall)
            slot = _seconds(wall) - self._offset_of(wall, fold=0)
            if self._wall(slot) != wall:  # left out
                slot = self._change(_seconds(wall) - self._offset_of(wall, fold=1), slot)
            if slot > after:  # else an hour that comes for the second time
                return slot

    def _next_interval(self, after: int) -> int:
        while True:
            offset = self._offset(after)
            slot = _seconds(self.walk(_moment(after + offset))) - offset
            change = self._first_change(after, slot)
            if change is None:
                return slot
            after = change - 1
            # What the clock shows from the change on, its very first second included.
            offset = self._offset(change)
            slot = _seconds(self.walk(_moment(after + offset))) - offset
            if self._first_change(change, slot) is None:
                return slot
            after = change

    def _first_change(self, after: int, until: int) -> int | None:
        """The first moment in (after, until] with another offset than the moment before it."""
        if self.zone.key == "UTC":
            return None
        known = self._offset(after)
        look = after
        while look < until:
            # No zone goes forth and back within half a day.
            look = min(look + 43200, until)
            if self._offset(look) != known:
                return self._change(look - 43200, look)
        return None

    def _change(self, before: int, after: int) -> int:
        """The first moment of the offset that `after` has; between the two it changes once."""
        wanted = self._offset(after)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == wanted:
                after = middle
            else:
                before = middle
        return after

    def _offset(self, moment: int) -> int:
        shown = datetime.fromtimestamp(moment, self.zone).utcoffset()
        return 0 if shown is None else int(shown.total_seconds())

    def _offset_of(self, wall: datetime, *, fold: int) -> int:
        """Where the clock changes at this time of day: what was valid before (fold 0), and from then on (fold 1)."""
        shown = wall.replace(tzinfo=self.zone, fold=fold).utcoffset()
        return 0 if shown is None else int(shown.total_seconds())

    def _wall(self, moment: int) -> datetime:
        return _moment(moment + self._offset(moment))


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _seconds(moment: datetime) -> int:
    return int((moment - datetime(1970, 1, 1)) // timedelta(seconds=1))


# --- Expressions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    low: int
    high: int
    names: dict[str, int]


_ROWS = (
    _Row("second", 0, 59, {}),
    _Row("minute", 0, 59, {}),
    _Row("hour", 0, 23, {}),
    _Row("day of month", 1, 31, {}),
    _Row("month", 1, 12, _MONTHS),
    _Row("day of week", 0, 7, _DAYS),
)


@dataclass(frozen=True, slots=True)
class _Field:
    text: str
    """As croniter is told."""
    any: bool
    """Restricts nothing, and says so (`*`, `?`)."""
    starred: bool
    """Begins with `*` or `?`."""


def _period_s(text: str) -> int:
    try:
        period_s = durations.parse_s(text)
    except ValueError as reason:
        raise ValueError(f"after @every, {reason}") from reason
    if period_s <= 0:
        raise ValueError("it repeats after no time at all, write at least 1s")
    return max(1, int(period_s))


def _macro(text: str) -> str:
    if text.lower() not in _MACROS:
        raise ValueError(f"{clip(text)} is none of {', '.join(_MACROS)} and @every")
    return _MACROS[text.lower()]


def _calendar(expression: str, text: str, zone: ZoneInfo) -> Calendar:
    parts = text.split()
    if len(parts) not in (5, 6):
        raise ValueError(f"it has {len(parts)} fields, write 5 (minute first) or 6 (second first)")
    fields = [_field(part, row) for part, row in zip(["0", *parts][-6:], _ROWS, strict=True)]
    second, minute, hour, day, month, weekday = fields
    together = day.any or weekday.any
    walks = [
        _walk(f"{minute.text} {hour.text} {days} {month.text} {weekdays} {second.text}")
        for days, weekdays in ([(day.text, weekday.text)] if together else [(day.text, "*"), ("*", weekday.text)])
    ]
    return Calendar(
        expression=expression,
        zone=zone,
        walk=_earliest([walk for walk in walks if walk is not None]),
        intervals=second.starred or minute.starred or hour.starred,
    )


def _field(text: str, row: _Row) -> _Field:
    """`text` as a list of numbers, whatever names, ranges and steps it was written with."""
    values: set[int] = set()
    special: list[str] = []
    everything = False
    for item in text.split(","):
        if row.name == "day of month" and item.upper() == "L":
            special.append("L")
        elif row.name == "day of week" and (nth := _NTH_DAY.fullmatch(item)):
            day = _number(nth["day"] or nth["last"] or nth["final"], row) % 7
            special.append(f"{day}#{nth['nth']}" if nth["nth"] else f"L{day}")
        else:
            everything = everything or item in ("*", "?", "*/1", "?/1")
            values |= _values(item, row)
    if row.name == "day of week":
        if special and values:
            raise ValueError(f"the {row.name} {clip(text)!r} mixes days of every week with days of a month")
        values = {value % 7 for value in values}
    listed = ",".join([*map(str, sorted(values)), *special])
    return _Field("*" if everything else listed, everything, text[:1] in ("*", "?"))


def _values(item: str, row: _Row) -> set[int]:
    found = _ITEM.fullmatch(item)
    if found is None:
        raise ValueError(f"the {row.name} {clip(item)!r} is no number, range or step")
    step = int(found["step"] or 1)
    if step == 0:
        raise ValueError(f"the {row.name} {clip(item)!r} has a step of 0")
    highest = 6 if row.name == "day of week" else row.high  # 7 is another name of 0
    if found["low"] in ("*", "?"):
        if found["high"]:
            raise ValueError(f"the {row.name} {clip(item)!r} is no range")
        return set(range(row.low, highest + 1, step))
    low = _number(found["low"], row)
    if found["high"]:
        high = _number(found["high"], row)
    else:
        low = low if low <= highest else row.low
        high = highest if found["step"] else low
    if low <= high:
        return set(range(low, high + 1, step))
    return set([*range(low, highest + 1), *range(row.low, high + 1)][::step])


def _number(text: str, row: _Row) -> int:
    value = row.names.get(text.lower())
    if value is None:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"the {row.name} {clip(text)!r} is unknown")
        value = int(text)
    if not row.low <= value <= row.high:
        raise ValueError(f"the {row.name} {value} is not within {row.low} and {row.high}")
    return value


def _walk(fields: str) -> Walk | None:
    """None where no date ever fits, such as a 30 February."""
    from croniter import CroniterBadDateError, CroniterError, croniter  # type: ignore[import-untyped]

    try:
        prepared = croniter(fields, _FIRST, ret_type=datetime, day_or=False)
    except CroniterError as reason:
        raise ValueError(clip(str(reason))) from reason

    def walk(after: datetime) -> datetime:
        found: datetime = copy.copy(prepared).get_next(datetime, start_time=after)
        return found

    try:
        walk(_FIRST)
    except CroniterBadDateError:
        return None
    return walk


def _earliest(walks: list[Walk]) -> Walk:
    if not walks:
        raise ValueError("no date ever fits it, correct day and month")
    if len(walks) == 1:
        return walks[0]
    return lambda after: min(walk(after) for walk in walks)
