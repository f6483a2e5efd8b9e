"""The supervisor's one loop: signals, children's ends, pipes and deadlines; nothing wakes it otherwise."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from the0 import child

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Done = Callable[[], bool]
Action = Callable[[], None]


class Loop:
    """Lives in the main thread of a single-threaded process; makes itself the owner of its signals."""

    def __init__(self) -> None:
        self.stop_asked = False
        """Whether a stop was asked for by a signal; more of them change nothing."""
        self._poll = select.poll()
        self._readers: dict[int, Action] = {}
        self._writers: dict[int, Action] = {}
        self._timers: list[tuple[float, Action]] = []
        self._ends: dict[int, Callable[[child.End], None]] = {}
        self._stops: dict[int, Action] = {}
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note_stop)
        signal.signal(signal.SIGCHLD, _wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.watch(self._wakeup_read, self._drain_wakeups)

    def watch(self, fd: int, readable: Action | None, *, writable: Action | None = None) -> None:
        """Calls `readable` when fd can be read or was closed by the other side, `writable` when it can be written;
        neither: no longer."""
        _set(self._readers, fd, readable)
        _set(self._writers, fd, writable)
        events = (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0)
        if events:
            self._poll.register(fd, events)
            return
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # was not watched: the same outcome

    def on_end(self, pid: int, ended: Callable[[child.End], None]) -> None:
        """Calls `ended` once the child has been reaped. To be said before the loop runs again after the fork."""
        self._ends[pid] = ended

    def on_stop(self, pid: int, stopped: Action) -> None:
        """Calls `stopped` each time that somebody stopped this child, which then goes on. Until it has ended."""
        self._stops[pid] = stopped

    def after(self, seconds: float, action: Action) -> None:
        self._timers.append((time.monotonic() + seconds, action))

    def run_until(self, done: Done, *, deadline: float = float("inf")) -> bool:
        """Handles what happens until `done()`; False if `deadline` (monotonic) came first."""
        self._reap()
        while not done():
            now = time.monotonic()
            if now >= deadline:
                return False
            if self._fire_timers(now):
                continue
            self._wait(min([deadline, *(when for when, _ in self._timers)]) - now)
        return True

    def _wait(self, seconds: float) -> None:
        # Rounded up to whole milliseconds: waking a little early would only spin.
        for fd, _ in self._poll.poll(None if seconds == float("inf") else int(seconds * 1000) + 1):
            for action in (self._readers.get(fd), self._writers.get(fd)):
                if action is not None:
                    action()

    def _fire_timers(self, now: float) -> bool:
        due = [timer for timer in self._timers if timer[0] <= now]
        for timer in due:
            self._timers.remove(timer)
            timer[1]()
        return bool(due)

    def _drain_wakeups(self) -> None:
        try:
            while os.read(self._wakeup_read, 512):
                pass
        except BlockingIOError:
            pass  # drained
        self._reap()

    def _reap(self) -> None:
        for pid, stopped in list(self._stops.items()):
            if child.continue_stopped(pid):
                stopped()
        reaped, more = child.reap()
        if more:
            _wake_by(self._wakeup_write)
        for pid, end in reaped:
            self._stops.pop(pid, None)
            ended = self._ends.pop(pid, None)
            if ended is not None:  # else an orphan that became ours, or a stray
                ended(end)

    def _note_stop(self, _number: int, _frame: object) -> None:
        self.stop_asked = True


def _wake(_number: int, _frame: object) -> None:
    """The interpreter writes to the wakeup descriptor only for signals that have a handler."""


def _wake_by(fd: int) -> None:
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        pass  # full: it wakes already


def _set(actions: dict[int, Action], fd: int, action: Action | None) -> None:
    if action is None:
        actions.pop(fd, None)
    else:
        actions[fd] = action
