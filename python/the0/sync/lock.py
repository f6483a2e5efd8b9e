"""The lock on a state folder: one run of a bot at a time on this disk. It dies with the processes that hold it."""

from __future__ import annotations

import errno
import fcntl
import os

from the0 import files, names
from the0.errors import ExitCode, Fatal


def hold_lock(state_path: str) -> int:
    """Takes `<state_path>/.the0/lock`; the descriptor is the lock, and forked children share it (a program that is exec'd does not).

    Raises Fatal: RUNNING_HERE where it is held, LOCAL_DISK where the folder cannot be used.
    """
    try:
        os.makedirs(state_path, exist_ok=True)
        root = files.open_root(state_path)
        try:
            reserved = files.open_folder_beneath(root, names.RESERVED_DIR, create=True, mode=0o700)
            try:
                fd = files.open_beneath(reserved, names.LOCK, os.O_RDWR | os.O_CREAT, mode=0o600)
            finally:
                os.close(reserved)
        finally:
            os.close(root)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening the state folder {state_path}") from reason
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        os.close(fd)
        if reason.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise files.disk_fault(reason, f"locking the state folder {state_path}") from reason
        raise Fatal(
            f"A bot is already running on {state_path}: stop it first, or give this one a state folder of its own.",
            code=ExitCode.RUNNING_HERE,
        ) from reason
    return fd
