"""Files that others may tamper with: written atomically, opened beneath a root, never through a link.

A bot shares its uid with the runtime, so every path that it can write may be a link, a FIFO, a device or
swapped while we look. Everything here goes part by part from a directory descriptor and refuses those.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager

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
    temporary = f".{name[:200]}.{secrets.token_hex(6)}.tmp"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder_fd
    )
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
        os.chmod(name, mode | 0o700, dir_fd=source_fd)
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        os.chmod(name, mode, dir_fd=target_fd)


def remove_tree(folder_fd: int, name: str) -> None:
    """Removes `name` and all below it, following no link; a missing one is no error. Folders that their owner made
    unreadable are made readable first. Works at any depth: one descriptor at a time."""
    try:
        info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=folder_fd)
        return
    _empty_folder(folder_fd, name)
    os.rmdir(name, dir_fd=folder_fd)


def _empty_folder(folder_fd: int, name: str) -> None:
    # Subfolders found below are first lifted up beside `name`'s own entries, so that depth never grows.
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=folder_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=folder_fd)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
        while True:
            with os.scandir(fd) as found:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
            if not entries:
                return
            for entry, is_folder in entries:
                if not is_folder:
                    os.unlink(entry, dir_fd=fd)
                else:
                    _lift_folders(fd, entry)
                    os.rmdir(entry, dir_fd=fd)
    finally:
        os.close(fd)


def _lift_folders(fd: int, name: str) -> None:
    try:
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=fd)
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
    try:
        if os.fstat(inner).st_mode & 0o700 != 0o700:
            os.fchmod(inner, 0o700)
        with os.scandir(inner) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        for entry, is_folder in entries:
            if not is_folder:
                os.unlink(entry, dir_fd=inner)
                continue
            try:
                os.rmdir(entry, dir_fd=inner)
            except OSError:
                os.chmod(entry, 0o700, dir_fd=inner)
                os.rename(entry, f".lifted-{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=fd)
    finally:
        os.close(inner)


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
