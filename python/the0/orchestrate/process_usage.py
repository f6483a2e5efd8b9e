"""What bots' processes use of this machine: one look through /proc for all of them, and not more often than it is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from the0.orchestrate import processes
from the0.orchestrate.engine import Usage

LOOK_S: Final = 1.0
"""How old a look may be."""


class Usages:
    """From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._by_root: dict[int, list[processes.Stat]] = {}

    def of(self, pid: int, *, among: Callable[[], Iterable[int]]) -> Usage:
        """Of that process and all its descendants. `among`: all whose usage may be asked for soon."""
        with self._lock:
            if time.monotonic() - self._looked_s > LOOK_S:
                self._by_root = processes.tree(among())
                self._looked_s = time.monotonic()
            stats = self._by_root.get(pid, [])
        return Usage(memory_bytes=sum(each.memory_bytes for each in stats), cpu_s=sum(each.cpu_s for each in stats))
