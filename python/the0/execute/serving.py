"""The query process that serves beside a bot, or alone in a sidecar: started, heard, started again when it ends, stopped.

Whatever becomes of it, the bot goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Literal

from the0 import child, landlock
from the0.errors import ExitCode, Fatal, Fault
from the0.execute import target
from the0.execute.languages import Language
from the0.execute.loop import Loop
from the0.execute.output import PIPE_BYTES, widen
from the0.frozen import dataclass

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
HEALTHY_S = 60.0
"""After so long a life the pauses begin anew."""
LINE_BYTES = 64 << 10
"""A longer line of the query process's is cut."""

Say = Callable[..., None]
"""`say(message, level=…)`: one line of our own in the bot's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A query entrypoint, and all that it takes to start it."""

    language: Language
    argv: list[str]
    environment: Mapping[str, str]
    folder: str
    """CODE_PATH: its working directory."""
    file: str
    """The entrypoint's path below `folder`."""
    state: str
    """STATE_PATH, which it must not write."""
    writable: str | None = None
    """A throw-away copy of state which it may write: a folder below `state`, or that itself."""
    confine: Callable[[], None] | None = None
    """Called in its process, last before its program."""

    def spawn(self, output_fd: int) -> child.Spawned:
        """Raises Fatal (ENTRYPOINT, INTERNAL)."""
        row = self.language
        target.check(self.folder, self.file, executable=row.executable, folders=row.folders)
        try:
            spawned = child.spawn(
                self.argv,
                env=self.environment,
                folder=self.folder,
                output_fd=output_fd,
                confine=self._confine,
            )
            failure = child.exec_failure(spawned)
        except OSError as reason:
            raise Fatal(
                f"No process can be started for the query: {reason.strerror}; raise this user's or container's limits.",
                code=ExitCode.INTERNAL,
            ) from reason
        if failure is not None:
            raise Fatal(
                f"The query process cannot be started: {self.argv[0]}: {target.not_started(self.argv[0], failure)}.",
                code=ExitCode.ENTRYPOINT,
            )
        return spawned

    def _confine(self) -> None:
        if self.confine is not None:
            self.confine()
        if self.writable != self.state and landlock.available() and os.path.isdir(self.state):
            landlock.forbid_writes(self.state, but=() if self.writable is None else (self.writable,))
        # Not the bot that it is asked about, nor us. Where the kernel cannot, they share a user, as all that a bot starts does.
        landlock.keep_signals_in()


def guarded_by() -> Literal["kernel", "sdk"]:
    """What keeps a query that is served beside a running bot from changing its state: the kernel (Landlock), or only the SDK,
    whose `state` is read-only in a query. An ephemeral query has a copy that is thrown away, here and there."""
    return "kernel" if landlock.available() else "sdk"


class Serving:
    """Keeps one query process going, from `start` to `stop`."""

    def __init__(self, loop: Loop, program: Program, *, heard: Callable[[bytes], None], say: Say) -> None:
        """`heard` takes what it prints, in whole lines."""
        self.failure: Fault | None = None
        """Why it can never be started, as the code is."""
        self._loop = loop
        self._program = program
        self._say = say
        self._lines = _Lines(heard)
        self._read_fd, self._write_fd = os.pipe()
        widen(self._read_fd)
        loop.watch(self._read_fd, self._pump)
        self._pause_s = FIRST_PAUSE_S
        self._begun = 0.0
        self._stopping = False

    def start(self) -> None:
        if self._stopping:
            return
        try:
            spawned = self._program.spawn(self._write_fd)
        except Fault as fault:
            if fault.code == ExitCode.INTERNAL:
                self._again(fault.sentence)
            else:
                # As long as the code is what it is, another try would fail as well.
                self.failure = fault
                self._say(f"No queries are served: {fault.sentence}", level="error")
            return
        self._begun = time.monotonic()
        self._loop.on_end(spawned.pid, lambda end: self._ended(spawned.pid, end))

    def stop(self) -> None:
        """Starts it no more: whoever ends what is left of a run (`end_strays`) ends it, too."""
        self._stopping = True

    def close(self) -> None:
        """Once it has ended."""
        self._pump()
        self._lines.finish()
        self._loop.watch(self._read_fd, None)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _ended(self, pid: int, end: child.End) -> None:
        try:
            os.killpg(pid, signal.SIGKILL)  # what it left of itself would keep the port
        except (ProcessLookupError, PermissionError):
            pass  # nothing, or another user's
        if self._stopping:
            return
        if time.monotonic() - self._begun >= HEALTHY_S:
            self._pause_s = FIRST_PAUSE_S
        self._again(f"The query process ended with {end}.")

    def _again(self, sentence: str) -> None:
        self._say(f"{sentence} It is started again in {self._pause_s:g} s; the bot goes on.", level="warn")
        self._loop.after(self._pause_s, self.start)
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)

    def _pump(self) -> None:
        try:
            data = os.read(self._read_fd, PIPE_BYTES)
        except BlockingIOError:
            return
        self._lines.take(data)


class _Lines:
    """Cuts what is printed into whole lines."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self._heard = heard
        self._begun = bytearray()

    def take(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            self._heard(bytes(self._begun) + data[:end])
            self._begun.clear()
        self._begun += data[end:]
        if len(self._begun) >= LINE_BYTES:
            self.finish()

    def finish(self) -> None:
        if self._begun:
            self._heard(bytes(self._begun) + b"\n")
            self._begun.clear()
