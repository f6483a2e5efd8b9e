"""Lines on their way to the store, in `<STATE_PATH>/.the0/spool`, where they outlive the container.

`open` grows by records: normalised lines, and the place in bot.log up to which they were read, in one checksummed
unit, so that after a kill at any instant no line is repeated or lost. Sealing renames `open` to the name of its
piece, `<epoch>-<seq>-<day>`: what a piece holds, and its key, are fixed before its PUT, and a repeated PUT
overwrites itself. `next` is the following `open`, ready before the rename, so that the place is never without a file.

The bot may do anything to this folder. It is opened beneath its root, read in bounds and checked; what is damaged
is dropped and put into `problems`, for the log.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from dataclasses import dataclass
from typing import Final

from the0 import files
from the0.sync.botlog_reader import Position
from the0.sync.spool_records import FILE_LIMIT_BYTES, Record, Records

LIMIT_BYTES: Final = 256 << 20
_ENTRIES_LIMIT: Final = 100_000
_OPEN: Final = "open"
_NEXT: Final = "next"
_PIECE = re.compile(r"(\d{10})-(\d{12,18})-(\d{8})")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Piece:
    """Sealed lines of one day; in the order in which they were printed."""

    epoch: int
    seq: int
    day: str

    @property
    def name(self) -> str:
        return f"{self.epoch:010d}-{self.seq:012d}-{self.day}"


class Spool:
    """For one process, from any of its threads. Methods raise OSError where the disk fails; nothing is half done then."""

    def __init__(self, path: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """`path` is `<STATE_PATH>/.the0/spool`; it is made with its parent, neither of them through a link."""
        self._path = path
        self._limit_bytes = limit_bytes
        self._folder = -1
        self._fd = -1
        self._length = 0
        self._last = Record(position=Position(), epoch=0, seq=0, day="", payload=b"")
        self._sizes: dict[Piece, int] = {}
        self._lock = threading.RLock()
        self.open_bytes = 0
        """Bytes of lines that no piece holds yet."""
        self.problems: list[str] = []
        """Sentences about what was found damaged; the caller says and empties them."""

    # --- what is in it -----------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Up to where bot.log was read, as of the last record."""
        return self._last.position

    @property
    def day(self) -> str:
        """The day of the lines in `open`; meaningless while there are none."""
        return self._last.day

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values()) + self._length

    def next_seq(self, epoch: int) -> int | None:
        """None where no piece was sealed under this epoch, as far as the spool knows."""
        return self._last.seq if self._last.epoch == epoch else None

    def pieces(self) -> list[Piece]:
        """Sealed and not yet removed, oldest first."""
        with self._lock:
            return sorted(self._sizes)

    # --- changes -----------------------------------------------------------------------------------

    def load(self) -> None:
        """Opens the folder and takes up what a former process left. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                return
            self.close()
            self._folder = self._open_own_folder()
            names = self._scan()
            if _OPEN not in names and _NEXT in names:
                os.rename(_NEXT, _OPEN, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            try:
                fd = files.open_beneath(self._folder, _OPEN, os.O_RDWR)
            except FileNotFoundError:
                self._start_open()
                return
            except OSError as reason:
                self._discard(_OPEN, reason.strerror or "unreadable")
                self._start_open()
                return
            if not self._take_up(fd):
                os.close(fd)
                self._discard(_OPEN, "its records are unreadable; lines may be repeated")
                self._start_open()

    def append(self, payload: bytes, *, position: Position, day: str, reserve_bytes: int = 0) -> bool:
        """Lines of one day (sealed apart from another day's) and the place in bot.log behind them, kept both or none.
        False where the spool would be fuller than its bound and `reserve_bytes` on top."""
        with self._lock:
            self.load()
            last = self._last
            record = Record(position=position, epoch=last.epoch, seq=last.seq, day=day, payload=payload)
            encoded = record.encode()
            if self.used_bytes + len(encoded) > self._limit_bytes + reserve_bytes:
                return False
            view = memoryview(encoded)
            written = 0
            while written < len(view):
                # After an error the torn record is no record, and the next one overwrites it.
                written += os.pwrite(self._fd, view[written:], self._length + written)
            self._length += written
            self._last = Record(position=position, epoch=last.epoch, seq=last.seq, day=day, payload=b"")
            self.open_bytes += len(payload)
            return True

    def seal(self, *, epoch: int, seq: int) -> Piece:
        """Makes a piece of all that is open."""
        with self._lock:
            self.load()
            piece = Piece(epoch=epoch, seq=seq, day=self.day)
            following = Record(position=self.position, epoch=epoch, seq=seq + 1, day="", payload=b"")
            fd, length = self._create(_NEXT, following)
            try:
                os.ftruncate(self._fd, self._length)
                try:
                    os.rename(_OPEN, piece.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                except FileNotFoundError:
                    self._put_back(piece.name)
                os.rename(_NEXT, _OPEN, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except BaseException:
                # Whatever the folder holds now, it is a state that `load` knows.
                os.close(fd)
                self.close()
                raise
            self._sizes[piece] = self._length
            os.close(self._fd)
            self._fd, self._length, self._last, self.open_bytes = fd, length, following, 0
            return piece

    def read(self, piece: Piece) -> bytes:
        """The lines of a piece; fewer, or b"", and a problem, where somebody damaged it."""
        try:
            fd = files.open_beneath(self._folder, piece.name)
        except OSError as reason:
            self._damaged(piece.name, reason.strerror or "unreadable")
            return b""
        payloads: list[bytes] = []
        try:
            records = Records(fd)
            payloads.extend(record.payload for record in records)
            if not records.complete:
                self._damaged(piece.name, "its end is unreadable")
        finally:
            os.close(fd)
        return b"".join(payloads)

    def remove(self, piece: Piece) -> None:
        """Idempotent."""
        with self._lock:
            try:
                os.unlink(piece.name, dir_fd=self._folder)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                files.remove_tree(self._folder, piece.name)
            self._sizes.pop(piece, None)

    def close(self) -> None:
        """Idempotent; `load` takes up what is on the disk."""
        with self._lock:
            for fd in (self._fd, self._folder):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._folder = -1
            self._sizes = {}
            self._length = self.open_bytes = 0

    # --- parts -------------------------------------------------------------------------------------

    def _open_own_folder(self) -> int:
        try:
            return _open_folder(self._path)
        except OSError as reason:
            if reason.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
        # A bot put something else there; lines that it does not let us keep cannot be shipped, those to come can.
        self.problems.append("the log spool was replaced: lines in it are lost")
        reserved_path, name = os.path.split(self._path)
        state_path, reserved_name = os.path.split(reserved_path)
        with files.folder(state_path) as state:
            reserved = files.open_folder_beneath(state, reserved_name)
            try:
                files.remove_tree(reserved, name)
            finally:
                os.close(reserved)
        return _open_folder(self._path)

    def _scan(self) -> set[str]:
        found: set[str] = set()
        with os.scandir(self._folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _ENTRIES_LIMIT:
                    self.problems.append(f"the log spool holds over {_ENTRIES_LIMIT} files; the rest is ignored")
                    break
                found.add(entry.name)
                match = _PIECE.fullmatch(entry.name)
                if match is None:
                    continue
                info = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(info.st_mode) or info.st_size > FILE_LIMIT_BYTES:
                    self._discard(entry.name, "it is no piece of ours")
                    continue
                piece = Piece(epoch=int(match[1]), seq=int(match[2]), day=match[3])
                self._sizes[piece] = info.st_size
        return found

    def _take_up(self, fd: int) -> bool:
        if os.fstat(fd).st_size > FILE_LIMIT_BYTES:
            return False
        records = Records(fd)
        last: Record | None = None
        day = ""
        payload_bytes = 0
        for record in records:
            payload_bytes += len(record.payload)
            day = record.day or day
            last = record
        if last is None:
            return False
        # What follows the last whole record is what a kill cut off: its lines are still in bot.log.
        self._fd, self._length, self.open_bytes = fd, records.offset, payload_bytes
        self._last = Record(position=last.position, epoch=last.epoch, seq=last.seq, day=day, payload=b"")
        return True

    def _start_open(self) -> None:
        first = Record(position=Position(), epoch=0, seq=0, day="", payload=b"")
        self._fd, self._length = self._create(_NEXT, first)
        os.rename(_NEXT, _OPEN, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._last, self.open_bytes = first, 0

    def _create(self, name: str, record: Record) -> tuple[int, int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            fd = files.open_beneath(self._folder, name, flags, mode=0o600)
        except FileExistsError:
            files.remove_tree(self._folder, name)
            fd = files.open_beneath(self._folder, name, flags, mode=0o600)
        except FileNotFoundError:
            # The folder was removed under us, and with it every piece in it; what is open still lives in our descriptor.
            self.problems.append(f"the log spool was removed: {len(self._sizes)} pieces in it are lost")
            os.close(self._folder)
            self._folder = -1
            self._sizes = {}
            self._folder = self._open_own_folder()
            fd = files.open_beneath(self._folder, name, flags, mode=0o600)
        try:
            encoded = record.encode()
            files.write_all(fd, encoded)
        except BaseException:
            os.close(fd)
            raise
        return fd, len(encoded)

    def _put_back(self, name: str) -> None:
        """The name `open` is gone, the file lives on in our descriptor: writes it anew, as the piece that it becomes."""
        files.write_atomic(self._folder, name, os.pread(self._fd, self._length, 0), mode=0o600, durable=False)

    def _discard(self, name: str, why: str) -> None:
        self._damaged(name, why)
        files.remove_tree(self._folder, name)

    def _damaged(self, name: str, why: str) -> None:
        self.problems.append(f"log lines kept on this machine are damaged and lost in part ({name}: {why})")


def _open_folder(path: str) -> int:
    reserved, name = os.path.split(path)
    state, reserved_name = os.path.split(reserved)
    root = files.open_root(state)
    try:
        return files.open_folder_beneath(root, f"{reserved_name}/{name}", create=True, mode=0o700)
    finally:
        os.close(root)
