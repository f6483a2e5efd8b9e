"""Reads a bot's lines back from the store: the days' objects, then the pieces that are not in them yet."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import IO, Any, Final

from the0 import names
from the0.errors import clip
from the0.objects.store import Missing, ObjectStore
from the0.sync import lines
from the0.sync.day_log import PIECE_LIMIT_BYTES, Included, PieceId, piece_of

_LARGEST_BYTES: Final = 1 << 50
_TRIES: Final = 5
_BLOCK_BYTES: Final = 256 << 10
_SHOWN_CHARACTERS: Final = 16_384


def read(
    store: ObjectStore,
    bucket: str,
    bot_id: str,
    *,
    since_s: float | None = None,
    days: list[str] | None = None,
    tail: int | None = None,
    keep: Callable[[bytes], bool] | None = None,
) -> Iterator[bytes]:
    """Lines with their newline, in order, each once. `since_s`: only those whose timestamp is not older (Unix seconds; a line
    without a usable one goes with the line before it); `days`: only these (YYYYMMDD); `keep`: only these; `tail`: of all that
    the last so many.
    Needs disk below TMPDIR for one day at a time, and memory for `tail` lines. Raises the store's errors."""
    chosen = days_of(store, bucket, bot_id)
    if days is not None:
        chosen = [day for day in chosen if day in days]
    if since_s is not None:
        # Days are cut by arrival, and a line's own timestamp is not later than that, give or take a clock.
        chosen = [day for day in chosen if day >= lines.day(since_s)]
    if tail is None:
        for day in chosen:
            yield from filter(keep, since(day_lines(store, bucket, bot_id, day), since_s))
        return
    found: deque[bytes] = deque()
    for day in reversed(chosen):
        if len(found) >= tail:
            break
        lines_of_day = filter(keep, since(day_lines(store, bucket, bot_id, day), since_s))
        last: deque[bytes] = deque(lines_of_day, maxlen=tail - len(found))
        found.extendleft(reversed(last))
    yield from found


def shown(line: bytes, *, as_json: bool = False) -> bytes:
    """As `runtime logs` prints it: as it is stored, or `timestamp message` made fit for a terminal."""
    return line if as_json else _plain(line)


def matcher(pattern: str) -> Callable[[bytes], bool]:
    """Whether a line, as people see it, matches a regular expression. ValueError for one that is none."""
    try:
        wanted = re.compile(pattern)
    except re.error as reason:
        raise ValueError(f"{clip(pattern)!r} is no regular expression ({reason})") from reason
    return lambda line: wanted.search(_plain(line).decode("utf-8", "replace")) is not None


def days_of(store: ObjectStore, bucket: str, bot_id: str) -> list[str]:
    prefix = names.logs_prefix(bot_id)
    found = set()
    for info in store.list(bucket, prefix):
        day = info.key[len(prefix) :].split("/", 1)[0].removesuffix(".log")
        if len(day) == 8 and day.isascii() and day.isdigit():
            found.add(day)
    return sorted(found)


def day_lines(store: ObjectStore, bucket: str, bot_id: str, day: str) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as copy:
        for attempt in range(_TRIES):
            copy.seek(0)
            copy.truncate()
            if _assemble(store, bucket, bot_id, day, copy=copy, at_any_price=attempt == _TRIES - 1):
                break
        copy.seek(0)
        for line in copy:
            if not line.isspace():
                yield line if line.endswith(b"\n") else line + b"\n"


def _assemble(store: ObjectStore, bucket: str, bot_id: str, day: str, *, copy: IO[bytes], at_any_price: bool) -> bool:
    """The day's object and behind it every piece that is not in it. False where it was consolidated while we read."""
    # Pieces are listed first: one that then moves into the object is missing below, or in the object that we get.
    pieces = _pieces(store, bucket, bot_id, day)
    included = Included()
    try:
        info = store.get_to_file(bucket, names.day_log_key(bot_id, day), copy.fileno(), limit_bytes=_LARGEST_BYTES)
        included = Included.decode(info.metadata)
        copy.seek(0, os.SEEK_END)
        if info.size and os.pread(copy.fileno(), 1, info.size - 1) != b"\n":
            copy.write(b"\n")
    except Missing:
        pass  # nothing was consolidated on this day yet
    for epoch, seq in pieces:
        if included.covers((epoch, seq)):
            continue
        key = names.log_piece_key(bot_id, day, epoch=epoch, seq=seq)
        try:
            copy.write(store.get(bucket, key, limit_bytes=PIECE_LIMIT_BYTES).data)
        except Missing:
            if not at_any_price:
                return False
    return True


def _pieces(store: ObjectStore, bucket: str, bot_id: str, day: str) -> list[PieceId]:
    found = []
    for info in store.list(bucket, names.log_pieces_prefix(bot_id, day)):
        named = piece_of(info.key)
        if named is not None:
            found.append(named[1])
    return sorted(found)


def since(found: Iterator[bytes], since_s: float | None) -> Iterator[bytes]:
    if since_s is None:
        yield from found
        return
    recent = False
    for line in found:
        told_s = _timestamp_s(line)
        if told_s is not None:
            recent = told_s >= since_s
        if recent:
            yield line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _timestamp_s(line: bytes) -> float | None:
    """Unix seconds: bots write RFC 3339, or a number of seconds or milliseconds."""
    value = (_object(line) or {}).get("timestamp")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        try:
            told = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
    return value / 1000 if abs(value) >= 1e11 else float(value)


def _plain(line: bytes) -> bytes:
    value = _object(line)
    if value is None:
        text = line.decode("utf-8", "replace").rstrip("\n")
        return (clip(text, limit=_SHOWN_CHARACTERS) + "\n").encode("utf-8", "replace")
    timestamp = value.pop("timestamp", "")
    message = value.get("message")
    if not isinstance(message, str):
        # A metric, or a message that is no text: all of it.
        return _shown(timestamp, json.dumps(value, ensure_ascii=False))
    return _shown(timestamp, message)


def _shown(timestamp: object, text: str) -> bytes:
    # A bot's text could hold escape sequences that a terminal obeys; line breaks of a traceback are kept.
    parts = [clip(part, limit=_SHOWN_CHARACTERS) for part in text.expandtabs(4).split("\n")]
    return (f"{clip(str(timestamp), limit=64)} " + "\n    ".join(parts) + "\n").encode("utf-8", "replace")
