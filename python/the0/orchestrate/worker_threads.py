"""Up to so many threads that do the same to whatever they are handed, made when they are needed and gone when they are not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_Work = TypeVar("_Work")


class WorkerThreads(Generic[_Work]):
    def __init__(self, name: str, most: int, *, waiting: int, idle_s: float, work: Callable[[_Work], None]) -> None:
        """`waiting`: how many may wait while all threads are at work. A thread with nothing to do ends after `idle_s`."""
        self._name = name
        self._most = most
        self._may_wait = waiting
        self._idle_s = idle_s
        self._work = work
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        self._queued = 0
        self._closed = False

    def take(self, given: _Work) -> bool:
        """False: as many wait already as may."""
        with self._lock:
            unborn = self._most - len(self._threads)
            if self._closed or self._queued >= self._free + unborn + self._may_wait:
                return False
            self._queued += 1
            if self._queued > self._free and len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.add(thread)
                self._free += 1
                thread.start()
        self._waiting.put(given)
        return True

    def close(self, deadline: float) -> None:
        """Monotonic. Threads that are not done by then end with the process."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                given = self._waiting.get(timeout=self._idle_s)
            except queue.Empty:
                with self._lock:
                    if self._queued:
                        continue  # one is just being handed over
                    self._leave()
                    return
            if given is None:
                with self._lock:
                    self._leave()
                return
            with self._lock:
                self._queued -= 1
                self._free -= 1
            try:
                self._work(given)
            finally:
                with self._lock:
                    self._free += 1

    def _leave(self) -> None:
        self._free -= 1
        self._threads.discard(threading.current_thread())
