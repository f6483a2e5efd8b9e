"""Where the folder store keeps one key on the disk, and how its file is replaced, extended and removed there.

Knows descriptors, sidecars and locks; raises OSError and the errors below, which `folder.py` turns into sentences.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import blake2b

from the0 import files
from the0.frozen import dataclass
from the0.objects import sidecar
from the0.objects.sidecar import Record, Sidecar

RESERVED = ".the0-meta"
"""Below each bucket: `side/` what is known of objects, `tmp/` files on their way, `locks/`."""
RACES = 1000
"""How often a race is run again: each one lost means that another writer got on."""
_LOCK_WAIT_S = 20.0


class InTheWayError(Exception):
    """The key is also the beginning of other keys, or the other way round."""


class LockedError(Exception):
    """Another process holds the key's lock for too long."""


class RestlessError(Exception):
    """The object, or the folders above it, changed at every look."""


@dataclass(frozen=True, slots=True)
class Look:
    fd: int
    record: Record
    status: os.stat_result
    """By which the record was found."""


@dataclass(frozen=True, slots=True)
class Place:
    """One key of one bucket whose folder is open."""

    bucket_fd: int
    key: str

    @property
    def parent(self) -> str:
        return self.key.rpartition("/")[0]

    @property
    def leaf(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def digest(self) -> str:
        return blake2b(self.key.encode(), digest_size=16).hexdigest()

    # --- Reading, without a lock -----------------------------------------------------------------

    def open(self, flags: int = os.O_RDONLY) -> int | None:
        """None where there is nothing, or a folder. OSError (ELOOP, EINVAL) for links, also above, and special files."""
        try:
            return files.open_beneath(self.bucket_fd, self.key, flags)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except NotADirectoryError:
            self._refuse_links()
            return None
        except OSError as reason:
            if reason.errno == errno.EINVAL:
                with suppress(OSError):
                    os.close(files.open_folder_beneath(self.bucket_fd, self.key))
                    return None
            raise

    def look(self, flags: int = os.O_RDONLY) -> Look | None:
        """The object as it is at one moment, opened; the caller closes it. None where there is none.

        A writer writes the sidecar before it touches the file. So a file that no record names is a person's only if
        the sidecar is the same before it was opened and after: else another writer got in between.
        """
        before = self.sidecar()
        for _ in range(RACES):
            fd = self.open(flags)
            if fd is None:
                return None
            status = os.fstat(fd)
            found = before.find(status) if before else None
            if found:
                return Look(fd, found, status)
            try:
                after = self.sidecar()
            except BaseException:
                os.close(fd)
                raise
            if after == before:
                return Look(fd, sidecar.dropped(status), status)
            os.close(fd)
            before = after
        raise RestlessError

    def unchanged(self, look: Look) -> bool:
        """Whether what was read since is of one piece: nothing moved, or only bytes of ours were appended."""
        now = os.fstat(look.fd)
        if (now.st_size, now.st_mtime_ns) == (look.status.st_size, look.status.st_mtime_ns):
            return True
        known = self.sidecar()
        return known is not None and known.find(now) is not None

    def sidecar(self) -> Sidecar | None:
        try:
            with self._side() as fd:
                data = files.read_beneath(fd, self.digest, limit_bytes=sidecar.LIMIT_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return sidecar.decode(data, key=self.key)

    # --- Writing, under the key's lock -----------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Between processes and threads: each call opens the lock file anew. Raises LockedError."""
        with self._reserved("locks") as fd:
            lock = os.open(self.digest[:2], os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=fd)
        try:
            _wait_for(lock)
            try:
                self._recover()
                yield
            finally:
                # Not left to close: a child that another thread forked meanwhile shares the descriptor.
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    @contextmanager
    def temporary(self) -> Iterator[tuple[int, str]]:
        """A new file in `tmp/`: its descriptor and name. Removed at the end unless it was renamed away."""
        with self._reserved("tmp") as folder:
            name = os.urandom(12).hex()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o644, dir_fd=folder)
            try:
                yield fd, name
            finally:
                os.close(fd)
                with suppress(OSError):  # renamed away; or a stray one, swept after an hour
                    os.unlink(name, dir_fd=folder)

    def replace(self, fd: int, name: str, *, etag: str, metadata: dict[str, str]) -> None:
        """Puts the temporary file, whole and on the disk, in the key's place. The sidecar written before knows the
        object as it is and as it will be, so that a crash in between costs neither its record."""
        coming = sidecar.record_of(os.fstat(fd), etag=etag, metadata=metadata)
        self._write_sidecar(Sidecar(self.key, (*self._current(), coming)))
        with self._reserved("tmp") as folder:
            for _ in range(RACES):
                try:
                    parent = self._make_parent()
                except FileNotFoundError:
                    continue  # a delete nearby has just removed a folder that it had emptied
                try:
                    os.rename(name, self.leaf, src_dir_fd=folder, dst_dir_fd=parent)
                    os.fsync(parent)
                    return
                except FileNotFoundError:
                    continue
                except IsADirectoryError:
                    try:
                        os.rmdir(self.leaf, dir_fd=parent)  # an empty one is in nobody's way
                    except OSError:
                        raise InTheWayError from None
                finally:
                    os.close(parent)
        raise RestlessError

    def append(self, look: Look, view: memoryview, *, etag: str, metadata: dict[str, str]) -> None:
        """Adds to the file in place. Readers see the former object until the last sidecar is written."""
        fd, base = look.fd, look.record
        self._write_sidecar(Sidecar(self.key, (base,), appending=True))
        try:
            os.lseek(fd, base.size, os.SEEK_SET)
            files.write_all(fd, view)
            os.fsync(fd)
        except OSError:
            self._recover()
            raise
        self._write_sidecar(Sidecar(self.key, (sidecar.record_of(os.fstat(fd), etag=etag, metadata=metadata),)))

    def remove(self) -> None:
        """The object, its sidecar, and the folders that are empty then."""
        try:
            parent = files.open_folder_beneath(self.bucket_fd, self.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            os.unlink(self.leaf, dir_fd=parent)
            os.fsync(parent)
        except (FileNotFoundError, IsADirectoryError):
            return
        finally:
            os.close(parent)
        # One that a crash leaves behind names a file that is gone, and so counts for no later one.
        with suppress(FileNotFoundError), self._side() as fd:
            os.unlink(self.digest, dir_fd=fd)
        above = self.parent
        while above:
            outer, _, name = above.rpartition("/")
            try:
                with _folder(self.bucket_fd, outer) as fd:
                    os.rmdir(name, dir_fd=fd)
            except OSError:
                return  # not empty, or gone already: nothing is left to do
            above = outer

    def _recover(self) -> None:
        """Cuts off what an append that did not end has left; the object is the former one before and afterwards."""
        known = self.sidecar()
        if known is None or not known.appending:
            return
        fd = self.open(os.O_RDWR)
        if fd is None:
            return
        try:
            base = known.find(os.fstat(fd))
            if base:
                os.ftruncate(fd, base.size)
                os.fsync(fd)
                record = sidecar.record_of(os.fstat(fd), etag=base.etag, metadata=base.metadata)
                self._write_sidecar(Sidecar(self.key, (record,)))
        finally:
            os.close(fd)

    def _refuse_links(self) -> None:
        """The kernel calls a link amid a path no folder, as it does a file: but a link must not pass for nothing."""
        parts = self.key.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            try:
                mode = os.stat(above, dir_fd=self.bucket_fd, follow_symlinks=False).st_mode
            except (FileNotFoundError, NotADirectoryError):
                return
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), above)

    def _current(self) -> tuple[Record, ...]:
        try:
            found = self.look()
        except OSError as reason:
            if reason.errno in (errno.ELOOP, errno.EINVAL):
                return ()  # a link or a device: the rename replaces it
            raise
        if found is None:
            return ()
        os.close(found.fd)
        return (found.record,)

    def _make_parent(self) -> int:
        """The descriptor of the key's folder, made and on the disk. FileNotFoundError where one just goes away."""
        current = os.dup(self.bucket_fd)
        try:
            for part in self.parent.split("/") if self.parent else ():
                try:
                    os.mkdir(part, dir_fd=current)
                    os.fsync(current)
                except FileExistsError:
                    pass  # what it is, the open below finds out
                try:
                    following = files.open_folder_beneath(current, part)
                except NotADirectoryError:
                    self._refuse_links()
                    raise InTheWayError from None
                os.close(current)
                current = following
        except BaseException:
            os.close(current)
            raise
        return current

    def _write_sidecar(self, content: Sidecar) -> None:
        with self._side(create=True) as fd:
            files.write_atomic(fd, self.digest, sidecar.encode(content))

    def _side(self, *, create: bool = False) -> AbstractContextManager[int]:
        return _folder(self.bucket_fd, f"{RESERVED}/side/{self.digest[:2]}", create=create)

    def _reserved(self, name: str) -> AbstractContextManager[int]:
        return _folder(self.bucket_fd, f"{RESERVED}/{name}", create=True)


def sweep(bucket_fd: int, *, older_than_s: float) -> None:
    """Removes what writers that were killed have left in `tmp/`."""
    limit = time.time() - older_than_s
    with suppress(FileNotFoundError), _folder(bucket_fd, f"{RESERVED}/tmp") as fd, os.scandir(fd) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(entry.name, dir_fd=fd)


def pieces(fd: int, size: int, *, piece_bytes: int = 1024 * 1024) -> Iterator[bytes]:
    """The first `size` bytes, fewer where the file ends before."""
    offset = 0
    while offset < size:
        piece = os.pread(fd, min(piece_bytes, size - offset), offset)
        if not piece:
            return
        offset += len(piece)
        yield piece


def _wait_for(lock: int) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    pause_s = 0.0005
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockedError from None
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.02)


@contextmanager
def _folder(root_fd: int, path: str, *, create: bool = False) -> Iterator[int]:
    fd = files.open_folder_beneath(root_fd, path, create=create)
    try:
        yield fd
    finally:
        os.close(fd)
