"""One object a day that other programs read, grown from the pieces that were shipped: each line in it exactly once.

The object's metadata says which pieces are in it, and it changes together with the content, under its ETag; so a crash
between any two requests is harmless, and so is a piece that appears again, or late, from an earlier epoch.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from the0 import names
from the0.objects.store import LocalDisk, Missing, ObjectInfo, ObjectStore, TooLarge
from the0.sync import lines

ORPHAN_EPOCH: Final = 0
"""Lines of starts that failed before they had a claim; each piece stands for itself."""
REWRITE_BELOW_BYTES: Final = 5 << 20
"""The smallest object that a store can grow by itself; below it the object is written anew."""
BYTES_PER_S: Final = 16 << 10
AT_LEAST_S: Final = 15.0
APPEND_EVERY_S: Final = 300.0
STEP_BYTES: Final = 8 << 20
"""At most so much goes into an object at once, for the sake of memory."""
DELETES_A_STEP: Final = 100
LARGE_BYTES: Final = 64 << 20
_CACHE_BYTES: Final = 256 << 10
_CACHED_PIECE_BYTES: Final = 8 << 10
_EPOCHS_KEPT: Final = 32
_ORPHANS_KEPT: Final = 16
PIECE_LIMIT_BYTES: Final = 32 << 20
_LARGEST_BYTES: Final = 1 << 50
_PIECE_KEY = re.compile(r"(\d{8})/(\d{10})-(\d{12,18})\.ndjson")
_MARK = re.compile(r"(\d{1,10})-(\d{1,18})")

PieceId = tuple[int, int]
"""(epoch, seq); their order is that of the lines."""


def piece_of(key: str) -> tuple[str, PieceId] | None:
    """The day and id that a piece's key names; None for any other key."""
    match = _PIECE_KEY.fullmatch(key.split("/", 2)[-1])
    return (match[1], (int(match[2]), int(match[3]))) if match else None


@dataclass(frozen=True, slots=True)
class Included:
    """Which pieces are in a day's object: of an epoch all up to a sequence, of orphans each by itself. Latest first."""

    marks: tuple[PieceId, ...] = ()

    def covers(self, piece: PieceId) -> bool:
        if piece[0] == ORPHAN_EPOCH:
            return piece in self.marks
        return any(epoch == piece[0] and piece[1] <= seq for epoch, seq in self.marks)

    def plus(self, pieces: Iterable[PieceId]) -> Included:
        """`pieces` in the order in which they were added."""
        marks = list(self.marks)
        for piece in pieces:
            if piece[0] != ORPHAN_EPOCH:
                marks = [mark for mark in marks if mark[0] != piece[0]]
            marks.insert(0, piece)
        claimed = [mark for mark in marks if mark[0] != ORPHAN_EPOCH][:_EPOCHS_KEPT]
        orphans = [mark for mark in marks if mark[0] == ORPHAN_EPOCH][:_ORPHANS_KEPT]
        return Included(tuple(mark for mark in marks if mark in claimed or mark in orphans))

    def encode(self) -> dict[str, str]:
        return {names.LOG_LAST_PIECE: " ".join(f"{epoch}-{seq}" for epoch, seq in self.marks)}

    @staticmethod
    def decode(metadata: Mapping[str, str]) -> Included:
        """Nothing where the metadata are not ours: the content was there before us and stays in front."""
        marks = [_MARK.fullmatch(mark) for mark in metadata.get(names.LOG_LAST_PIECE, "").split()]
        return Included(tuple((int(mark[1]), int(mark[2])) for mark in marks if mark is not None))


@dataclass(slots=True)
class _Day:
    pieces: dict[PieceId, int] = field(default_factory=dict)
    """In the store, not known to be deleted: their sizes in bytes."""
    trusted: set[PieceId] = field(default_factory=set)
    """Those of them that a composition should have put into the object; the next look at it confirms that."""
    size: int | None = None
    """Of the object; None: not looked at yet."""
    since_s: float = 0.0
    """When the object was last written, or when we began."""

    @property
    def pending_bytes(self) -> int:
        return sum(size for piece, size in self.pieces.items() if piece not in self.trusted)


