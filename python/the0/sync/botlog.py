"""What the bot prints, on its way from the supervisor to the sync process: `<LOGS_PATH>/bot.log`.

The supervisor's end, standard library only. The bot shares our uid and may plant links, FIFOs and folders in the
way, truncate or delete: whatever is not the very file that we made is replaced, nothing is followed, nothing blocks.

`bot.log` holds the bytes as printed. At `limit_bytes` it becomes `bot.log.1` and a new one begins, so the disk is
bounded. `bot.log.starts` says at which offset of the whole stream each file begins (by inode), so that a reader
that was outrun knows how much it missed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final

from the0 import names
from the0.errors import ExitCode, Fatal
from the0.frozen import dataclass
from the0.sync import lines

ROTATED: Final = names.BOT_LOG + ".1"
STARTS: Final = names.BOT_LOG + ".starts"
STARTS_LIMIT_BYTES: Final = 4096
LIMIT_BYTES: Final = 16 << 20
_SLACK_BYTES: Final = 1 << 20
_SLICE_BYTES: Final = 1 << 20
_UNSAID_LINES: Final = 15
_OPEN: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class BotLogWriter:
    """Appends to bot.log; for one thread. No method but the constructor raises: what cannot be written (a full disk)
    is counted, and said in the log as soon as it takes bytes again."""

    def __init__(
        self, logs_path: str, *, limit_bytes: int = LIMIT_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        """Makes the folder. Raises Fatal (LOCAL_DISK) where that, or the file in it, cannot be made."""
        self._path = logs_path
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._fd = -1
        self._folder = -1
        self._inode = 0
        self._stream = os.urandom(8).hex()
        self._start = 0
        self._mid_line = False
        self._dropped_bytes = 0
        self._reason = ""
        self._unsaid: list[bytes] = []
        try:
            self._open_folder()
            if not self._take_up():
                self._begin(0)
        except OSError as reason:
            self.close()
            raise Fatal(
                f"the bot's log in {logs_path} cannot be written ({reason.strerror}): "
                "set LOGS_PATH to a folder that this user may write and that has room.",
                code=ExitCode.LOCAL_DISK,
            ) from reason

    def write(self, data: bytes) -> None:
        """Appends what the bot printed, byte for byte."""
        if self._dropped_bytes and not self._resume():
            self._dropped_bytes += len(data)
            return
        view = memoryview(data)
        while view:
            taken = self._append(view[:_SLICE_BYTES])
            if taken == 0:
                self._dropped_bytes += len(view)
                return
            view = view[taken:]

    def say(self, message: str, *, level: str = "error") -> None:
        """Appends one JSON line of the runtime's own, never spliced into a line of the bot's."""
        line = lines.ours(message, level=level, now_s=self._clock())
        if (self._dropped_bytes and not self._resume()) or not self._append_line(line):
            self._unsaid = [*self._unsaid[-_UNSAID_LINES:], line]
            self._dropped_bytes += len(line)

    def close(self) -> None:
        """Idempotent. Says what was dropped, if the disk takes it by now."""
        if self._dropped_bytes and self._fd >= 0:
            self._resume()
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1

    def _resume(self) -> bool:
        message = f"{self._dropped_bytes} bytes of the bot's output were dropped: {self._reason}"
        if not self._append_line(lines.ours(message, level="error", now_s=self._clock())):
            return False
        self._dropped_bytes = 0
        unsaid, self._unsaid = self._unsaid, []
        return self._append_line(b"".join(unsaid))

    def _append_line(self, line: bytes) -> bool:
        if self._mid_line:
            line = b"\n" + line
        return self._append(memoryview(line)) == len(line)

    def _append(self, data: memoryview) -> int:
        """How many bytes of `data` were taken; 0 where the disk takes none for now."""
        try:
            size = self._verified_size()
            if size >= self._limit_bytes and (not self._mid_line or size >= self._limit_bytes + _SLACK_BYTES):
                self._begin(self._start + size)
            taken = os.write(self._fd, data)
        except OSError as reason:
            self._reason = reason.strerror or "the disk failed"
            return 0
        if taken:
            self._mid_line = data[taken - 1] != 0x0A
        return taken

    def _verified_size(self) -> int:
        """The size of our file, which is bot.log again afterwards if anybody had put something else there."""
        if self._fd < 0:
            raise OSError(errno.EBADF, "the log is closed")
        try:
            found = os.stat(names.BOT_LOG, dir_fd=self._folder, follow_symlinks=False)
            if found.st_ino == self._inode:
                return found.st_size
        except FileNotFoundError:
            pass
        size = os.fstat(self._fd).st_size
        try:
            self._begin(self._start + size)
        except FileNotFoundError:
            # Somebody removed the folder: what was in it is gone, the stream goes on in a new one.
            os.close(self._folder)
            self._folder = -1
            self._open_folder()
            self._begin(self._start + size)
        return 0

    def _open_folder(self) -> None:
        os.makedirs(self._path, exist_ok=True)
        self._folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _take_up(self) -> bool:
        """Goes on with the file of a former writer, if it is one."""
        try:
            fd = os.open(names.BOT_LOG, _OPEN, dir_fd=self._folder)
        except OSError:
            return False
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            return False
        self._fd, self._inode = fd, info.st_ino
        starts = read_starts(self._folder)
        if starts is not None and info.st_ino in starts.by_inode:
            self._stream, self._start = starts.stream, starts.by_inode[info.st_ino]
        else:
            self._write_starts({str(info.st_ino): 0})
        # Its last line may be unfinished, and nobody will finish it; a blank line does no harm.
        if info.st_size > 0:
            self._append(memoryview(b"\n"))
        return True

    def _begin(self, start: int) -> None:
        """A new bot.log that begins at offset `start` of the stream. The starts are told before the file is in its
        place, so that a reader who sees it knows them."""
        fresh = names.BOT_LOG + ".new"
        _clear(self._folder, fresh)
        fd = os.open(fresh, _OPEN | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._folder)
        try:
            inode = os.fstat(fd).st_ino
            starts = {str(inode): start}
            if self._fd >= 0:
                starts[str(self._inode)] = self._start
            self._write_starts(starts)
            if self._is_ours(names.BOT_LOG):
                _clear(self._folder, ROTATED, only_folders=True)
                os.rename(names.BOT_LOG, ROTATED, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            else:
                _clear(self._folder, names.BOT_LOG)
            os.rename(fresh, names.BOT_LOG, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode, self._start = fd, inode, start

    def _is_ours(self, name: str) -> bool:
        try:
            return os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _write_starts(self, starts: dict[str, int]) -> None:
        temporary = STARTS + ".new"
        _clear(self._folder, temporary)
        fd = os.open(temporary, _OPEN | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._folder)
        try:
            text = json.dumps({"stream": self._stream, "starts": starts}).encode()
            if os.write(fd, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        _clear(self._folder, STARTS, only_folders=True)
        os.rename(temporary, STARTS, src_dir_fd=self._folder, dst_dir_fd=self._folder)


@dataclass(frozen=True, slots=True)
class Starts:
    stream: str
    """Names one stream of bytes, whatever files it went through."""
    by_inode: Mapping[int, int]
    """Where in the stream the file of that inode begins, for bot.log and bot.log.1."""


def read_starts(folder_fd: int) -> Starts | None:
    """None where there are none, or where they are not as the writer leaves them."""
    try:
        fd = os.open(STARTS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        told = json.loads(os.read(fd, STARTS_LIMIT_BYTES))
        by_inode = {int(inode): int(start) for inode, start in told["starts"].items()}
        stream = told["stream"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    finally:
        os.close(fd)
    plausible = all(0 <= start < 1 << 62 for start in by_inode.values())
    return Starts(stream, by_inode) if plausible and isinstance(stream, str) and len(stream) <= 64 else None


def _clear(folder_fd: int, name: str, *, only_folders: bool = False) -> None:
    """Makes the way free for a file of ours. A planted folder is moved aside: emptying it could take for ever."""
    try:
        info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(info.st_mode):
        os.rename(name, f"{name}.aside-{os.urandom(6).hex()}", src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    elif not only_folders:
        os.unlink(name, dir_fd=folder_fd)
