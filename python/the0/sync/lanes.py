"""Doing store requests beside local work: one lane for uploads, a window of fetches ahead for downloads.

Both bound what is held in memory, and bring the first error back to the caller's thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from typing import Generic, TypeVar

from the0 import threads

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lane:
    """One thread that does one thing at a time, in order; `do` waits until the one before is done.
    Leaving the `with` waits for all and raises the first error; after an error nothing further is begun."""

    def __init__(self, name: str) -> None:
        self._work: Queue[Callable[[], None] | None] = Queue()
        self._free = threading.Semaphore(1)
        self._error: BaseException | None = None
        self._name = name
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lane:
        return self

    def do(self, work: Callable[[], None]) -> None:
        self._free.acquire()
        if self._error is not None:
            self._free.release()
            raise self._error
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            threads.start(self._thread)
        self._work.put(work)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._error is None:
                try:
                    work()
                except BaseException as reason:  # noqa: BLE001 - raised again in the caller's thread
                    self._error = reason
            self._free.release()


def fetch_ahead(
    items: Iterable[Item],
    fetch: Callable[[Item], Result],
    *,
    window: int,
    size: Callable[[Item], int] = lambda _: 0,
    budget_bytes: int = 0,
) -> Iterator[Result]:
    """`fetch(item)` of each item in order, up to `window` under way at once in threads of their own, the one that was handed out
    included; together of at most `budget_bytes` by their `size`, though never less than one."""
    waiting: deque[tuple[_Fetch[Item, Result], int]] = deque()
    source = iter(items)
    upcoming = next(source, None)
    held_bytes = 0
    try:
        while True:
            while upcoming is not None and len(waiting) < window:
                size_bytes = size(upcoming)
                if held_bytes and held_bytes + size_bytes > budget_bytes:
                    break
                waiting.append((_Fetch(fetch, upcoming), size_bytes))
                held_bytes += size_bytes
                upcoming = next(source, None)
            if not waiting:
                return
            fetched, size_bytes = waiting.popleft()
            yield fetched.wait()
            held_bytes -= size_bytes
    finally:
        for started, _ in waiting:
            started.thread.join()


class _Fetch(Generic[Item, Result]):
    def __init__(self, fetch: Callable[[Item], Result], item: Item) -> None:
        self._fetch = fetch
        self._item = item
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        threads.start(self.thread)

    def wait(self) -> Result:
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._result.pop()

    def _run(self) -> None:
        try:
            self._result.append(self._fetch(self._item))
        except BaseException as reason:  # noqa: BLE001 - raised again in the caller's thread
            self._error = reason
