"""The child that brings code and state: forked before the bot exists, gone before it runs; it answers with one line."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from the0 import child
from the0.errors import ExitCode, Fatal, Fault
from the0.frozen import dataclass

if TYPE_CHECKING:
    from threading import Event

    from the0.execute.loop import Loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What became of it. Claimed and failed both: the claim has to be given back."""

    fault: Fault | None = None
    claimed: bool = False
    epoch: int = 0
    wait_s: float = 0.0
    notes: tuple[str, ...] = ()
    generation: int = 0
    """What a query's state is."""

    def encode(self) -> bytes:
        told = {
            "fault": [self.fault.sentence, int(self.fault.code)] if self.fault is not None else None,
            "claimed": self.claimed,
            "epoch": self.epoch,
            "wait_s": self.wait_s,
            "notes": list(self.notes),
            "generation": self.generation,
        }
        return json.dumps(told).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Prepared:
        told: dict[str, Any] = json.loads(line)
        fault = told["fault"]
        return cls(
            fault=Fatal(fault[0], code=ExitCode(fault[1])) if fault is not None else None,
            claimed=told["claimed"],
            epoch=told["epoch"],
            wait_s=told["wait_s"],
            notes=tuple(told["notes"]),
            generation=told["generation"],
        )


Prepare = Callable[["Event"], Prepared]
"""Runs in the child; `stop` set means: leave off, there will be no bot."""


@dataclass(frozen=True, slots=True)
class Begun:
    forked: child.Forked
    answer_fd: int


def begin(prepare: Prepare, *, keep_fds: tuple[int, ...]) -> Begun:
    """Forks the child. OSError where that is not possible."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    forked = child.fork_child("prepare", lambda stop: _work(prepare, stop, write_fd), keep=(*keep_fds, write_fd))
    os.close(write_fd)
    return Begun(forked=forked, answer_fd=read_fd)


class Preparing:
    """Waits for the answer of what was begun."""

    def __init__(self, loop: Loop, begun: Begun) -> None:
        self._loop = loop
        self._forked = begun.forked
        self._read_fd = begun.answer_fd
        self._told = b""
        self._end: child.End | None = None
        loop.on_end(self._forked.pid, self._note_end)
        loop.watch(self._read_fd, self._listen)

    def wait(self, *, grace_s: float, until: float = float("inf")) -> Prepared:
        """Its answer. A stop that is asked for meanwhile is passed on, and enforced after the grace period; so is `until`
        (monotonic), without one. Fatal (STOPPED_EARLY, TIMED_OUT, INTERNAL) where there is none."""
        in_time = self._loop.run_until(lambda: self._answered() or self._loop.stop_asked, deadline=until)
        self._forked.ask_to_stop()
        deadline = (
            time.monotonic() + (grace_s if in_time else 0.0) if self._loop.stop_asked or not in_time else float("inf")
        )
        if not self._loop.run_until(self._answered, deadline=deadline):
            child.send_group(self._forked.pid, signal.SIGKILL)
            self._loop.run_until(self._answered)
        self._loop.watch(self._read_fd, None)
        os.close(self._read_fd)
        if self._told.endswith(b"\n"):
            return Prepared.decode(self._told)
        if self._loop.stop_asked:
            raise stopped_early()
        if not in_time:
            raise Fatal("Fetching code and state took longer than was allowed.", code=ExitCode.TIMED_OUT)
        raise Fatal(
            f"Fetching code and state ended with {self._end}: start the bot again, with more memory if that was the reason.",
            code=ExitCode.INTERNAL,
        )

    def _answered(self) -> bool:
        # Its exit, which may take a while after much work, need not be waited for.
        return self._end is not None or self._told.endswith(b"\n")

    def _note_end(self, end: child.End) -> None:
        if not self._told.endswith(b"\n"):
            self._listen()
        self._end = end

    def _listen(self) -> None:
        while True:
            try:
                piece = os.read(self._read_fd, 65536)
            except BlockingIOError:
                return
            if not piece:
                self._loop.watch(self._read_fd, None)
                return
            self._told += piece


def stopped_early() -> Fatal:
    return Fatal("A stop was asked for before the bot had started.", code=ExitCode.STOPPED_EARLY)


def _work(prepare: Prepare, stop: Event, write_fd: int) -> int:
    try:
        prepared = prepare(stop)
    except Fault as fault:
        prepared = Prepared(fault=fault)
    line = memoryview(prepared.encode())
    while line:
        line = line[os.write(write_fd, line) :]
    return 0
