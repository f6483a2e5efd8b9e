"""The lock on a state folder: one run of a bot at a time on this disk. It dies with the processes that hold it.

It is on the folder itself, which a bot cannot replace where it is a volume; a file in it could be replaced by another
one, with no lock. Only file systems that cannot lock folders (NFS) get the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from the0 import files, names
from the0.errors import ExitCode, Fatal

_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""NFS wants a file opened for writing (EBADF), others have no locks at all."""


DYING_S = 2.0
"""What a start grants the holder: processes that were killed hold the lock until the kernel is done with them."""
_LOOK_S = 0.02


def hold_lock(state_path: str, *, wait_s: float = 0.0) -> int:
    """The descriptor is the lock, and forked children share it (a program that is exec'd does not).

    Raises Fatal: RUNNING_HERE where it is held, LOCAL_DISK where the folder cannot be used.
    """
    try:
        os.makedirs(state_path, exist_ok=True)
        fd = files.open_root(state_path)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening the state folder {state_path}") from reason
    try:
        deadline = time.monotonic() + wait_s
        if not _lock(fd, state_path, deadline):
            folder, fd = fd, _open_file(fd, state_path)
            os.close(folder)
            if not _lock(fd, state_path, deadline):
                raise Fatal(
                    f"The file system of {state_path} knows no locks: use another one for state.",
                    code=ExitCode.LOCAL_DISK,
                )
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_free(state_path: str) -> bool:
    """Whether no run holds it. Where the folder cannot be used, or is not there, none can."""
    if not os.path.isdir(state_path):
        return True
    try:
        os.close(hold_lock(state_path))
    except Fatal as reason:
        return reason.code is not ExitCode.RUNNING_HERE
    return True


def _lock(fd: int, state_path: str, deadline: float) -> bool:
    """False where the file system does not lock such a thing. Where it is held, tries until `deadline` (monotonic)."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            if reason.errno in _NO_LOCKS:
                return False
            if reason.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise files.disk_fault(reason, f"locking the state folder {state_path}") from reason
            if time.monotonic() >= deadline:
                raise Fatal(
                    f"A bot is already running on {state_path}: stop it first, or give this one a state folder of its own.",
                    code=ExitCode.RUNNING_HERE,
                ) from reason
            time.sleep(_LOOK_S)
        else:
            return True


def _open_file(root_fd: int, state_path: str) -> int:
    try:
        reserved = files.open_folder_beneath(root_fd, names.RESERVED_DIR, create=True, mode=0o700)
        try:
            return files.open_beneath(reserved, names.LOCK, os.O_RDWR | os.O_CREAT, mode=0o600)
        finally:
            os.close(reserved)
    except OSError as reason:
        raise Fatal(
            f"{state_path}/{names.RESERVED_DIR}/{names.LOCK} cannot be opened ({reason.strerror}): it is the runtime's own; "
            "remove what stands there, then start again.",
            code=ExitCode.LOCAL_DISK,
        ) from reason
