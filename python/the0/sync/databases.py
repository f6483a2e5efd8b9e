"""SQLite databases that are written while they are stored: copies of them that are whole.

A database that rested while it was read is stored as it is, all its files as of one instant, which is what a crash would leave and
what SQLite recovers from. Only of the others are copies made, in one of these ways:

- With a write-ahead log: first the main file, then the log. Whatever a checkpoint brought into the main file is in the log as well, as
  long as the log was not begun anew, which its header shows. Frames of unfinished transactions carry no commit, torn ones no checksum.
- With a rollback journal: the main file alone, when no writer was at it before and after, and nothing changed in between. Whether
  somebody has a lock to write is asked of the system, without taking one.
- Where neither succeeds, again while another process holds the database for reading (`database_hold.py`): a log is then not begun anew, a
  main file without one not written, for so long that only a writer without any busy timeout sees "locked".
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from the0 import files
from the0.frozen import dataclass
from the0.sync.local import StateFolder

TRIES = 3
TRIED_S = 0.1
"""For how long a copy without any lock is tried, and `TRIES` times at least."""
SHARED_S = 0.1
"""How long a writer of a database without a log may be held off."""
LOG_S = 10.0
"""How long a log may be kept from being begun anew; it grows meanwhile."""
AGAIN_S = 60.0
"""When a database that could not be held is held again."""
BUDGET_S = 10.0
"""For the databases of one commit; what does not fit in is left as it is stored."""

_COPIES = "databases"
_HOLD = os.path.join(os.path.dirname(__file__), "database_hold.py")
"""A program: as a module it would bring sqlite3 into every start."""
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_LOG_HEADER_BYTES = 32
_LOCKS = (0x40000000, 512)
"""Where SQLite's locks lie in a main file: the pending byte, the reserved byte and the shared range."""
_GRAIN_NS = 20_000_000
"""More than the granularity of the clock that files are stamped with."""
_PIECE_BYTES = 1 << 20
_PAUSE_S = 0.002

_Stat = tuple[int, int, int, int]
"""Inode, size, mtime and ctime (nanoseconds)."""


class _Not(Exception):
    """This time no copy can be made."""


