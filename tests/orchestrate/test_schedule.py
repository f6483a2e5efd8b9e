"""Slots against an oracle written from the definition of cron: it tries every second or minute, one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest

from the0.errors import Permanent
from the0.orchestrate.schedule import parse

# --- The oracle -----------------------------------------------------------------------------------

Days = Callable[[date], bool]
LOW = (0, 0, 0, 1, 1, 0)
HIGH = (59, 59, 23, 31, 12, 6)


@dataclass(frozen=True)
class Part:
    """One field: its text, and the values or days it means."""

    text: str
    values: frozenset[int]
    restricts: bool = True
    days: Days | None = None


@dataclass(frozen=True)
class Oracle:
    """Six parts, seconds first; `text` has them as they would be written."""

    parts: tuple[Part, ...]
    text: str
    zone: ZoneInfo

    def day_fits(self, day: date) -> bool:
        if day.month not in self.parts[4].values:
            return False
        by_date, by_weekday = self.parts[3], self.parts[5]
        in_month = by_date.days(day) if by_date.days else day.day in by_date.values
        in_week = by_weekday.days(day) if by_weekday.days else day.isoweekday() % 7 in by_weekday.values
        if by_date.restricts and by_weekday.restricts:
            return in_month or in_week
        return in_month and in_week

    def fits(self, wall: datetime) -> bool:
        second, minute, hour = (part.values for part in self.parts[:3])
        return wall.hour in hour and wall.minute in minute and wall.second in second and self.day_fits(wall.date())

    @property
    def by_intervals(self) -> bool:
        return any(part.text[0] in "*?" for part in self.parts[:3])

    def first(self, after: int, *, within_days: int) -> int | None:
        """Moment by moment; what cannot fit, far from a change of the clock, is passed over by the minute, hour or day."""
        step = 60 if self.parts[0].values == {0} else 1
        moment = after // step * step + step
        before = self.wall(moment - step)
        while moment < after + within_days * 86400:
            wall = self.wall(moment)
            if wall.utcoffset() == before.utcoffset():
                idle = self.idle_s(wall)
                ahead = next((s for s in (idle, min(idle, 1800), min(idle, 60)) if self.steady(wall, moment + s)), 0)
                if ahead:
                    moment += ahead
                    before = self.wall(moment - step)
                    continue
            elif not self.by_intervals:
                left_out = before.replace(tzinfo=None) + timedelta(seconds=step)
                while left_out < wall.replace(tzinfo=None):
                    if self.fits(left_out):
                        return moment
                    left_out += timedelta(seconds=step)
            if self.fits(wall) and (self.by_intervals or not wall.fold):
                return moment
            before = wall
            moment += step
        return None

    def steady(self, wall: datetime, until: int) -> bool:
        return self.wall(until).utcoffset() == wall.utcoffset()

    def idle_s(self, wall: datetime) -> int:
        """How long nothing fits from here on, by the hands of the clock alone."""
        into_hour = wall.minute * 60 + wall.second
        if not self.day_fits(wall.date()):
            return 86400 - wall.hour * 3600 - into_hour
        if wall.hour not in self.parts[2].values:
            return 3600 - into_hour
        return 60 - wall.second if wall.minute not in self.parts[1].values else 0

    def wall(self, moment: int) -> datetime:
        return datetime.fromtimestamp(moment, self.zone)


NAMES = {
    4: ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    5: ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}


def random_value(of: random.Random, at: int, value: int) -> str:
    """A value as somebody may write it."""
    if at in NAMES and of.random() < 0.3:
        name = NAMES[at][value]
        return of.choice([name, name.upper(), name.title()])
    if at == 5 and value == 0:
        return of.choice(["0", "7"])
    return str(value)


def random_item(of: random.Random, at: int) -> tuple[str, set[int]]:
    low, high = LOW[at], HIGH[at]
    kind = of.random()
    step = of.randint(1, max(2, (high - low) * 2 // 3))
    a, b = sorted((of.randint(low, high), of.randint(low, high)))
    if kind < 0.15:
        return f"{of.choice('*?')}/{step}", set(range(low, high + 1, step))
    if kind < 0.25:
        return f"{random_value(of, at, a)}/{step}", set(range(a, high + 1, step))
    if kind < 0.4 and at != 5:
        return f"{random_value(of, at, a)}-{random_value(of, at, b)}", set(range(a, b + 1))
    if kind < 0.5 and at != 5:
        return f"{a}-{b}/{step}", set(range(a, b + 1, step))
    if kind < 0.6 and b > a:
        around = [*range(b, high + 1), *range(low, a + 1)]
        if at == 5:
            return f"{b}-{a}", set(around)
        return f"{random_value(of, at, b)}-{random_value(of, at, a)}/{step}", set(around[::step])
    if kind < 0.7 and at == 5:
        return f"{a}-{b}", set(range(a, b + 1))
    return random_value(of, at, a), {a}


def random_part(of: random.Random, at: int) -> Part:
    low, high = LOW[at], HIGH[at]
    if of.random() < (0.6 if at >= 3 else 0.2):
        return Part(of.choice("*?" if at >= 3 else "*"), frozenset(range(low, high + 1)), restricts=False)
    if at == 3 and of.random() < 0.1:
        return Part(of.choice("Ll"), frozenset(), days=lambda day: (day + timedelta(days=1)).day == 1)
    if at == 5 and of.random() < 0.15:
        weekday, nth = of.randint(0, 6), of.randint(1, 5)
        if of.random() < 0.3:
            text = of.choice([f"{weekday}L", f"L{weekday}"])
            return Part(text, frozenset(), days=lambda day: _is(day, weekday) and (day + timedelta(days=7)).day <= 7)
        text = f"{random_value(of, at, weekday)}#{nth}"
        return Part(text, frozenset(), days=lambda day: _is(day, weekday) and (day.day - 1) // 7 + 1 == nth)
    items = [random_item(of, at) for _ in range(of.choice([1, 1, 1, 2, 3]))]
    restricts = not any(text in ("*/1", "?/1") for text, _ in items)
    return Part(",".join(text for text, _ in items), frozenset().union(*(values for _, values in items)), restricts)


def _is(day: date, weekday: int) -> bool:
    return day.isoweekday() % 7 == weekday


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu"]
ZONES += ["Africa/Casablanca", "Asia/Beirut", "America/Santiago", "Pacific/Apia", "Pacific/Chatham", "Antarctica/Troll"]


def random_oracle(of: random.Random) -> Oracle:
    seconds = random_part(of, 0) if of.random() < 0.3 else Part("0", frozenset({0}))
    parts = (seconds, *(random_part(of, at) for at in range(1, 6)))
    written = [part.text for part in (parts if seconds.text != "0" or of.random() < 0.3 else parts[1:])]
    zone = of.choice(ZONES)
    text = of.choice([" ", "  ", "\t"]).join(written)
    return Oracle(parts, of.choice(["CRON_TZ", "TZ"]) + f"={zone} {text}", ZoneInfo(zone))


@cache
def changes(zone: ZoneInfo) -> list[int]:
    """Days, each by its beginning in UTC, within which the clock changes; from 2005 to 2035."""
    days = range(1104537600, 2051222400, 86400)
    offsets = [datetime.fromtimestamp(day, zone).utcoffset() for day in days]
    return [day for day, now, then in zip(days, offsets, offsets[1:], strict=False) if now != then]


def random_moment(of: random.Random, zone: ZoneInfo) -> int:
    """Between 2005 and 2035; half of them within hours of a change of the clock."""
    if changes(zone) and of.random() < 0.5:
        return of.choice(changes(zone)) + of.randint(0, 86400)
    return of.randint(1104537600, 2051222400)


@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_random_schedules(part: int) -> None:
    of = random.Random(f"slots {part}")
    compared = 0
    for _ in range(1000):
        oracle = random_oracle(of)
        moment = random_moment(of, oracle.zone)
        try:
            slot = parse(oracle.text).next(moment)
        except Permanent:
            assert oracle.first(moment, within_days=8 * 366) is None, oracle.text
            continue
        days = min((slot - moment) // 86400 + 2, 3 * 366)
        expected = oracle.first(moment, within_days=days)
        if expected is None:
            assert slot > moment + (days - 1) * 86400, oracle.text
            continue
        compared += 1
        assert slot == expected, f"{oracle.text} after {moment}: {slot}, not {expected}"
    assert compared > 900
