"""Sweeping: what no generation needs any more is deleted from the store, by the claim's holder, by exact key.

Why this is safe whoever is paused for however long: a lineage's HEAD list only loses segments and gains some of new generations, and a
lineage's first HEAD precedes its first segment. So what was listed in the store before HEAD was seen to be ours, is named by neither
this HEAD nor a kept history entry, and is not of a generation that is still to come, will never be named again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from the0 import names, threads
from the0.errors import Fault, Transient
from the0.objects.store import ObjectInfo, ObjectStore
from the0.sync import lease
from the0.sync.head import Content, HeadFile, Stored
from the0.sync.history import HistoryFiles, by_age
from the0.sync.lanes import fetch_ahead

CHECK_EVERY = 32
"""Deletions between two looks at HEAD."""
_FETCHES = 3
EVERY_S = 3600.0
FINISH_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """History: entries at most `history_s` old and `entries` in number, and together no more bytes that HEAD does not name than are live
    (`floor_bytes` where less is). Segments go when over `age_s` old."""

    history_s: float = 7 * 24 * 3600.0
    entries: int = 512
    floor_bytes: int = 1 << 20
    age_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Keys to delete, in this order."""

    history: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    kept_history_bytes: int = 0
    """Of entries and segments that are kept for history alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    history: int = 0
    segments: int = 0
    finished: bool = True


def plan(
    content: Content,
    *,
    entries: Sequence[ObjectInfo],
    segments: Sequence[ObjectInfo],
    read: Callable[[Iterable[str]], Iterator[Content | None]],
    live_bytes: int,
    now_s: float,
    limits: Limits,
) -> Plan:
    """What may go, given all history entries and segments in the store. `read` gives the contents of entries one by one; it is not asked
    for those that are too old to stay. `now_s` is by the store's clock."""
    sizes = {info.key: info.size for info in segments}
    named = {ref.key for ref in content.segments}
    young = sorted(
        (info for info in entries if now_s - info.modified_s <= limits.history_s),
        key=lambda info: by_age(info, content.lineage),
        reverse=True,
    )[: limits.entries]
    own = [info for info in young if names.numbered(info.key)[0] == content.lineage]  # type: ignore[index]
    kept: set[str] = set()
    history_bytes = 0
    # A former lineage was left by a person's choice: it stays for its time, whatever its size.
    for infos, room in ((own, max(live_bytes, limits.floor_bytes)), (young[len(own) :], None)):
        for info, entry in zip(infos, read(info.key for info in infos), strict=True):
            keys = {ref.key for ref in entry.segments} - named if entry is not None else set()
            if entry is None or not keys <= sizes.keys():
                continue  # gone, or written late by a writer that was paused: it gives nothing back
            cost = info.size + sum(sizes[key] for key in keys)
            if room is not None and cost > room - history_bytes:
                break
            history_bytes += cost
            named |= keys
            kept.add(info.key)
    return Plan(
        history=tuple(info.key for info in entries if info.key not in kept),
        segments=tuple(
            info.key
            for info in segments
            if info.key not in named and now_s - info.modified_s > limits.age_s and _past(info.key, content)
        ),
        kept_history_bytes=history_bytes,
    )


def _past(key: str, content: Content) -> bool:
    """Whether no commit can come that stores this very key again."""
    found = names.numbered(key)
    return found is not None and (found[0] != content.lineage or found[1] <= content.generation)


class Sweeper:
    """Sweeps for the holder (epoch, instance). Any thread, one at a time; a sweep that was cut off is simply done again."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        bucket: str,
        bot_id: str,
        epoch: int,
        instance: str,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._epoch = epoch
        self._instance = instance
        self._limits = limits or Limits()
        self._heads = HeadFile(store, bucket=bucket, bot_id=bot_id)
        self._history = HistoryFiles(store, bucket=bucket, bot_id=bot_id)

    def sweep(self, *, live_bytes: int, stop: threading.Event) -> Swept:
        """Deletes what may go; where the claim is another's by now, nothing. `live_bytes` of HEAD's segments. Raises Unavailable,
        and Permanent (STATE_DAMAGED) for a history entry that cannot be read: nothing is deleted then."""
        # Listed first: what appears after HEAD was seen to be ours is not ours to judge.
        entries = self._history.list()
        segments = list(self._store.list(self._bucket, names.segments_prefix(self._bot_id)))
        dated = self._heads.read_dated()
        if dated is None or (content := self._own(dated[0])) is None:
            return Swept(finished=False)
        found = plan(
            content,
            entries=entries,
            segments=segments,
            read=lambda keys: fetch_ahead(keys, self._history.read, window=_FETCHES),
            live_bytes=live_bytes,
            # The store's own clock, or what comes nearest; it never runs ahead.
            now_s=max([dated[1], *(one.modified_s for one in (*entries, *segments))]),
            limits=self._limits,
        )
        history = self._delete(found.history, stop)
        segments_gone = self._delete(found.segments, stop) if history == len(found.history) else 0
        return Swept(
            history=history,
            segments=segments_gone,
            finished=(history, segments_gone) == (len(found.history), len(found.segments)),
        )

    def _own(self, stored: Stored | None) -> Content | None:
        """None where the claim is another's by now."""
        if stored is None or not lease.holds(stored.head, epoch=self._epoch, instance=self._instance):
            return None
        return stored.head.content

    def _delete(self, keys: Collection[str], stop: threading.Event) -> int:
        """How many are gone: all, unless a stop was asked for or the claim was lost."""
        for number, key in enumerate(keys):
            if stop.is_set() or (number % CHECK_EVERY == 0 and self._own(self._heads.read()) is None):
                return number
            self._store.delete(self._bucket, key)
        return len(keys)


class Sweeping:
    """When to sweep: beside the commits, once after the first cleaning of a process, then at most once an hour while there are
    commits; a process that ends sooner sweeps at its end. Not thread-safe."""

    def __init__(self, sweeper: Sweeper, *, say: Callable[[str], None]) -> None:
        self._sweeper = sweeper
        self._say = say
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._cleaned = False
        self._committed = False
        self._told = False

    def note(self, *, dropped: int) -> None:
        """A commit was confirmed."""
        self._committed = True
        self._cleaned = self._cleaned or dropped > 0

    def tend(self, now_s: float, *, live_bytes: Callable[[], int]) -> None:
        """Begins a sweep if one is due; returns at once."""
        if self._first_s is None:
            self._first_s = now_s
        rested_since_s = self._first_s if self._last_s is None else self._last_s
        first = self._cleaned and self._last_s is None
        if first or (self._committed and now_s - rested_since_s >= EVERY_S):
            self._begin(live_bytes())
            self._last_s = now_s

    def finish(self, *, live_bytes: Callable[[], int], within_s: float = FINISH_S) -> None:
        """The process is about to end. What is not done by then, a later one does."""
        if self._cleaned and self._last_s is None:
            self._begin(live_bytes())
        if self._thread is not None:
            self._thread.join(within_s)
        self._stop.set()

    def _begin(self, live_bytes: int) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._committed = self._cleaned = False
        self._thread = threading.Thread(target=self._run, args=(live_bytes,), name="sweep", daemon=True)
        threads.start(self._thread)

    def _run(self, live_bytes: int) -> None:
        try:
            self._sweeper.sweep(live_bytes=live_bytes, stop=self._stop)
        except Transient:
            pass  # nothing but space is lost by it; the next sweep finds the same
        except Fault as reason:
            if not self._told:
                self._told = True
                self._say(f"Stored state that is no longer needed is not removed for now: {reason.sentence}")
