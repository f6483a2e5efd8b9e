"""Requests to stop (SIGTERM, SIGINT), as a bot's `sleep` sees them.

Python calls a signal's handler, then goes on sleeping: without help, a bot that notes the request in a flag
finds out only when its sleep is over, long after it was killed. So the interpreter is asked to write the number of each
signal into a pipe (`signal.set_wakeup_fd`), and a sleep waits on that pipe. No handler is installed or wrapped here:
whose handler runs, and whether it ends the bot, stays as it was. Where there is none, the signal ends the process.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time

_REQUESTS = frozenset({int(signal.SIGTERM), int(signal.SIGINT)})
_LONGEST_S = 86_400.0


class StopWatch:
    """Counts requests to stop; `wait` ends early on one. Any thread may wait; one of them reads the pipe for all."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._changed = threading.Condition()
        self._reading = False
        self._requests = 0
        self._seen = threading.local()
        self._former_fd = -1

    def attach(self) -> None:
        """Has signals written to our pipe where nobody else asked for them. Only the main thread can: elsewhere
        nothing happens."""
        try:
            former = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        except ValueError:
            return
        if former not in (-1, self._write_fd):
            _give_back(former)

    def wait(self, seconds: float) -> bool:
        """True as soon as a stop is asked for, False after `seconds`. One request wakes each thread once: the wait
        under way, else the next one, so that a request between two waits is not missed, and a bot that
        goes on after it sleeps as long as it says."""
        deadline = time.monotonic() + seconds
        borrowed = self._borrow()
        try:
            with self._changed:
                while True:
                    if not self._reading:
                        self._drain()  # else the reader does, who would not wake for a byte that was taken from under it
                    if self._requests > getattr(self._seen, "requests", 0):
                        self._seen.requests = self._requests
                        return True
                    left = min(deadline - time.monotonic(), _LONGEST_S)
                    if left <= 0:
                        return False
                    if self._reading:
                        self._changed.wait(left)
                    else:
                        self._read_for_all(left)
        finally:
            if borrowed:
                _give_back(self._former_fd)
                self._former_fd = -1

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _borrow(self) -> bool:
        # asyncio's signal handling, or the bot itself, may own the wakeup descriptor: it is taken for one wait only,
        # and what arrives meanwhile is passed on to it. Between two waits it alone hears of a request.
        try:
            former = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        except ValueError:
            return False  # not the main thread
        if former in (-1, self._write_fd):
            return False
        self._former_fd = former
        return True

    def _read_for_all(self, left_s: float) -> None:
        self._reading = True
        self._changed.release()
        try:
            poll = select.poll()
            poll.register(self._read_fd, select.POLLIN)
            poll.poll(math.ceil(left_s * 1000))
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()

    def _drain(self) -> None:
        while True:
            try:
                numbers = os.read(self._read_fd, 4096)
            except BlockingIOError:
                return
            self._requests += sum(number in _REQUESTS for number in numbers)
            if self._former_fd != -1:
                try:
                    os.write(self._former_fd, numbers)
                except OSError:
                    pass  # its owner closed it or does not read: as when the interpreter itself cannot write


def _give_back(fd: int) -> None:
    try:
        signal.set_wakeup_fd(fd)
    except (ValueError, OSError):
        signal.set_wakeup_fd(-1)  # its owner closed it meanwhile


def _after_fork() -> None:
    # A child that shared the pipe would wake its parent.
    global WATCH
    inherited = WATCH
    WATCH = StopWatch()
    WATCH.attach()
    inherited.close()


WATCH = StopWatch()
WATCH.attach()
os.register_at_fork(after_in_child=_after_fork)
