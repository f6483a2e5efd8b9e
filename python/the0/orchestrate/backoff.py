"""How long a bot that keeps ending waits for its next start. Pure."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
LONGEST_S: Final = 300.0
HEALTHY_S: Final = 600.0
"""Who has run for so long starts from the beginning."""
_STEPS: Final = 12
"""Beyond these doublings it is the longest anyway."""


def wait_s(failures: int) -> float:
    """After an end with so many before it: 1, 2, 4 … 300 s."""
    return min(FIRST_S * 2.0 ** min(failures, _STEPS), LONGEST_S)


def failures_before(failures: int, *, lived_s: float) -> int:
    """What counts of the ends before an instance that lived so long."""
    return 0 if lived_s >= HEALTHY_S else failures
