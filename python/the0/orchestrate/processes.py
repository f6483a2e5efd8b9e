"""Processes of this machine that need not be our children: who they are, when they end, what they use."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from the0.errors import ExitCode, Fatal

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Identity:
    """A pid is used again after its process has ended, and after every boot; all three together are not."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Stat:
    parent: int
    state: str
    """"Z": ended, not reaped yet."""
    start_ticks: int
    cpu_s: float
    memory_bytes: int


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(
        parent=int(fields[1]),
        state=fields[0].decode(),
        start_ticks=int(fields[19]),
        cpu_s=sum(int(each) for each in fields[11:15]) / _TICKS_S,
        memory_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def has_child(pid: int, name: str) -> bool:
    """Whether a process has a child that calls itself so."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as listed:
            children = listed.read().split()
        for child in children:
            with open(f"/proc/{int(child)}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name:
                    return True
    except OSError:
        pass  # one of them has just ended
    return False


def identify(pid: int) -> Identity | None:
    found = stat(pid)
    return Identity(pid=pid, start_ticks=found.start_ticks, boot_id=boot_id()) if found is not None else None


def open_pidfd(who: Identity) -> int | None:
    """A descriptor of the very process; readable when it ends. None where it has ended."""
    if who.boot_id != boot_id():
        return None
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return None
    found = stat(who.pid)  # after the open: now the pid cannot pass to another process unseen
    if found is None or found.start_ticks != who.start_ticks or found.state == "Z":
        os.close(fd)
        return None
    return fd


def send(pidfd: int, number: int) -> None:
    """One that has ended is no error."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # as wanted


def tree(roots: Iterable[int]) -> dict[int, list[Stat]]:
    """Each root's process and all its descendants, by one look through /proc."""
    every = {int(name): it for name in os.listdir("/proc") if name.isdigit() and (it := stat(int(name)))}
    wanted = set(roots)
    of: dict[int, int | None] = {}

    def root_of(pid: int) -> int | None:
        path: list[int] = []
        at: int | None = pid
        while at is not None and at not in of:
            if at in wanted:
                of[at] = at
                break
            path.append(at)
            here = every.get(at)
            at = here.parent if here is not None and here.parent != at else None
            if len(path) > 1000:
                break  # read while it changed
        root = of[at] if at is not None and at in of else None
        for each in path:
            of[each] = root
        return root

    found: dict[int, list[Stat]] = {}
    for pid, each in every.items():
        root = root_of(pid)
        if root is not None:
            found.setdefault(root, []).append(each)
    return found


class Watcher:
    """Waits for the end of processes in one thread; costs nothing while nothing ends."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ended: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="watch-processes", daemon=True)
        self._thread.start()

    def watch(self, pidfd: int, ended: Callable[[], None]) -> None:
        """Calls `ended` from the watcher's thread, once. The descriptor stays the caller's, who closes it after that only."""
        with self._lock:
            self._ended[pidfd] = ended
            try:
                self._epoll.register(pidfd, select.EPOLLIN)
            except OSError as reason:
                del self._ended[pidfd]
                raise Fatal(f"A process cannot be watched: {reason}.", code=ExitCode.INTERNAL) from reason

    def close(self) -> None:
        """Idempotent. No `ended` is called after it."""
        if self._closing:
            return
        self._closing = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if self._closing:
                    return
                with self._lock:
                    ended = self._ended.pop(fd, None)
                    if ended is not None:
                        self._epoll.unregister(fd)
                if ended is not None:
                    ended()
