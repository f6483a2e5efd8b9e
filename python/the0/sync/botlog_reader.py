"""Follows bot.log in the sync process: over rotation, restarts of either end, and whatever a bot does to the files.

A position is an offset in the whole stream, told by the file that holds it, so that nothing is read twice and what
rotation took away unread is counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Final

from the0 import files, names
from the0.sync import botlog

JUMP_BYTES: Final = 4 * botlog.LIMIT_BYTES
"""The writer never leaves as much in one file: more was planted, and most of it is jumped over."""
_KEPT_BYTES: Final = botlog.LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where the stream was read. `inode` 0: nothing yet."""

    stream: str = ""
    inode: int = 0
    start: int = 0
    """Offset in the stream of the file's first byte."""
    offset: int = 0
    """In the file."""
    skipped_bytes: int = 0
    """As in `LineCutter`: above 0 inside a line that was cut."""

    @property
    def reached(self) -> int:
        return self.start + self.offset

    def encode(self) -> list[Any]:
        return [self.stream, self.inode, self.start, self.offset, self.skipped_bytes]

    @staticmethod
    def decode(told: Any) -> Position:
        """ValueError where it is none."""
        if not isinstance(told, list) or len(told) != 5 or not isinstance(told[0], str) or len(told[0]) > 64:
            raise ValueError("not a position")
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in told[1:]):
            raise ValueError("not a position")
        return Position(*told)


@dataclass(frozen=True, slots=True)
class Chunk:
    data: bytes
    gap: bool = False
    """Bytes between the former chunk and this one were lost."""
    lost_bytes: int | None = 0
    """How many, where that is known."""


class BotLogReader:
    """For one thread. Holds the file that it reads open, so that a rotation takes nothing from under it."""

    def __init__(self, logs_path: str, position: Position) -> None:
        self._path = logs_path
        self._at = position
        self._folder = -1
        self._fd = -1
        self._gap = False
        self._lost_bytes: int | None = 0

    @property
    def position(self) -> Position:
        return self._at

    def read(self, limit_bytes: int) -> Chunk:
        """What follows, at most limit_bytes; empty where there is nothing new. Raises OSError where the folder or the file fails."""
        if self._fd < 0 and not self._resume():
            return Chunk(b"")
        data = self._read(limit_bytes)
        if not data:
            if not self._ended():
                return Chunk(b"")
            # Written between our read and the rotation; afterwards nobody writes to it.
            data = self._read(limit_bytes)
            if not data:
                if not self._next():
                    return Chunk(b"")
                data = self._read(limit_bytes)
        chunk = Chunk(data, self._gap, self._lost_bytes if self._gap else 0)
        if data:
            self._gap, self._lost_bytes = False, 0
        return chunk

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1

    def _read(self, limit_bytes: int) -> bytes:
        size = os.fstat(self._fd).st_size
        if size < self._at.offset:
            # Somebody truncated it. Where the writer goes on, so do we.
            self._lose(None)
            self._at = replace(self._at, offset=0)
        elif size - self._at.offset > JUMP_BYTES:
            self._lose(size - _KEPT_BYTES - self._at.offset)
            self._at = replace(self._at, offset=size - _KEPT_BYTES)
        data = os.pread(self._fd, limit_bytes, self._at.offset)
        self._at = replace(self._at, offset=self._at.offset + len(data))
        return data

    def _ended(self) -> bool:
        """Whether bot.log is another file by now, or the folder another folder."""
        try:
            inode = os.stat(names.BOT_LOG, dir_fd=self._folder, follow_symlinks=False).st_ino
        except FileNotFoundError:
            # Between the two renames of a rotation, or gone together with its folder.
            return os.fstat(self._folder).st_nlink == 0 and self._open_folder()
        return inode != self._at.inode

    def _resume(self) -> bool:
        """Opens the file that the position names, or the first one where it names none."""
        return (self._folder >= 0 or self._open_folder()) and self._next()

    def _next(self) -> bool:
        """Opens what follows the position. False where that cannot be told yet."""
        starts = botlog.read_starts(self._folder)
        found = {}
        for name in (botlog.ROTATED, names.BOT_LOG):
            try:
                found[name] = files.open_beneath(self._folder, name)
            except OSError:
                continue  # missing, or planted: the writer replaces what is not its own
        try:
            return self._choose(found, starts)
        finally:
            for fd in found.values():
                if fd != self._fd:
                    os.close(fd)

    def _choose(self, found: dict[str, int], starts: botlog.Starts | None) -> bool:
        at = self._at
        by_inode = {os.fstat(fd).st_ino: fd for fd in found.values()}
        goes_on = starts is None or starts.stream == at.stream
        if self._fd < 0 and at.inode in by_inode and goes_on:
            self._take(by_inode[at.inode], at)
            return True
        if starts is None:
            # No writer of ours: the inode is all there is to go by.
            fd = found.get(names.BOT_LOG, -1)
            if fd < 0:
                return False
            if at.inode:
                self._lose(None)
            self._take(fd, Position(inode=os.fstat(fd).st_ino, start=at.reached))
            return True
        # A bot.log that the starts do not know was planted; the writer replaces it.
        files_after = sorted(
            (start, inode)
            for inode, start in starts.by_inode.items()
            if inode in by_inode and (self._fd < 0 or inode != at.inode)
        )
        if not files_after:
            return False
        if not goes_on:
            start, inode = files_after[0]
            self._take(by_inode[inode], Position(stream=starts.stream, inode=inode, start=start))
            return True
        for start, inode in files_after:
            if start >= at.reached or start + os.fstat(by_inode[inode]).st_size > at.reached:
                if start > at.reached:
                    self._lose(start - at.reached)
                offset = max(0, at.reached - start)
                break
        else:
            # Only a file that was truncated behind the writer's back ends before what was read already.
            offset = 0
            self._lose(None)
        self._take(by_inode[inode], Position(stream=at.stream, inode=inode, start=start, offset=offset))
        return True

    def _take(self, fd: int, at: Position) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._at = at

    def _open_folder(self) -> bool:
        """False while there is none: the supervisor makes it."""
        try:
            folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = folder
        return True

    def _lose(self, count: int | None) -> None:
        self._gap = True
        self._lost_bytes = None if count is None or self._lost_bytes is None else self._lost_bytes + count
