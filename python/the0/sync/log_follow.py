"""Follows a bot's lines in the store as they come: `runtime logs -f`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from the0 import names
from the0.errors import Transient
from the0.objects.store import ObjectStore
from the0.sync import log_reader

EVERY_S: Final = 0.5

Look = tuple[tuple[str, str], ...]
"""Keys and ETags of a day's objects: the same, nothing new."""


class Follower:
    """For one thread. Lines of a day only ever follow those that were there, whether in pieces or in the day's object; so how
    many were given out is all there is to remember."""

    def __init__(
        self, store: ObjectStore, bucket: str, bot_id: str, *, keep: Callable[[bytes], bool] | None = None
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._keep = keep
        self._day = ""
        self._given = 0
        self._look: Look = ()

    def begin(self, *, since_s: float | None = None, tail: int | None = None) -> Iterator[bytes]:
        """What is there already, chosen as by `log_reader.read`."""
        days = log_reader.days_of(self._store, self._bucket, self._bot_id)
        older, self._day = days[:-1], days[-1] if days else ""
        newest = filter(self._keep, log_reader.since(self._lines(), since_s))
        if tail is None:
            yield from self._read(older, since_s=since_s, tail=None)
            yield from newest
            return
        last = deque(newest, maxlen=tail)
        if len(last) < tail:
            yield from self._read(older, since_s=since_s, tail=tail - len(last))
        yield from last

    def poll(self) -> Iterator[bytes]:
        """What came since."""
        yield from filter(self._keep, self._lines())
        for day in log_reader.days_of(self._store, self._bucket, self._bot_id):
            if day > self._day:
                self._day, self._given, self._look = day, 0, ()
                yield from filter(self._keep, self._lines())

    def _lines(self) -> Iterator[bytes]:
        """The newest day's lines that were not given out yet."""
        if not self._day:
            return
        listed = self._store.list(self._bucket, names.logs_prefix(self._bot_id) + self._day)
        look = tuple((info.key, info.etag) for info in listed)
        if look == self._look:
            return
        lines = log_reader.day_lines(self._store, self._bucket, self._bot_id, self._day)
        for line in islice(lines, self._given, None):
            self._given += 1
            yield line
        self._look = look  # last: who stops in between looks again

    def _read(self, days: list[str], *, since_s: float | None, tail: int | None) -> Iterable[bytes]:
        return log_reader.read(
            self._store, self._bucket, self._bot_id, since_s=since_s, tail=tail, days=days, keep=self._keep
        )


def follow(
    follower: Follower,
    *,
    show: Callable[[bytes], None],
    since_s: float | None,
    tail: int | None,
    stop: threading.Event,
) -> None:
    """Until `stop`. Where the store gives no answer, it is asked again."""
    for line in follower.begin(since_s=since_s, tail=tail):
        show(line)
    while not stop.wait(EVERY_S):
        try:
            for line in follower.poll():
                show(line)
        except Transient:
            continue  # the next look tells the same lines
