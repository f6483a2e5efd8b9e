"""Starting a thread beside a bot that may take our memory away."""

from __future__ import annotations

import signal
from threading import Lock, Thread

WITHIN_S = 10.0

_lock = Lock()
_starting = 0


def start(thread: Thread) -> None:
    """Starts it. A bot under our uid can set our memory limit to nothing; a thread then dies before it has said that it runs, and
    Python waits for its word for ever. So the system ends this process (SIGALRM) if that takes too long: whoever watches
    over it sees an end and not silence."""
    global _starting
    with _lock:
        _starting += 1
        signal.setitimer(signal.ITIMER_REAL, WITHIN_S)
    thread.start()
    with _lock:
        _starting -= 1
        if not _starting:
            signal.setitimer(signal.ITIMER_REAL, 0)