def files_of(main: bytes) -> list[bytes]:
    """The paths of a database's files."""
    return [main, main + b"-wal", main + b"-journal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """`paths` are now to be taken from `folder_fd`, where those that are absent are missing. `rested`: nobody wrote meanwhile.
    `torn`: databases that could not be copied. Close the folder by `Databases.done`."""

    folder_fd: int
    paths: tuple[bytes, ...]
    moving: frozenset[bytes]
    rested: frozenset[bytes]
    torn: frozenset[bytes]


class Databases:
    """The copies of one state folder's databases. Not thread-safe."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._not_held_before_s: dict[bytes, float] = {}
        self.holds = 0
        """How often a database was held."""

    def present(self, mains: frozenset[bytes]) -> frozenset[bytes]:
        """Those that are there now."""
        found = set()
        for main in mains:
            with _Database.open(self._folder.root_fd, main) as base:
                if base is not None:
                    found.add(main)
        return frozenset(found)

    def copy(self, mains: Sequence[bytes], differing: Callable[[list[bytes]], list[bytes]]) -> Copied:
        """Copies those of these databases that differ from what is packed. OSError of the local disk."""
        folder_fd = self._folder.fresh_folder(_COPIES)
        paths: list[bytes] = []
        moving: set[bytes] = set()
        rested: set[bytes] = set()
        torn: set[bytes] = set()
        until_s = time.monotonic() + BUDGET_S
        try:
            for main in mains:
                try:
                    with _Database.open(self._folder.root_fd, main) as base:
                        if base is None or not differing(files_of(main)):
                            rested.add(main)
                            continue
                        moving.add(main)
                        work = _Copy(base, folder_fd, differing)
                        if self._copied(main, work, until_s=until_s):
                            rested.add(main) if work.rested else None
                            paths += work.paths
                        else:
                            torn.add(main)
                except OSError as reason:
                    if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        torn.add(main)  # it is listed as stale, and the next commit tries again
                    else:
                        raise
        except BaseException:
            self.done(folder_fd)
            raise
        return Copied(
            folder_fd=folder_fd,
            paths=tuple(paths),
            moving=frozenset(moving),
            rested=frozenset(rested),
            torn=frozenset(torn),
        )

    def done(self, folder_fd: int) -> None:
        os.close(folder_fd)
        files.remove_tree(self._folder.reserved_fd, _COPIES)

    def _copied(self, main: bytes, work: _Copy, *, until_s: float) -> bool:
        tries, lockless_until_s = 0, time.monotonic() + TRIED_S
        while tries < TRIES or time.monotonic() < lockless_until_s:
            if time.monotonic() >= until_s:
                return False
            if work.attempt(until_s=until_s):
                return True
            time.sleep(_PAUSE_S)
            tries += 1
        now_s = time.monotonic()
        if now_s < self._not_held_before_s.get(main, now_s):
            return False
        self._not_held_before_s.pop(main, None)
        self.holds += 1
        if work.attempt_held(until_s=until_s):
            return True
        self._not_held_before_s[main] = now_s + AGAIN_S
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What can be seen of a database from outside at one moment."""

    main: _Stat
    start: bytes
    log: _Stat | None
    log_start: bytes
    journal: _Stat | None
    journal_hot: bool
    at_ns: int

    @property
    def logged(self) -> bool:
        return self.start[18:20] == b"\2\2"

    @property
    def written_log(self) -> bool:
        return self.logged and len(self.log_start) == _LOG_HEADER_BYTES and self.journal is None

    @property
    def counter(self) -> bytes:
        return self.start[24:28]

    @property
    def stats(self) -> tuple[_Stat | None, ...]:
        return self.main, self.log, self.journal

    @property
    def settled(self) -> bool:
        """Another change of any of them would show."""
        return all(max(each[2], each[3]) < self.at_ns - _GRAIN_NS for each in self.stats if each is not None)


@dataclass(frozen=True, slots=True)
class _Database:
    """One database, its folder and main file open."""

    path: bytes
    folder_fd: int
    main_fd: int

    @staticmethod
    @contextmanager
    def open(root_fd: int, path: bytes) -> Iterator[_Database | None]:
        """None where there is none."""
        parent, _, name = os.fsdecode(path).rpartition("/")
        opened: list[int] = []
        try:
            try:
                opened.append(files.open_folder_beneath(root_fd, parent))
                opened.append(files.open_beneath(opened[0], name))
                found = os.pread(opened[1], len(_MAGIC), 0) == _MAGIC
            except OSError as reason:
                if reason.errno in (errno.EMFILE, errno.ENFILE, errno.EIO):
                    raise
                found = False  # gone, or no file that could be one
            yield _Database(path, opened[0], opened[1]) if found else None
        finally:
            for fd in opened:
                os.close(fd)

    @property
    def name(self) -> str:
        return os.fsdecode(self.path).rpartition("/")[2]

    def file(self, suffix: str) -> int | None:
        """A companion, open; None where there is none."""
        try:
            return files.open_beneath(self.folder_fd, self.name + suffix)
        except OSError as reason:
            if reason.errno in (errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO):
                return None  # SQLite opens no link or pipe as one either
            raise _Not from reason

    def look(self) -> _Look:
        at_ns = time.time_ns()
        start = os.pread(self.main_fd, _HEADER_BYTES, 0)
        log, log_start = self._start("-wal", _LOG_HEADER_BYTES)
        journal, journal_start = self._start("-journal", 1)
        try:
            named = os.stat(self.name, dir_fd=self.folder_fd, follow_symlinks=False)
        except OSError as reason:
            raise _Not from reason
        main = _stat(os.fstat(self.main_fd))
        if not start.startswith(_MAGIC) or len(start) < _HEADER_BYTES or named.st_ino != main[0]:
            raise _Not
        hot = journal_start not in (b"", b"\0")
        return _Look(
            main=main, start=start, log=log, log_start=log_start, journal=journal, journal_hot=hot, at_ns=at_ns
        )

    def written(self) -> bool:
        """Whether anybody has a lock to write: asked, not tried."""
        begin, length = _LOCKS
        asked = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, begin, length, 0)
        told = fcntl.fcntl(self.main_fd, fcntl.F_GETLK, asked)
        return int(struct.unpack("hhqqi", told)[0]) != fcntl.F_UNLCK

    def _start(self, suffix: str, length: int) -> tuple[_Stat | None, bytes]:
        fd = self.file(suffix)
        if fd is None:
            return None, b""
        try:
            return _stat(os.fstat(fd)), os.pread(fd, length, 0)
        finally:
            os.close(fd)


class _Copy:
    """The copying of one database. `paths` and `rested` are of the attempt that succeeded."""

    def __init__(self, base: _Database, target_fd: int, differing: Callable[[list[bytes]], list[bytes]]) -> None:
        self._base = base
        self._target_fd = target_fd
        self._differing = differing
        self.paths: list[bytes] = []
        self.rested = False

    def attempt(self, *, until_s: float) -> bool:
        """Without any lock."""
        try:
            before = self._base.look()
            if before.written_log:
                return self._with_log(before, until_s=until_s)
            written = self._base.written()
            if not before.settled and (written or before.logged or before.journal_hot):
                # Only metadata could tell then, later.
                time.sleep(_GRAIN_NS / 1e9)
                before = self._base.look()
                written = self._base.written()
            self._fresh(self._copy_main(until_s=until_s), "-wal", "-journal", until_s=until_s)
            after_copy = self._base.look()
            if before.stats == after_copy.stats and before.settled:
                self.rested = True
                return True
            # From here on a writer was near: what is stored must not need a journal.
            if written or before.logged or before.journal_hot or self._base.written():
                return False
            if not self._same_again(until_s=until_s) or self._base.written():
                return False
            after = self._base.look()
            if after.journal_hot or after.logged or after.log is not None or before.log is not None:
                return False
            self._without("-journal")
            return (before.main, before.counter) == (after.main, after.counter)
        except _Not:
            return False

    def attempt_held(self, *, until_s: float) -> bool:
        """While another process holds it."""
        try:
            before = self._base.look()
            if before.logged and not (before.written_log and self._has("-shm")):
                return False  # a reader would make these files
            most_s = LOG_S if before.logged else SHARED_S
            with _held(self._base, most_s=most_s) as still_held:
                until_s = min(until_s, time.monotonic() + most_s)
                before = self._base.look()
                if before.logged:
                    # Of a log that was copied into the main file wholly a reader needs nothing: it may be begun anew once, but
                    # is then not copied any more, so the second attempt finds it as the first one left it.
                    return any(
                        now.written_log and self._with_log(now, until_s=until_s)
                        for now in (self._base.look() for _ in range(2))
                    )
                self._fresh(self._copy_main(until_s=until_s), until_s=until_s)
                same = self._base.look().main == before.main
                return still_held() and same
        except _Not:
            return False

    def _with_log(self, before: _Look, *, until_s: float) -> bool:
        main = self._base.path
        # Only now: what a checkpoint writes from here on is in the log that is copied next.
        new_main = self._copy_main(until_s=until_s) if self._differing([main]) else []
        self._fresh(new_main, "-wal", until_s=until_s)
        after = self._base.look()
        self.rested = before.stats == after.stats and before.settled
        return (
            after.written_log
            and after.log_start == before.log_start
            and before.log is not None
            and after.log is not None
            and (after.main[0], after.log[0]) == (before.main[0], before.log[0])
        )

    def _copy_main(self, *, until_s: float) -> list[bytes]:
        self._copy(self._base.main_fd, self._base.path, until_s=until_s)
        return [self._base.path]

    def _fresh(self, copied: list[bytes], *suffixes: str, until_s: float) -> None:
        """Copies these companions, too; the others are to be absent."""
        self.paths = copied
        for suffix in ("-wal", "-journal"):
            path = self._base.path + suffix.encode()
            self.paths.append(path)
            self._remove(path)
            fd = self._base.file(suffix) if suffix in suffixes else None
            if fd is not None:
                try:
                    self._copy(fd, path, until_s=until_s)
                finally:
                    os.close(fd)

    def _without(self, suffix: str) -> None:
        self._remove(self._base.path + suffix.encode())

    def _remove(self, path: bytes) -> None:
        try:
            os.unlink(path, dir_fd=self._target_fd)
        except FileNotFoundError:
            pass  # as it should be
        except NotADirectoryError as reason:
            raise _Not from reason

    def _copy(self, fd: int, path: bytes, *, until_s: float) -> None:
        parent, _, name = os.fsdecode(path).rpartition("/")
        folder_fd = files.open_folder_beneath(self._target_fd, parent, create=True)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            target_fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
        try:
            told = os.fstat(fd)
            free = os.fstatvfs(target_fd)
            if told.st_blocks * 512 > free.f_bavail * free.f_frsize // 2:
                raise _Not  # the bot needs the rest itself
            _copy_data(fd, target_fd, until_s=until_s)
            os.fchmod(target_fd, stat.S_IMODE(told.st_mode))
            os.utime(target_fd, ns=(told.st_mtime_ns, told.st_mtime_ns))
        finally:
            os.close(target_fd)

    def _same_again(self, *, until_s: float) -> bool:
        """Whether the main file is as it was copied: a transaction that was rolled back meanwhile leaves no other trace."""
        with open(files.open_beneath(self._target_fd, os.fsdecode(self._base.path)), "rb", buffering=0) as copy:
            at = 0
            while True:
                there, here = os.pread(self._base.main_fd, _PIECE_BYTES, at), os.pread(copy.fileno(), _PIECE_BYTES, at)
                if there != here or time.monotonic() > until_s:
                    return False
                if not here:
                    return True
                at += len(here)

    def _has(self, suffix: str) -> bool:
        fd = self._base.file(suffix)
        if fd is not None:
            os.close(fd)
        return fd is not None


@contextmanager
def _held(base: _Database, *, most_s: float) -> Iterator[Callable[[], bool]]:
    """Held for reading by a process without anything of ours; what is yielded says at the end whether it was all the time."""
    import subprocess  # seldom needed, and a start is the quicker without it

    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=f"/proc/self/fd/{base.folder_fd}",
        bufsize=0,
    )
    assert helper.stdin is not None
    assert helper.stdout is not None
    told, answers = helper.stdin.fileno(), helper.stdout.fileno()
    try:
        name = "".join(f"%{byte:02x}" for byte in os.fsencode(base.name))
        os.write(told, f"{most_s} {name}\n".encode())
        if not _answered(answers, b"h"):
            raise _Not

        def still_held() -> bool:
            os.write(told, b".")
            return _answered(answers, b"k")

        yield still_held
    except BrokenPipeError as reason:
        raise _Not from reason
    finally:
        helper.kill()
        helper.stdin.close()
        helper.stdout.close()
        helper.wait()


def _copy_data(fd: int, target_fd: int, *, until_s: float) -> None:
    """Holes stay holes."""
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as reason:
            if reason.errno != errno.ENXIO:
                raise
            break  # nothing but a hole, if anything, is left
        os.lseek(target_fd, at, os.SEEK_SET)
        sent = os.sendfile(target_fd, fd, at, _PIECE_BYTES)
        if not sent:
            break
        at += sent
        if time.monotonic() > until_s:
            raise _Not
    os.ftruncate(target_fd, max(at, os.fstat(fd).st_size))


def _answered(fd: int, expected: bytes) -> bool:
    return bool(select.select([fd], [], [], _ANSWER_S)[0]) and os.read(fd, 1) == expected


_ANSWER_S = 3.0
"""Starting an interpreter and waiting for a writer, on a busy machine."""


def _stat(told: os.stat_result) -> _Stat:
    return told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns
