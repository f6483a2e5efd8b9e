"""Time as our records spell it."""

from __future__ import annotations

import time


def rfc3339(at_s: float | None = None) -> str:
    """UTC with milliseconds; now by default."""
    at_s = time.time() if at_s is None else at_s
    whole = int(at_s)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((at_s - whole) * 1000):03d}Z"
