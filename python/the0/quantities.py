"""Amounts of memory and processor time as Kubernetes spells them: `512Mi`, `1e9`, `500m`, `0.5`."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

_QUANTITY = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,2}))?")
_FACTORS: Final = {
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
}
_LARGEST: Final = 1 << 63


def whole_bytes(value: object) -> int:
    """Of memory, rounded up. ValueError completes "…: "."""
    return math.ceil(_positive(value, "write it like 512Mi, 2Gi or a number of bytes"))


def cores(value: object) -> float:
    """Of processor time, rounded up to thousandths. ValueError completes "…: "."""
    return math.ceil(_positive(value, "write it like 500m, 1 or 0.5") * 1000) / 1000


def _positive(value: object, remedy: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(remedy)
    found = _parse(str(value).strip())
    if found is None or not 0 < found < _LARGEST:
        raise ValueError(remedy)
    return found


def _parse(text: str) -> Fraction | None:
    match = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    if exponent is not None:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * _FACTORS.get(suffix, Fraction(1))