class DayLogs:
    """Consolidates one bot's days. `shipped` may be called while another thread is in one of the other methods. Methods
    raise the store's errors, and may then be called again."""

    def __init__(self, store: ObjectStore, *, bucket: str, bot_id: str) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._days: dict[str, _Day] = {}
        self._shipped: deque[tuple[str, PieceId, int, bytes | None, float]] = deque()
        self._recent: dict[tuple[str, PieceId], bytes] = {}
        self._recent_bytes = 0

    @property
    def settled(self) -> bool:
        """Whether every known piece is in its object and deleted."""
        self._take_shipped()
        return not any(day.pieces for day in self._days.values())

    def look(self, *, now_s: float) -> None:
        """Finds pieces that others left: earlier epochs, failed starts, a predecessor of this process."""
        for folder in self._store.list_folders(self._bucket, names.logs_prefix(self._bot_id)):
            seen = self._list(folder)
            if not seen:
                continue
            # A writer that is not fenced yet may add pieces while we list, and a listing may show the later of two
            # only. Pieces of an epoch are written one after the other: what a second listing shows up to the latest of
            # the first is without gaps.
            latest: dict[int, int] = {}
            for _, (epoch, seq) in seen:
                latest[epoch] = max(seq, latest.get(epoch, 0))
            for (day, (epoch, seq)), size in self._list(folder).items():
                if seq <= latest.get(epoch, -1):
                    self._note(day, (epoch, seq), size, now_s=now_s)

    def shipped(self, name: str, piece: PieceId, data: bytes, *, now_s: float) -> None:
        """A piece is in the store."""
        # A quiet bot's lines need not come back from the store a minute later.
        kept = data if len(data) <= _CACHED_PIECE_BYTES else None
        self._shipped.append((name, piece, len(data), kept, now_s))

    def is_large(self, name: str) -> bool:
        """Whether a step of that day may take long: the store copies the object each time."""
        day = self._days.get(name)
        return day is not None and (day.size or 0) >= LARGE_BYTES

    def due(self, *, now_s: float, at_once: bool = False) -> str | None:
        """A day whose object should take a step now; `at_once`: any that is not settled."""
        self._take_shipped()
        today = lines.day(now_s)
        for name in sorted(self._days):
            day = self._days[name]
            if not day.pieces:
                if name < today:
                    del self._days[name]
                continue
            if at_once:
                return name
            waited_s = now_s - day.since_s
            if waited_s < AT_LEAST_S:
                continue
            if day.size is None or name < today:
                return name
            if day.size >= REWRITE_BELOW_BYTES:
                if waited_s >= APPEND_EVERY_S:
                    return name
            elif day.pending_bytes >= day.size or waited_s >= (day.size + day.pending_bytes) / BYTES_PER_S:
                return name
        return None

    def step(self, name: str, *, now_s: float) -> bool:
        """Deletes what is in the day's object, and moves pieces into it, at most DELETES_A_STEP and STEP_BYTES. True where
        more is to be done at once. Raises PreconditionFailed where another writer was quicker: call again."""
        day = self._days[name]
        key = names.day_log_key(self._bot_id, name)
        former, content = self._read(key, small=(day.size or 0) < REWRITE_BELOW_BYTES)
        included = Included.decode(former.metadata) if former else Included()
        day.size = former.size if former else 0
        day.trusted = {piece for piece in day.trusted if included.covers(piece)}
        if not self._delete(name, day, [piece for piece in sorted(day.pieces) if included.covers(piece)]):
            return True
        if not day.pieces:
            return False
        buffer = bytearray(content or b"")
        del content
        if former is not None and not self._ends_line(key, former, buffer, included):
            buffer += b"\n"
        batch = self._collect(name, day, buffer)
        if not batch:
            return bool(day.pieces)
        metadata = included.plus(batch).encode()
        if former is not None and former.size >= REWRITE_BELOW_BYTES:
            self._store.append(self._bucket, key, buffer, etag=former.etag, metadata=metadata)
            # Composition is conditional only as far as the store can: the next look at the object confirms it.
            day.size = former.size + len(buffer)
            day.trusted |= set(batch)
        else:
            self._store.put_if(self._bucket, key, buffer, etag=former.etag if former else None, metadata=metadata)
            day.size = len(buffer)
            day.trusted |= set(batch)
            self._delete(name, day, batch)
        more = any(piece not in day.trusted for piece in day.pieces)
        if not more:
            day.since_s = now_s
        return more

    # --- parts -------------------------------------------------------------------------------------

    def _list(self, folder: str) -> dict[tuple[str, PieceId], int]:
        found = {}
        for info in self._store.list(self._bucket, folder):
            named = piece_of(info.key)
            if named is not None:
                found[named] = info.size
        return found

    def _take_shipped(self) -> None:
        while self._shipped:
            name, piece, size, data, now_s = self._shipped.popleft()
            self._note(name, piece, size, now_s=now_s)
            if data is not None and self._recent_bytes + size <= _CACHE_BYTES and (name, piece) not in self._recent:
                self._recent[name, piece] = data
                self._recent_bytes += size

    def _note(self, name: str, piece: PieceId, size: int, *, now_s: float) -> None:
        day = self._days.get(name)
        if day is None:
            day = self._days[name] = _Day(since_s=now_s)
        day.pieces[piece] = size

    def _read(self, key: str, *, small: bool) -> tuple[ObjectInfo | None, bytes | None]:
        """The object as it is now, with its content where that is to be written anew."""
        if small:
            try:
                found = self._store.get(self._bucket, key, limit_bytes=REWRITE_BELOW_BYTES - 1)
                return found.info, found.data
            except Missing:
                return None, None
            except TooLarge:
                pass  # it is grown, not rewritten: its metadata will do
        info = self._store.head(self._bucket, key)
        if info is not None and info.size < REWRITE_BELOW_BYTES:
            return self._read(key, small=True)
        return info, None

    def _collect(self, name: str, day: _Day, buffer: bytearray) -> list[PieceId]:
        """Adds the next pieces to the buffer, oldest first."""
        batch: list[PieceId] = []
        begin = len(buffer)
        for piece in sorted(day.pieces):
            if piece in day.trusted:
                continue
            if batch and len(buffer) - begin + day.pieces[piece] > STEP_BYTES:
                break
            data = self._recent.get((name, piece))
            if data is None:
                key = names.log_piece_key(self._bot_id, name, epoch=piece[0], seq=piece[1])
                try:
                    data = self._store.get(self._bucket, key, limit_bytes=PIECE_LIMIT_BYTES).data
                except Missing:
                    # Another holder moved it meanwhile; then the object changed too, and our condition on it fails.
                    self._forget(name, day, piece)
                    continue
            buffer += data
            batch.append(piece)
        return batch

    def _delete(self, name: str, day: _Day, pieces: list[PieceId]) -> bool:
        """Deletes pieces that are in the object. False where some are left for the next step."""
        for piece in pieces[:DELETES_A_STEP]:
            self._store.delete(self._bucket, names.log_piece_key(self._bot_id, name, epoch=piece[0], seq=piece[1]))
            self._forget(name, day, piece)
        return len(pieces) <= DELETES_A_STEP

    def _forget(self, name: str, day: _Day, piece: PieceId) -> None:
        day.pieces.pop(piece, None)
        day.trusted.discard(piece)
        self._recent_bytes -= len(self._recent.pop((name, piece), b""))

    def _ends_line(self, key: str, former: ObjectInfo, content: bytearray, included: Included) -> bool:
        """Whether the object ends with a newline, as all that we wrote does."""
        if former.size == 0 or included.marks:
            return True
        if content:
            return content.endswith(b"\n")
        import tempfile  # 2 ms at every start, for what hardly ever happens

        try:
            with tempfile.TemporaryFile() as copy:
                self._store.get_to_file(self._bucket, key, copy.fileno(), limit_bytes=_LARGEST_BYTES)
                return os.pread(copy.fileno(), 1, former.size - 1) == b"\n"
        except (OSError, LocalDisk):
            return True  # no room to look at it: a log of lines ends with a newline unless its writer was killed
