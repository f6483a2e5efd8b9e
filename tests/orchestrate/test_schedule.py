"""Slots against an oracle written from the definition of cron: it tries every second or minute, one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest

from the0.errors import ExitCode, Permanent
from the0.orchestrate.schedule import parse, slots, start_deadline_s

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


# --- By hand --------------------------------------------------------------------------------------


def shown(expression: str, *, after: str, count: int, timezone: str = "UTC") -> list[str]:
    """The next slots in UTC."""
    after_s = datetime.fromisoformat(after).replace(tzinfo=UTC).timestamp()
    found = islice(slots(parse(expression, timezone=timezone), after_s=after_s), count)
    return [datetime.fromtimestamp(slot, UTC).strftime("%Y-%m-%d %H:%M:%S") for slot in found]


@pytest.mark.parametrize(
    ("macro", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * ?"),
        ("@Hourly", "0 * ? * *"),
        ("@every 1h", "0 * * * *"),
        ("@every 90", "@every 1m30s"),
        ("@every 1.9s", "* * * * * *"),
        ("@every 1ms", "@every 1s"),
        ("TZ=Asia/Tokyo @daily", "0 15 * * *"),
        ("0 9 * * SUN-TUE", "0 9 * * 7-2"),
        ("0 9 * * 5-7", "0 9 * * fri,sat,sun"),
        ("0 9 * * */2", "0 9 * * 0,2,4,6"),
        ("0 9 * * 7/3", "0 9 * * 0,3,6"),
        ("0 9 1 Nov-Feb *", "0 9 1 11,12,1,2 *"),
        ("55-5/5 * * * *", "0,5,55 * * * *"),
        ("*/40 * * * *", "0,40 * * * *"),
        ("10/20 * * * *", "10,30,50 * * * *"),
        ("0 0 9 * * *", "0 9 * * *"),
        ("0 9 30,31,L 4,6 *", "0 9 L 4,6 *"),
    ],
)
def test_two_ways_to_write_the_same(macro: str, expression: str) -> None:
    assert shown(macro, after="2026-11-23T23:59:59", count=20) == shown(
        expression, after="2026-11-23T23:59:59", count=20
    )


def test_day_of_month_and_day_of_week() -> None:
    either = shown("0 0 13 * FRI", after="2026-11-01T00:00:00", count=5)
    assert [day[:10] for day in either] == ["2026-11-06", "2026-11-13", "2026-11-20", "2026-11-27", "2026-12-04"]
    # A step restricts: either again, not both.
    stepped = shown("0 0 */15 * FRI", after="2026-11-01T00:00:00", count=4)
    assert [day[:10] for day in stepped] == ["2026-11-06", "2026-11-13", "2026-11-16", "2026-11-20"]
    for star in ("*", "?", "*/1"):
        assert shown(f"0 0 13 * {star}", after="2026-11-01T00:00:00", count=1) == ["2026-11-13 00:00:00"]
    # One that can never be leaves the other.
    assert shown("0 0 31 2 MON", after="2027-01-01T00:00:00", count=1) == ["2027-02-01 00:00:00"]
    assert shown("0 0 L 2 *", after="2028-01-01T00:00:00", count=2) == ["2028-02-29 00:00:00", "2029-02-28 00:00:00"]
    assert shown("0 0 * * 1#5", after="2026-11-23T00:00:00", count=2) == ["2026-11-30 00:00:00", "2027-03-29 00:00:00"]


def test_rare_days_are_found() -> None:
    assert shown("0 0 29 2 ?", after="2096-03-01T00:00:00", count=1) == ["2104-02-29 00:00:00"]


def test_an_hour_is_left_out() -> None:
    """2026-03-29 in Berlin: 02:00 is followed by 03:00, which is 01:00 UTC."""
    after = "2026-03-28T12:00:00"
    assert shown("30 2 * * *", after=after, count=2, timezone="Europe/Berlin") == [
        "2026-03-29 01:00:00",
        "2026-03-30 00:30:00",
    ]
    # Twice within the hour, and right after it: still once.
    assert shown("0,30 2,3 * * *", after=after, count=3, timezone="Europe/Berlin") == [
        "2026-03-29 01:00:00",
        "2026-03-29 01:30:00",
        "2026-03-30 00:00:00",
    ]
    assert shown("*/30 2 * * *", after=after, count=1, timezone="Europe/Berlin") == ["2026-03-30 00:00:00"]
    assert shown("0 * * * *", after="2026-03-29T00:30:00", count=2, timezone="Europe/Berlin") == [
        "2026-03-29 01:00:00",
        "2026-03-29 02:00:00",
    ]


def test_an_hour_comes_twice() -> None:
    """2026-10-25 in Berlin: 02:00 to 03:00 from 00:00 UTC on, and again from 01:00 UTC on."""
    after = "2026-10-24T12:00:00"
    assert shown("30 2 * * *", after=after, count=2, timezone="Europe/Berlin") == [
        "2026-10-25 00:30:00",
        "2026-10-26 01:30:00",
    ]
    assert shown("*/30 2 * * *", after=after, count=5, timezone="Europe/Berlin") == [
        "2026-10-25 00:00:00",
        "2026-10-25 00:30:00",
        "2026-10-25 01:00:00",
        "2026-10-25 01:30:00",
        "2026-10-26 01:00:00",
    ]


def test_a_day_is_left_out() -> None:
    """Samoa had no 30 December 2011."""
    assert shown("0 12 * * *", after="2011-12-29T20:00:00", count=3, timezone="Pacific/Apia") == [
        "2011-12-29 22:00:00",
        "2011-12-30 10:00:00",  # the first moment of the 31st, for the 30th
        "2011-12-30 22:00:00",
    ]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "it has 0 fields"),
        ("* * * *", "it has 4 fields"),
        ("* * * * * * *", "it has 7 fields"),
        ("60 * * * *", "the minute 60 is not within 0 and 59"),
        ("* 24 * * *", "the hour 24 is not within 0 and 23"),
        ("* * 0 * *", "the day of month 0 is not within 1 and 31"),
        ("* * * 13 *", "the month 13 is not within 1 and 12"),
        ("* * * * 8", "the day of week 8 is not within 0 and 7"),
        ("* * * * monday", "the day of week 'monday' is unknown"),
        ("*/0 * * * *", "has a step of 0"),
        ("*-5 * * * *", "is no range"),
        ("1- * * * *", "is no number, range or step"),
        ("1,,2 * * * *", "is no number, range or step"),
        ("-1 * * * *", "is no number, range or step"),
        ("1.5 * * * *", "is no number, range or step"),
        ("١ * * * *", "is no number, range or step"),
        ("* * LW * *", "'LW' is unknown"),
        ("* * * * 1,2#3", "mixes days of every week with days of a month"),
        ("* * * * 1#6", "is no number, range or step"),
        ("0 0 30 2 *", "no date ever fits it"),
        ("0 0 31 4,6,9,11 ?", "no date ever fits it"),
        ("@reboot", "@reboot is none of"),
        ("@every", "after @every"),
        ("@every 0s", "repeats after no time at all"),
        ("@every -1h", "after @every"),
        ("@every soon", "is no duration"),
        ("TZ=Mars/Olympus * * * * *", "'Mars/Olympus', which is unknown"),
        ("TZ=../../etc/passwd * * * * *", "which is unknown"),
        ("TZ=Europe * * * * *", "which is unknown"),
        ("TZ=UTC", "it has 1 fields"),
        ("\x00 * * * *", "is no number, range or step"),
    ],
)
def test_what_is_no_schedule(expression: str, why: str) -> None:
    with pytest.raises(Permanent) as refused:
        parse(expression)
    assert refused.value.code == ExitCode.USAGE
    assert why in refused.value.sentence
    assert refused.value.sentence.startswith("The schedule ")
    assert refused.value.sentence.count("\n") == 0
    assert len(refused.value.sentence) < 500


def test_a_zone_of_the_bot() -> None:
    with pytest.raises(Permanent, match="names the time zone 'Berlin'"):
        parse("@daily", timezone="Berlin")
    # The one in the expression wins, and an unknown one elsewhere does not matter.
    assert shown("TZ=UTC @daily", after="2026-01-01T00:00:00", count=1, timezone="Berlin") == ["2026-01-02 00:00:00"]


def test_intervals_do_not_drift() -> None:
    every = parse("@every 7m")
    assert [slot % 420 for slot in islice(slots(every, after_s=1_790_000_123.4), 50)] == [0] * 50
    assert every.next(840) == 1260
    assert every.next(839.999) == 840


def test_the_start_deadline() -> None:
    hourly, minutely = parse("@hourly"), parse("* * * * *")
    assert start_deadline_s(hourly, 7200, wanted_s=None) == 300
    assert start_deadline_s(minutely, 7200, wanted_s=None) == 30
    assert start_deadline_s(parse("* * * * * *"), 7200, wanted_s=None) == 0.5
    assert start_deadline_s(minutely, 7200, wanted_s=1000) == 1000


def test_no_zone_changes_its_clock_twice_within_a_day() -> None:
    """What the search for a change builds upon; the years that slots can lie in."""
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        found = changes(zone)
        assert all(after - before > 86400 for before, after in pairwise(found)), name
