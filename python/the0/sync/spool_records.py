"""The records that a spool's files are made of: lines, and the place in bot.log behind them, under one checksum."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from the0.sync.botlog_reader import Position

FILE_LIMIT_BYTES: Final = 32 << 20
"""No file of ours grows as large: a larger one was planted."""
_HEADER_LIMIT_BYTES: Final = 512
_MAGIC: Final = b"the0-spool-1"
"""Names the format; another one is no record of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    position: Position
    epoch: int
    """The epoch that pieces were sealed under last; 0 for none."""
    seq: int
    """The next piece's, under that epoch."""
    day: str
    payload: bytes

    def encode(self) -> bytes:
        told = json.dumps([self.position.encode(), self.epoch, self.seq, self.day]).encode()
        crc = zlib.crc32(self.payload, zlib.crc32(told))
        return b"%b %08x %d %b\n%b" % (_MAGIC, crc, len(self.payload), told, self.payload)


class Records:
    """Reads records until the first that is not whole."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = min(os.fstat(fd).st_size, FILE_LIMIT_BYTES)
        self.offset = 0
        """Behind the last whole record."""

    @property
    def complete(self) -> bool:
        return 0 < self.offset == os.fstat(self._fd).st_size

    def __iter__(self) -> Iterator[Record]:
        while self.offset < self._size:
            head, found, _ = os.pread(self._fd, _HEADER_LIMIT_BYTES, self.offset).partition(b"\n")
            parts = head.split(b" ", 3)
            if not found or len(parts) != 4 or parts[0] != _MAGIC or not parts[2].isdigit():
                return
            length = int(parts[2][:12])
            begin = self.offset + len(head) + 1
            if length > self._size - begin:
                return
            payload = os.pread(self._fd, length, begin)
            record = _decode(parts[3], payload, parts[1])
            if record is None:
                return
            self.offset = begin + length
            yield record


def _decode(told: bytes, payload: bytes, crc: bytes) -> Record | None:
    if b"%08x" % zlib.crc32(payload, zlib.crc32(told)) != crc:
        return None
    try:
        position, epoch, seq, day = json.loads(told)
        place = Position.decode(position)
    except (ValueError, TypeError, RecursionError):
        return None
    if not _counts(epoch, below=10**10) or not _counts(seq, below=10**18) or not isinstance(day, str):
        return None
    if day and not (len(day) == 8 and day.isascii() and day.isdigit()):
        return None
    return Record(position=place, epoch=epoch, seq=seq, day=day, payload=payload)


def _counts(number: Any, *, below: int) -> bool:
    return type(number) is int and 0 <= number < below
