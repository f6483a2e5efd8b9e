"""Repeats what may pass by itself: the same protocol, wrapped round a store whose requests are single attempts."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import TypeVar

from the0.objects.store import Bytes, Object, ObjectInfo, ObjectStore, Unavailable

T = TypeVar("T")


class Retrying:
    """An `ObjectStore` that repeats a call while it raises `Unavailable`, until `deadline_s` after its start: no pause
    begins that would end later, and the last error is raised as it came. Pauses are random between 0 and a bound that
    doubles from `first_pause_s` to `longest_pause_s`. A set `stop` ends a pause at once and forbids another, never the
    first attempt: a final sync runs while stopping.

    A repeated `put_if` or `append` may meet its own former attempt and raise PreconditionFailed: see the protocol.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        deadline_s: float,
        stop: threading.Event | None = None,
        first_pause_s: float = 0.1,
        longest_pause_s: float = 5.0,
    ) -> None:
        self._store = store
        self._deadline_s = deadline_s
        self._stop = stop or threading.Event()
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s

    @property
    def name(self) -> str:
        return self._store.name

    def within(self, *, deadline_s: float, stop: threading.Event | None = None) -> Retrying:
        """The same store with another deadline, and another stop where one is given."""
        return Retrying(
            self._store,
            deadline_s=deadline_s,
            stop=stop or self._stop,
            first_pause_s=self._first_pause_s,
            longest_pause_s=self._longest_pause_s,
        )

    def get(self, bucket: str, key: str, *, limit_bytes: int, if_none_match: str | None = None) -> Object:
        return self._repeat(lambda: self._store.get(bucket, key, limit_bytes=limit_bytes, if_none_match=if_none_match))

    def get_to_file(self, bucket: str, key: str, fd: int, *, limit_bytes: int) -> ObjectInfo:
        start = os.lseek(fd, 0, os.SEEK_CUR)

        def attempt() -> ObjectInfo:
            if os.lseek(fd, 0, os.SEEK_CUR) != start:
                os.ftruncate(fd, start)
                os.lseek(fd, start, os.SEEK_SET)
            return self._store.get_to_file(bucket, key, fd, limit_bytes=limit_bytes)

        return self._repeat(attempt)

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        return self._repeat(lambda: self._store.head(bucket, key))

    def put(self, bucket: str, key: str, data: Bytes, *, metadata: Mapping[str, str] | None = None) -> str:
        return self._repeat(lambda: self._store.put(bucket, key, data, metadata=metadata))

    def put_file(self, bucket: str, key: str, fd: int, *, metadata: Mapping[str, str] | None = None) -> str:
        return self._repeat(lambda: self._store.put_file(bucket, key, fd, metadata=metadata))

    def put_if(
        self,
        bucket: str,
        key: str,
        data: Bytes,
        *,
        etag: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        return self._repeat(lambda: self._store.put_if(bucket, key, data, etag=etag, metadata=metadata))

    def list(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Goes on after the last key given, with a new deadline: what was given shows that the store answers."""
        while True:
            rest = self._repeat(partial(self._begin_list, bucket, prefix, after))
            try:
                for info in rest:
                    after = info.key
                    yield info
                return
            except Unavailable:
                continue

    def list_folders(self, bucket: str, prefix: str) -> builtins.list[str]:
        return self._repeat(lambda: self._store.list_folders(bucket, prefix))

    def delete(self, bucket: str, key: str) -> None:
        self._repeat(lambda: self._store.delete(bucket, key))

    def append(self, bucket: str, key: str, data: Bytes, *, etag: str | None, metadata: Mapping[str, str]) -> str:
        if etag is None:
            # Bound to the version that is there now: a repeat must not add the same bytes again.
            info = self.head(bucket, key)
            etag = info.etag if info else None
        return self._repeat(lambda: self._store.append(bucket, key, data, etag=etag, metadata=metadata))

    def check_conditional_put(self, bucket: str, key: str) -> None:
        self._repeat(lambda: self._store.check_conditional_put(bucket, key))

    def ensure_bucket(self, bucket: str) -> None:
        self._repeat(lambda: self._store.ensure_bucket(bucket))

    def close(self) -> None:
        self._store.close()

    def _begin_list(self, bucket: str, prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        """A listing whose first request is made: generators ask only when they are read."""
        listing = self._store.list(bucket, prefix, after=after)
        first = next(listing, None)
        return iter(()) if first is None else chain((first,), listing)

    def _repeat(self, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._deadline_s
        bound_s = self._first_pause_s
        while True:
            try:
                return attempt()
            except Unavailable:
                import random  # only where something failed

                pause_s = random.uniform(0, bound_s)
                if time.monotonic() + pause_s >= deadline or self._stop.wait(pause_s):
                    raise
            bound_s = min(2 * bound_s, self._longest_pause_s)
