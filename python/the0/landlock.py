"""Landlock: a process gives up writing below one folder, for itself and all that it starts, for good (Linux 6.2 and newer);
looking into all others (5.19); and signals to them (6.12).

Covers what files hold and which there are: opening for writing, truncating, making, removing, renaming, linking. Not
covered by the kernel: modes, times and extended attributes.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator, Sequence

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE = 1 << 1
_TRUNCATE = 1 << 14
_ON_FILES = _WRITE_FILE | _TRUNCATE
_ON_FOLDERS = sum(1 << bit for bit in range(4, 14))
"""Removing, making each kind of file, and (13) moving or linking into another folder."""
_WRITES = _ON_FILES | _ON_FOLDERS
_RENAME_ELSEWHERE = 1 << 13
_RENAMES_ABI = 2
"""The first that can permit that; without, whoever is confined cannot move files between folders."""

_OLDEST_ABI = 3
"""The first that knows of truncating: with less, a file could still be emptied."""
_SIGNALS_ABI = 6
"""The first that can keep signals in (Linux 6.12)."""
_SCOPE_SIGNAL = 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def available() -> bool:
    """Whether this kernel, and what confines us on it (a container's seccomp profile), let us use it."""
    return _abi() >= _OLDEST_ABI


def _abi() -> int:
    return int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION)))


def look_into_nobody() -> bool:
    """From now on this process, and what it starts, reads memory, environment and descriptors only of itself and what it starts, and
    traces nobody else, whoever runs as its user; whether this kernel can do that (Linux 5.19). It cannot mount any more; in the file system
    nothing else changes. Sets no_new_privs. OSError where the kernel refuses."""
    if _abi() < _RENAMES_ABI:
        return False
    # Whoever is confined at all cannot look into those who are not. So something is named, and permitted everywhere.
    attributes = struct.pack("=Q", _RENAME_ELSEWHERE)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)))
    try:
        _permit(ruleset, "/", on_folders=_RENAME_ELSEWHERE)
        _restrict(ruleset)
    finally:
        os.close(ruleset)
    return True


def keep_signals_in() -> bool:
    """From now on this process, and what it starts, signals only itself and what it starts; whether this kernel can do that. Sets
    no_new_privs. OSError where it refuses."""
    if _abi() < _SIGNALS_ABI:
        return False
    attributes = struct.pack("=QQQ", 0, 0, _SCOPE_SIGNAL)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)))
    try:
        _restrict(ruleset)
    finally:
        os.close(ruleset)
    return True


def forbid_writes(folder: str, *, but: Sequence[str] = ()) -> None:
    """From now on this process writes nothing below `folder`, except below the folders `but`. Sets no_new_privs.

    The kernel knows permissions only: all that lies beside the way from `/` to the folder is permitted. So nothing new can be made
    directly in the folders on that way, either. OSError where it is not available.
    """
    attributes = struct.pack("=Q", _WRITES)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)))
    try:
        for path in [*_beside(os.path.realpath(folder)), *but]:
            _permit(ruleset, path)
        _restrict(ruleset)
    finally:
        os.close(ruleset)


def _restrict(ruleset: int) -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))))
    _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)))


def _beside(folder: str) -> Iterator[str]:
    on_the_way = "/"
    for part in folder.split("/")[1:]:
        try:
            with os.scandir(on_the_way) as found:
                yield from [entry.path for entry in found if entry.name != part]
        except PermissionError:
            pass  # what we cannot list there stays forbidden
        on_the_way = os.path.join(on_the_way, part)


def _permit(ruleset: int, path: str, *, on_folders: int = _WRITES) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # it is gone
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):
            return  # what it leads to has a way of its own
        rights = on_folders if stat.S_ISDIR(mode) else _ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        _checked(
            _libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0)),
        )
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "landlock")
    return int(result)
