"""Durations as operators write them: plain seconds, or Go's syntax (`30s`, `5m`, `1h30m`, `500ms`)."""

from __future__ import annotations

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_PLAIN = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_LONGEST_S = (2**63 - 1) / 1e9
"""As in Go, and about what a wait takes."""


def parse_s(text: str) -> float:
    """Seconds, not negative and at most 292 years. ValueError names the text and shows the syntax."""
    stripped = text.strip()
    if _PLAIN.fullmatch(stripped):
        return _bounded(float(stripped), text)
    total = 0.0
    position = 0
    while position < len(stripped):
        part = _PART.match(stripped, position)
        if part is None:
            break
        total += float(part[1]) * _UNITS_S[part[2]]
        position = part.end()
    if not stripped or position != len(stripped):
        raise ValueError(f"{text!r} is no duration: write seconds (30) or units (30s, 5m, 1h30m, 500ms)")
    return _bounded(total, text)


def _bounded(value: float, text: str) -> float:
    if value > _LONGEST_S:
        raise ValueError(f"{text!r} is too long for a duration")
    return value
