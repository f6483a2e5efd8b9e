"""Files that others may tamper with: written atomically, opened beneath a root, never through a link.

A bot shares its uid with the runtime, so every path that it can write may be a link, a FIFO, a device or
swapped while we look. Everything here goes part by part from a directory descriptor and refuses those.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from the0.errors import ExitCode, Fatal, clip

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_root(path: str) -> int:
    """A descriptor of a folder we were told of by settings; links in its path are the operator's own and followed."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_folder_beneath(root_fd: int, path: str, *, create: bool = False, mode: int = 0o755) -> int:
    """A descriptor of the folder `path` below root_fd; OSError (ELOOP, ENOTDIR) where a part is a link or no folder."""
    current = os.dup(root_fd)
    try:
        for part in _parts(path):
            if create:
                try:
                    os.mkdir(part, mode, dir_fd=current)
                except FileExistsError:
                    pass  # what it is, the open below finds out
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def open_beneath(root_fd: int, path: str, flags: int = os.O_RDONLY, *, mode: int = 0o644) -> int:
    """Opens the regular file `path` below root_fd: no link followed in any part, never blocking on a FIFO.
    OSError with errno ELOOP for a link, EINVAL for anything but a regular file."""
    parts = _parts(path)
    if not parts:
        raise OSError(errno.EINVAL, "an empty path names no file", path)
    folder = open_folder_beneath(root_fd, "/".join(parts[:-1]))
    try:
        fd = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def open_nameless(folder_fd: int) -> int:
    """A new file without a name on the disk of that folder, for reading and writing: gone when its descriptor is."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
    except OSError as failure:
        if failure.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    name = f".nameless.{os.urandom(6).hex()}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
    os.unlink(name, dir_fd=folder_fd)
    return fd


def read_beneath(root_fd: int, path: str, *, limit_bytes: int) -> bytes:
    """The whole regular file, at most limit_bytes (OSError EFBIG beyond)."""
    fd = open_beneath(root_fd, path)
    try:
        return read_fd(fd, limit_bytes=limit_bytes, path=path)
    finally:
        os.close(fd)


def read_fd(fd: int, *, limit_bytes: int, path: str = "") -> bytes:
    """From the current offset to the end, at most limit_bytes (OSError EFBIG beyond)."""
    pieces: list[bytes] = []
    left = limit_bytes + 1
    while left > 0:
        piece = os.read(fd, min(left, 1 << 20))
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", path)


def write_atomic(folder_fd: int, name: str, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replaces `name` in the folder by `data`: a reader sees the old bytes or the new, also after a crash.
    Whatever `name` was (a link too) is replaced, not followed. `durable` survives the host, too."""
    temporary = f".{name[:50]}.{os.urandom(6).hex()}.tmp"  # 50 characters are at most 200 bytes of the 255
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder_fd)
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=folder_fd)
        except OSError:
            pass  # the first error is the one to tell; a stray temporary file is harmless
        raise
    finally:
        os.close(fd)
    if durable:
        os.fsync(folder_fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def move(name: str, source_fd: int, target_fd: int) -> None:
    """Renames `name` from one folder into another of the same filesystem. A folder that its owner made read-only may
    not change its parent: it is made writable for the moment of the rename."""
    try:
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except PermissionError:
        mode = stat.S_IMODE(os.stat(name, dir_fd=source_fd, follow_symlinks=False).st_mode)
        _chmod(source_fd, name, mode | 0o700)
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        _chmod(target_fd, name, mode)


def disk_fault(reason: OSError, doing: str) -> Fatal:
    """An error of the local disk as a person should read it; `doing` completes "While …"."""
    where = os.fsdecode(reason.filename) if reason.filename is not None else ""
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space, or raise the quota",
        errno.EROFS: "mount it writable",
        errno.EACCES: "let this user write there",
        errno.EPERM: "let this user write there",
        errno.EMFILE: "raise the limit of open files",
        errno.ENFILE: "raise the limit of open files",
    }.get(reason.errno or 0, "look at the disk")
    place = f" ({clip(where)})" if where else ""
    return Fatal(
        f"While {doing}, the local disk failed: {reason.strerror or reason}{place}; {remedy}, then start again.",
        code=ExitCode.LOCAL_DISK,
    )


def remove_tree(folder_fd: int, name: str) -> None:
    """Removes `name` and all below it, following no link; a missing one is no error. Folders that their owner made
    unreadable are made readable first. Works at any depth: two descriptors at a time. OSError ENOTEMPTY where somebody
    fills the folder again meanwhile."""
    with _missing_is_fine():
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder_fd)
            return
        _empty_folder(folder_fd, name)
        os.rmdir(name, dir_fd=folder_fd)


def _empty_folder(folder_fd: int, name: str) -> None:
    # Folders found in subfolders are first lifted up beside `name`'s own entries, so that depth never grows.
    fd = _open_to_empty(folder_fd, name)
    try:
        while entries := _entries(fd):
            for entry, is_folder in entries:
                with _missing_is_fine():
                    if is_folder:
                        _lift_folders(fd, entry)
                        os.rmdir(entry, dir_fd=fd)
                    else:
                        os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)


def _lift_folders(fd: int, name: str) -> None:
    inner = _open_to_empty(fd, name)
    try:
        for entry, is_folder in _entries(inner):
            with _missing_is_fine():
                if not is_folder:
                    os.unlink(entry, dir_fd=inner)
                    continue
                try:
                    os.rmdir(entry, dir_fd=inner)
                except OSError:
                    # Moving a folder writes its `..`, for which its owner needs the right to write it.
                    _chmod(inner, entry, 0o700)
                    os.rename(entry, f".lifted-{os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=fd)
    finally:
        os.close(inner)


def _entries(fd: int) -> list[tuple[str, bool]]:
    """(name, is it a folder)"""
    with os.scandir(fd) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]


def _open_to_empty(folder_fd: int, name: str) -> int:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=folder_fd)
    except PermissionError:
        _chmod(folder_fd, name, 0o700)
        fd = os.open(name, _DIRECTORY, dir_fd=folder_fd)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _chmod(folder_fd: int, name: str, mode: int) -> None:
    # os.chmod would follow a link that somebody put there since we looked; Linux has no chmod that does not.
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        if stat.S_ISLNK(os.fstat(handle).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        os.chmod(f"/proc/self/fd/{handle}", mode)
    finally:
        os.close(handle)


@contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # somebody else removed it: as we wanted


@contextmanager
def folder(path: str) -> Iterator[int]:
    fd = open_root(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if path.startswith("/") or ".." in parts or "." in parts:
        raise OSError(errno.EINVAL, "not a path beneath its root", path)
    return parts
