"""When to look at a state folder, and where: inotify tells which folders changed, a walk of everything now and then makes sure.

Without inotify (none left, too many folders) the whole tree is looked at on a timer, as often as is cheap.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable

from the0 import statehash, threads
from the0.errors import clip

QUIET_S = 0.2
"""A change is looked at once nothing has followed it for so long."""
CEILING_S = 1.0
"""How long it may wait for that."""
STEP_S = 0.1
AGAIN_S = 600.0
"""When inotify is tried again after the system refused it."""


class Bell:
    """An event that `poll` can wait for, too. `close` it."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event
        self._lock = threading.Lock()
        self._fd: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        threads.start(threading.Thread(target=self._ring, name="bell", daemon=True))

    @property
    def rung(self) -> bool:
        return self._event.is_set()

    def fileno(self) -> int:
        assert self._fd is not None, "closed"
        return self._fd

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _ring(self) -> None:
        self._event.wait()
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)


class Watching:
    """The watch on one folder: made, replaced after it lost news, given up where the system has none left."""

    def __init__(self, root_fd: int, *, say: Callable[[str], None], max_folders: int = 100_000) -> None:
        self._root_fd = root_fd
        self._say = say
        self._max_folders = max_folders
        self._said: set[str] = set()
        self._again_s = float("-inf")
        self.watch: statehash.Watch | None = None

    def sees(self, now_s: float) -> bool:
        """Whether the watch knows of everything since the last whole scan. False asks for one, with `watch` as it is then."""
        if self.watch is not None:
            self.watch.gather()
            if self.watch.blind is None:
                return True
            self._blinded(self.watch.blind, now_s)
        if now_s >= self._again_s:
            try:
                self.watch = statehash.Watch(self._root_fd, max_folders=self._max_folders)
            except OSError as reason:
                self._blinded(reason.strerror or str(reason), now_s)
        return False

    def rest(self, bell: Bell, *, until_s: float, not_before_s: float) -> None:
        """Waits (`time.monotonic`) until the bell rings, until `until_s`, or until news that are not settled came to rest, for these not
        before `not_before_s`."""
        if self.watch is None:
            _asleep(bell, until_s=until_s)
            return
        if _asleep(bell, until_s=min(not_before_s, until_s)):
            return
        if not self.watch.dirty:
            poll = select.poll()
            poll.register(bell.fileno(), select.POLLIN)
            poll.register(self.watch.fileno(), select.POLLIN)
            if not poll.poll(_ms(until_s)) or bell.rung:
                return
        known, begun_s = self.watch.gather(), time.monotonic()
        quiet_since_s = now_s = begun_s
        while self.watch.blind is None and now_s < min(quiet_since_s + QUIET_S, begun_s + CEILING_S):
            # In steps, so that a busy bot does not wake us for each of its writes.
            if _asleep(bell, until_s=now_s + STEP_S):
                return
            now_s = time.monotonic()
            if (news := self.watch.gather()) != known:
                known, quiet_since_s = news, now_s

    def _blinded(self, why: str, now_s: float) -> None:
        self.watch = None
        if why == "overflow":
            self._once(
                "More changed in the state folder than the system could tell at once: all of it is looked at instead."
            )
            return
        self._again_s = now_s + AGAIN_S
        if why == "limit":
            why = "it has too many folders, or fs.inotify.max_user_watches is too low"
        self._once(
            f"Changes in the state folder cannot be watched ({clip(why)}): all of it is looked at every second, or less often where "
            "that takes long."
        )

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def _asleep(bell: Bell, *, until_s: float) -> bool:
    """Waits for the time or the bell; whether it rang."""
    if until_s > time.monotonic():
        poll = select.poll()
        poll.register(bell.fileno(), select.POLLIN)
        poll.poll(_ms(until_s))
    return bell.rung


def _ms(until_s: float) -> int:
    # Rounded up: a wait that ends just before its time would be followed by another.
    return max(0, math.ceil((until_s - time.monotonic()) * 1000))
