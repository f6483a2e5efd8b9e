"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from the0 import memory

def private_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty:"))

def use():
    bytes(b"x" * (8 << 20))  # once freed, blocks up to its size are no longer given back by themselves
    many = [b"x" * (200 << 10) for _ in range(100)]
    kept.append(b"y" * 2000)  # lies behind them, so that nothing before it can be cut off

kept = []
if sys.argv[1] == "keep_little":
    memory.keep_little()
before = private_kib()
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(private_kib() - before)
"""


def grown_kib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_a_thread_freed_is_not_kept() -> None:
    # Without `keep_little` it is 5 to 20 MB, as the C library happens to lay it out.
    assert grown_kib("keep_little") < 2000
