"""What a query process of stored state prints, on our stderr: as much as is useful there."""

from __future__ import annotations

import os
import time

from the0.execute.loop import Loop
from the0.execute.output import Echo, widen

SHOWN_BYTES = 1 << 20
"""How much of it is passed on."""
ECHO_S = 1.0


class Shown:
    """`write_fd` is the process' stdout and stderr."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._echo = Echo(loop, 2)
        self._left = SHOWN_BYTES
        self._read_fd, self.write_fd = os.pipe()
        widen(self._read_fd)
        loop.watch(self._read_fd, self._pump)

    def close(self) -> None:
        self._pump()
        self._loop.watch(self._read_fd, None)
        os.close(self._read_fd)
        os.close(self.write_fd)
        self._loop.run_until(lambda: self._echo.idle, deadline=time.monotonic() + ECHO_S)

    def _pump(self) -> None:
        try:
            data = os.read(self._read_fd, 1 << 16)
        except BlockingIOError:
            return
        if self._left > 0:
            self._echo.write(data[: self._left])
            self._left -= len(data)
            if self._left <= 0:
                self._echo.write(b"\nthe0: the query process prints more than is shown here.\n")
