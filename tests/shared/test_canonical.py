"""Canonical JSON: one text for one value, whole numbers without fraction or exponent."""

from __future__ import annotations

import json
import math
import random
import string
from typing import Any

import pytest

from the0 import canonical


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"),
        (-0.0, "0"),
        (1e6, "1000000"),
        (-1e15, "-1000000000000000"),
        (2.0**53, "9007199254740992"),
        (1e22, "10000000000000000000000"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (5, "5"),
        (2**200, str(2**200)),
        (True, "true"),
        ({"b": 1, "a": [None, 2.0, {"z": (), "y": "é"}]}, '{"a":[null,2,{"y":"\\u00e9","z":[]}],"b":1}'),
        ("\ud800 \x7f \u2028", '"\\ud800 \\u007f \\u2028"'),
        ("😀", '"\\ud83d\\ude00"'),
        ({}, "{}"),
        ([], "[]"),
        (None, "null"),
    ],
)
def test_how_values_are_written(value: Any, text: str) -> None:
    assert canonical.dumps(value) == text


def test_the_largest_double_is_written_out() -> None:
    text = canonical.dumps(1.7976931348623157e308)
    assert text.isdigit()
    assert len(text) == 309
    assert float(text) == 1.7976931348623157e308


def circle() -> list[Any]:
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    return round_and_round


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        [-math.inf],
        {"a": math.nan},
        {1: 2},
        {None: 1},
        {"a", "b"},
        b"x",
        object(),
        circle(),
        10**5000,
        deep(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical.dumps(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("null", "it is a JSON null, not an object"),
        ("[]", "it is a JSON array, not an object"),
        ("5", "it is a JSON number, not an object"),
        ("true", "it is a JSON boolean, not an object"),
        ('"x"', "it is a JSON string, not an object"),
        ("{", "Expecting property name"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": 1} x', "Extra data"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e400}', "the number 1e400 is too large"),
        ('{"a": -1e400}', "the number -1e400 is too large"),
        ('{"a": 1, "b": 2, "a": 1}', "it names 'a' twice"),
        ('{"a": {"b": 1, "\\u0062": 2}}', "it names 'b' twice"),
        ('{"a": ' + "9" * 5000 + "}", "integer string conversion"),
        ('{"a": ' + "[" * 100_000, "it is nested too deeply"),
        ('\ufeff{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', "can't decode"),
        (b"\x00", ""),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_texts_that_are_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        canonical.loads_object(text)
    assert said in str(refused.value)


def some_value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.randrange(9 if depth < 4 else 7)
    if kind == 0:
        return dice.choice([None, True, False])
    if kind == 1:
        return dice.randrange(-(10**20), 10**20)
    if kind == 2:
        return float(dice.randrange(-(10**18), 10**18))
    if kind == 3:
        return dice.uniform(-1, 1) * 10.0 ** dice.randrange(-300, 300)
    if kind < 7:
        return some_text(dice)
    if kind == 7:
        return [some_value(dice, depth + 1) for _ in range(dice.randrange(5))]
    return {some_text(dice): some_value(dice, depth + 1) for _ in range(dice.randrange(5))}


def some_text(dice: random.Random) -> str:
    letters = [*string.printable, "é", "ß", "\0", "\u2028", "\ud800", "😀", '"', "\\"]
    return "".join(dice.choices(letters, k=dice.randrange(8)))


def shuffled(dice: random.Random, value: Any) -> Any:
    """The same value with every object's members in another order and whole numbers of the other kind."""
    if isinstance(value, dict):
        items = list(value.items())
        dice.shuffle(items)
        return {name: shuffled(dice, item) for name, item in items}
    if isinstance(value, list):
        return [shuffled(dice, item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@pytest.mark.parametrize("seed", range(20))
def test_random_values(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(100):
        value = {"value": some_value(dice)}
        text = canonical.dumps(value)
        assert text.isascii()
        assert "\n" not in text
        again = canonical.loads_object(text)
        assert again == value, "the meaning is kept"
        assert canonical.dumps(again) == text, "writing what was read changes nothing"
        assert canonical.dumps(shuffled(dice, value)) == text, "one value has one text"
        # Whole numbers have neither fraction nor exponent: every other JSON reader sees an integer.
        numbers: list[str] = []
        json.loads(text, parse_float=numbers.append)
        assert all(not float(number).is_integer() for number in numbers)
