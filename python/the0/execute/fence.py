"""Notices `<THE0_RUN_DIR>/fenced`, which a sync process in another container writes: without a timer, by inotify."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from the0.execute.loop import Loop
from the0.execute.record import RunFolder

LOOK_S = 2.0
_IN_CREATE_OR_MOVED_TO = 0x100 | 0x080
_IN_ONLYDIR = 0x01000000


def watch_fenced(loop: Loop, run_folder: RunFolder, fenced: Callable[[], None]) -> None:
    """Calls `fenced` when the file is there, now or later."""

    def look() -> None:
        if run_folder.is_fenced():
            fenced()

    fd = _watch(run_folder.path)
    if fd == -1:
        _look_often(loop, look)
    else:

        def changed() -> None:
            _drain(fd)
            look()

        loop.watch(fd, changed)
    look()


def _watch(path: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd == -1:
        return -1
    if libc.inotify_add_watch(fd, os.fsencode(path), _IN_CREATE_OR_MOVED_TO | _IN_ONLYDIR) == -1:
        os.close(fd)
        return -1
    return fd


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 65536):
            pass
    except BlockingIOError:
        pass  # drained


def _look_often(loop: Loop, look: Callable[[], None]) -> None:
    # Watches are scarce on some hosts; a fence is noticed a little later there.
    look()
    loop.after(LOOK_S, lambda: _look_often(loop, look))
