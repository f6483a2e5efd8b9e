"""Seccomp: a process, and all that it starts, may set its own resource limits and read those of others, never set them.

A user may otherwise take memory, files and processes from every process of its own by prlimit(2), and a bot has our uid. Reading
limits and setting one's own (pid 0, which setrlimit(2) comes down to) stay as they are.
"""

from __future__ import annotations

import ctypes
import os
import struct

_SET_MODE_FILTER = 1
_SPEC_ALLOW = 1 << 2
"""Older kernels would switch mitigations on for a filtered process, which cost it a few percent."""

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PRLIMIT = {"x86_64": ((0xC000003E, 302), (0x40000003, 340)), "aarch64": ((0xC00000B7, 261), (0x40000028, 369))}
"""(architecture as the kernel names it, number of prlimit64), native and 32-bit: what a process may call in either way."""

_NUMBER, _ARCHITECTURE, _PID, _NEW_LIMIT, _NEW_LIMIT_HIGH = 0, 4, 16, 32, 36
"""Where a filter finds them; arguments are 64 bits wide, little-endian."""
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NOT_X32 = 0xFFFFFFFF ^ 0x40000000
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1
"""The latter: EPERM."""


def keep_to_own_limits() -> bool:
    """From now on, for good; whether this machine can do it. Needs no_new_privs; for a process with one thread."""
    machine = os.uname().machine
    if machine not in _SECCOMP:
        return False
    (native, its_number), (narrow, its_narrow_number) = _PRLIMIT[machine]
    allow, refuse = 14, 15
    lines = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 3, 2, native),
        (_EQUAL, 6, allow, narrow),
        (_LOAD, 0, 0, _NUMBER),
        (_AND, 0, 0, _NOT_X32),
        (_EQUAL, 8, allow, its_number),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 8, allow, its_narrow_number),
        (_LOAD, 0, 0, _PID),
        (_EQUAL, allow, 10, 0),
        (_LOAD, 0, 0, _NEW_LIMIT),
        (_EQUAL, 12, refuse, 0),
        (_LOAD, 0, 0, _NEW_LIMIT_HIGH),
        (_EQUAL, allow, refuse, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    )
    # Jumps are written as the line to go to; the kernel counts from the next one.
    filled = b"".join(
        struct.pack("=HBBI", code, *((yes - at - 1, no - at - 1) if code == _EQUAL else (0, 0)), value)
        for at, (code, yes, no, value) in enumerate(lines)
    )
    held = ctypes.create_string_buffer(filled)
    program = struct.pack("@HP", len(lines), ctypes.addressof(held))
    syscall = ctypes.CDLL(None).syscall
    syscall.restype = ctypes.c_long
    return bool(
        syscall(ctypes.c_long(_SECCOMP[machine]), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_SPEC_ALLOW), program)
        == 0
    )
