"""One call in a child that exits: what it loads and allocates goes with it, and stays out of a process that lives long.

The parent may have threads. The child is forked without exec (so it stays as closed to a bot as its parent is), runs
nothing but the call, and holds no descriptor but its pipe: no lock of ours lives on in it. A child that got caught in
a lock of a thread that it does not have is killed when its time is over, which is reported like a silent store.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

from the0.errors import ExitCode, Fault
from the0.objects import store
from the0.objects.store import Unavailable

_FAULTS: Final[tuple[type[Fault], ...]] = (
    store.Missing,
    store.PreconditionFailed,
    store.Denied,
    store.TooLarge,
    store.Unsuitable,
    store.Refused,
    store.LocalDisk,
)


def in_child(act: Callable[[], str], *, doing: str, timeout_s: float) -> str:
    """What `act` returns, or the Fault that it raises; any other end of the child is Unavailable: `act` may have had its
    effect. `doing` is the subject of that sentence."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(act, write_fd)
    os.close(write_fd)
    try:
        told = _read_all(read_fd, deadline_s=time.monotonic() + timeout_s)
    finally:
        os.close(read_fd)
        if not _ended(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return _result(told, doing=doing)


def _run(act: Callable[[], str], write_fd: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.closerange(3, write_fd)
        os.closerange(write_fd + 1, os.sysconf("SC_OPEN_MAX"))
        try:
            told: dict[str, object] = {"result": act()}
        except Fault as reason:
            told = {"fault": type(reason).__name__, "sentence": reason.sentence, "code": int(reason.code)}
        os.write(write_fd, json.dumps(told).encode())
        code = 0
    finally:
        os._exit(code)  # no handler, buffer or finaliser of the parent's runs here


def _read_all(fd: int, *, deadline_s: float) -> bytes:
    told = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while (left_s := deadline_s - time.monotonic()) > 0 and poll.poll(left_s * 1000):
        piece = os.read(fd, 65536)
        if not piece:
            break
        told += piece
    return told


def _ended(pid: int) -> bool:
    """Waits a little for a child that has said all."""
    for pause_s in (0.0, 0.001, 0.01, 0.1):
        time.sleep(pause_s)
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True  # reaped by a loop that reaps all
    return False


def _result(told: bytes, *, doing: str) -> str:
    try:
        said = json.loads(told)
    except ValueError:
        raise Unavailable(f"{doing} was given up: its child process ended or stood still; it is tried again.") from None
    if "result" in said:
        return str(said["result"])
    for kind in _FAULTS:
        if kind.__name__ == said["fault"]:
            raise kind(said["sentence"], code=ExitCode(said["code"]))
    raise Unavailable(said["sentence"])
