"""What a service says while it runs: one short line each on a terminal, one JSON object each elsewhere.

Written by a thread of its own: whoever says something never waits for a reader, and bots go on where nobody reads at all.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import Any, Final, TextIO

from the0 import files
from the0.errors import clip

LINES: Final = 5000
"""So many may wait to be read; further ones are dropped, and counted."""
CLOSE_S: Final = 2.0
_DIM: Final = "\x1b[2m"
_END: Final = "\x1b[0m"
_COLOURS: Final = {
    "started": "\x1b[32m",
    "adopted": "\x1b[32m",
    "ended": "\x1b[33m",
    "not-started": "\x1b[31m",
    "trouble": "\x1b[31m",
    "missing": "\x1b[31m",
    "store": "\x1b[31m",
    "dropped": "\x1b[31m",
}


class News:
    """From any thread."""

    def __init__(self, out: TextIO) -> None:
        """`out` is a file of the system's, to which nobody else writes meanwhile."""
        self._fd = out.fileno()
        self._terminal = out.isatty()
        self._lines: queue.Queue[str | None] = queue.Queue(LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="news", daemon=True)
        self._thread.start()

    def __call__(self, event: str, message: str, *, bot: str | None = None, **fields: Any) -> None:
        try:
            self._lines.put_nowait(self._line(event, message, bot=bot, **fields))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """What was said is written, should somebody read it. Idempotent."""
        if self._thread.is_alive():
            try:
                self._lines.put(None, timeout=CLOSE_S)
            except queue.Full:
                return  # nobody reads
            self._thread.join(CLOSE_S)

    def _line(self, event: str, message: str, *, bot: str | None = None, **fields: Any) -> str:
        now_s = time.time()
        if self._terminal:
            return _for_a_person(event, message, bot=bot, now_s=now_s)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z"
        whose = {"bot": bot} if bot is not None else {}
        return json.dumps({"timestamp": stamp, "event": event, **whose, "message": message, **fields})

    def _write(self) -> None:
        line: str | None = ""
        while line is not None:
            line = self._lines.get()
            told = [line] if line is not None else []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                said = f"{dropped} lines were dropped here: nobody read them in time."
                told.append(self._line("dropped", said, count=dropped))
            try:
                files.write_all(self._fd, "".join(f"{each}\n" for each in told).encode("utf-8", "replace"))
            except OSError:
                pass  # its reader is gone, or its disk full, and bots must go on


def _for_a_person(event: str, message: str, *, bot: str | None, now_s: float) -> str:
    clock = f"{_DIM}{time.strftime('%H:%M:%S', time.localtime(now_s))}{_END}"
    if bot is None:
        return f"{clock}  {message}"
    said = f"  {clip(message, limit=300)}" if message else ""
    return f"{clock}  {clip(bot, limit=40):20}  {_COLOURS.get(event, '')}{event}{_END}{said}"
