"""What a bot or a query leaves behind: processes that became ours when their parents ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Set

from the0 import child
from the0.execute.loop import Loop

KILL_S = 5.0


def end_strays(loop: Loop, *, spared: Callable[[], Set[int]], grace_s: float) -> None:
    """Ends every child of ours but the spared ones: SIGTERM, and SIGKILL after the grace period; 0: at once."""
    _send(loop, signal.SIGTERM, spared=spared, within_s=grace_s)
    _send(loop, signal.SIGKILL, spared=spared, within_s=KILL_S)


def _send(loop: Loop, number: int, *, spared: Callable[[], Set[int]], within_s: float) -> None:
    """Signals each of them once. The death of one makes its children ours, so look until there are none."""
    told: set[int] = set()

    def none_left() -> bool:
        strays = set(child.children()) - spared()
        for pid in strays - told:
            child.send(pid, number)
        told.update(strays)
        return not strays

    if within_s > 0:
        loop.run_until(none_left, deadline=time.monotonic() + within_s)
