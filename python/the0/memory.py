"""How the C library keeps memory that was freed: for processes that stay beside a bot for months, little."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
LARGE_BYTES = 128 * 1024


def keep_little() -> None:
    """For this process and those it forks, before there are threads: all threads share one pool, and what is large goes
    back to the system as soon as it is freed. Otherwise each thread keeps a pool of its own, and after a large upload the
    sync process keeps 10 MB that it never needs again. Without glibc there is nothing to set."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)  # set, it stays; else the largest block ever freed raises it
