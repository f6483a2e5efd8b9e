"""A program of its own: holds a SQLite database for reading while its parent copies the files. Nothing else of ours is imported here.

Whoever closes any descriptor of a file loses all locks that his process has on it, so the copies are made by another process than
the one that holds. The parent starts it in the database's folder, and writes one line: how long it may hold (seconds), and the
file's name, each byte as %XX. It answers "h" once it holds, and "k" when the parent's next byte, or end, came in time; it ends
without that when the time is over, at any error, and with its parent. It writes no file and runs no statement of the database's own.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sqlite3

WAIT_S = 0.3
"""How long it waits for a writer to finish."""
_GRACE_S = 1.0
_MEMORY_BYTES = 512 << 20
_LINE_BYTES = 4096


def main() -> None:
    told = os.read(0, _LINE_BYTES).split()
    most_s, name = float(told[0]), told[1].decode("ascii")
    signal.setitimer(signal.ITIMER_REAL, most_s + WAIT_S + _GRACE_S)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # Without `readonly_shm` the file of the shared memory would be made where it is missing.
    base = sqlite3.connect(f"file:{name}?mode=ro&readonly_shm=1", uri=True, timeout=WAIT_S, isolation_level=None)
    base.execute("PRAGMA trusted_schema = OFF")
    base.execute("BEGIN")
    base.execute("PRAGMA schema_version").fetchone()
    os.write(1, b"h")
    if select.select([0], [], [], most_s)[0]:
        os.write(1, b"k")


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # without closing the database: that might tidy up its files
