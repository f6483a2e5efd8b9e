"""What a bot or a query leaves behind: processes that became ours when their parents ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Set

from the0 import child
from the0.execute.loop import Loop

KILL_S = 5.0
FREEZE_S = 1.0
"""How long a bomb of forks is chased before what was caught is killed."""


def end_strays(loop: Loop, *, spared: Callable[[], Set[int]], grace_s: float) -> None:
    """Ends every child of ours but the spared ones, and what these started: SIGTERM, and SIGKILL after the grace period;
    0: at once."""

    def ask(strays: set[int]) -> set[int]:
        for pid in strays:
            child.send(pid, signal.SIGTERM)
        return strays

    def kill(_: set[int]) -> set[int]:
        return child.kill_descendants(spared(), within_s=FREEZE_S)

    _each(loop, ask, spared=spared, within_s=grace_s)
    _each(loop, kill, spared=spared, within_s=KILL_S)


def _each(loop: Loop, act: Callable[[set[int]], set[int]], *, spared: Callable[[], Set[int]], within_s: float) -> None:
    """Once for each of them; `act` says who had their turn. The death of one makes its children ours, so look until there
    are none."""
    told: set[int] = set()

    def none_left() -> bool:
        strays = set(child.children()) - spared()
        if fresh := strays - told:
            told.update(act(fresh))
        return not strays

    if within_s > 0:
        loop.run_until(none_left, deadline=time.monotonic() + within_s)
