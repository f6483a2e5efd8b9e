"""Durations as operators write them, held against Go's own examples."""

from __future__ import annotations

import pytest

from the0 import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("1.5", 1.5),
        (".5", 0.5),
        (" 7 ", 7),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1h0m0.5s", 3600.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("5.s", 5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("100μs", 1e-4),
        ("3ns", 3e-9),
        ("1m1m", 120),
        ("0s", 0),
        ("39h9m14.425s", 39 * 3600 + 9 * 60 + 14.425),
        ("2562047h", 2562047 * 3600),
    ],
)
def test_what_is_a_duration(text: str, seconds: float) -> None:
    assert durations.parse_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5 s",
        "1h 30m",
        "5s\0",
        *("s", ".", ".s", "-5", "-5s", "+", "5x", "1h30", "1e3", "1e3s", "nan", "inf", "5S", "1d"),
        *("٣", "٣s", "5;rm", "1,5s", "0x10", "1_000"),
    ],
)
def test_what_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        durations.parse_s(text)
    assert str(refused.value) == f"{text!r} is no duration: write seconds (30) or units (30s, 5m, 1h30m, 500ms)"


@pytest.mark.parametrize("text", ["9" * 400, "9" * 12 + "h", "9223372037s", "2562048h"])
def test_what_is_too_long(text: str) -> None:
    with pytest.raises(ValueError, match="too long for a duration"):
        durations.parse_s(text)
