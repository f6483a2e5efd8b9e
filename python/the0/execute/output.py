"""What the bot prints: from its pipe into its log, and to our own stdout as far as that keeps up."""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
from typing import Protocol

from the0.execute.loop import Loop
from the0.execute.times import rfc3339

PIPE_BYTES = 256 * 1024
ECHO_PENDING_BYTES = 1024 * 1024
INSERTED_BYTES = 1024 * 1024
"""How much of others' lines waits for the end of a line of the bot's; more is dropped."""
_PIECE_BYTES = 4096
"""What a pipe that polls writable takes without blocking (PIPE_BUF)."""


class Log(Protocol):
    """The bot's log on this machine; `sync.botlog.BotLogWriter` is one."""

    def write(self, data: bytes) -> None: ...
    def say(self, message: str, *, level: str = "error") -> None: ...
    def close(self) -> None: ...


class Output:
    """Reads the bot's pipe at its end `read_fd`."""

    def __init__(self, loop: Loop, read_fd: int, *, log: Log, echo_fd: int) -> None:
        self.closed = False
        """Whether every process that could print has closed the pipe."""
        self.heard = False
        """Whether the bot has printed anything."""
        self._loop = loop
        self._log = log
        self._echo = Echo(loop, echo_fd)
        self._read_fd = read_fd
        self._mid_line = False
        self._inserted = bytearray()
        widen(read_fd)
        loop.watch(self._read_fd, self._pump)

    @property
    def echoed(self) -> bool:
        """Whether nothing waits to be echoed."""
        return self._echo.idle

    def abandon(self) -> None:
        """Takes what is there and reads no more."""
        self._pump()
        self._finish()

    def _pump(self) -> None:
        if self.closed:
            return
        try:
            data = os.read(self._read_fd, PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._finish()
            return
        self.heard = True
        self._mid_line = not data.endswith(b"\n")
        self._take(data)
        self._take_inserted()

    def insert(self, lines: bytes) -> None:
        """Takes whole lines of somebody else's, as soon as the bot is between two lines of its own."""
        if len(self._inserted) + len(lines) <= INSERTED_BYTES:
            self._inserted += lines
        if not self._mid_line:
            self._take_inserted()

    def _take_inserted(self) -> None:
        if self._inserted and not self._mid_line:
            lines, self._inserted = bytes(self._inserted), bytearray()
            self._take(lines)

    def _take(self, data: bytes) -> None:
        try:
            self._log.write(data)
        except OSError as failure:
            # The bot must go on: its output is lost here, the echo below may still have it.
            print(f"the0: the bot's log cannot be written: {failure}.", file=sys.stderr, flush=True)
        self._echo.write(data)

    def _finish(self) -> None:
        if not self.closed:
            if self._inserted and self._mid_line:
                self._mid_line = False
                self._take(b"\n")
            self._take_inserted()
            self.closed = True
            self._loop.watch(self._read_fd, None)
            os.close(self._read_fd)
            self._echo.flush()


def widen(read_fd: int) -> None:
    """Readies a pipe's end for a loop: it never blocks, and much fits in."""
    try:
        fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the user's limit on pipe memory: a smaller pipe works as well
    os.set_blocking(read_fd, False)


class Echo:
    """Best effort: never blocks, and drops what its reader does not take."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._pending = bytearray()
        self._dropped = 0
        self._ready = select.poll()
        self._ready.register(fd, select.POLLOUT)

    @property
    def idle(self) -> bool:
        return not self._pending

    def write(self, data: bytes) -> None:
        room = ECHO_PENDING_BYTES - len(self._pending)
        if self._dropped or len(data) > room:
            # Whole lines only, so that what is echoed later begins with a line.
            kept = data.rfind(b"\n", 0, max(room, 0)) + 1 if not self._dropped else 0
            self._dropped += len(data) - kept
            data = data[:kept]
        self._pending += data
        self.flush()

    def flush(self) -> None:
        """Writes what can be written now, and the rest when the loop sees that it can be."""
        stuck = False
        while self._pending and not stuck:
            stuck = not self._write_piece()
            if not self._pending and self._dropped:
                self._pending += _dropped_line(self._dropped)
                self._dropped = 0
        self._loop.watch(self._fd, None, writable=self.flush if self._pending else None)

    def _write_piece(self) -> bool:
        if not self._ready.poll(0):
            return False
        try:
            written = os.write(self._fd, memoryview(self._pending)[:_PIECE_BYTES])
        except BlockingIOError:
            return False
        except OSError:
            # Nobody reads any more (a closed pipe, a full disk): the log has it all.
            self._pending.clear()
            self._dropped = 0
            return True
        del self._pending[:written]
        return True


def _dropped_line(dropped: int) -> bytes:
    said = f"{dropped} bytes of output are missing here, since nobody read them in time; the bot's log has them"
    line = {"timestamp": rfc3339(), "level": "warn", "message": said}
    return json.dumps(line).encode() + b"\n"
