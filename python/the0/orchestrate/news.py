"""What a service says while it runs: one short line each on a terminal, one JSON object each elsewhere."""

from __future__ import annotations

import json
import time
from typing import Any, Final, TextIO

from the0.errors import clip

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
}


class News:
    """From any thread. A reader that is gone is no trouble of the bots'."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()

    def __call__(self, event: str, message: str, *, bot: str | None = None, **fields: Any) -> None:
        now_s = time.time()
        line = _for_a_person(event, message, bot=bot, now_s=now_s)
        if not self._terminal:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z"
            whose = {"bot": bot} if bot is not None else {}
            line = json.dumps({"timestamp": stamp, "event": event, **whose, "message": message, **fields})
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more, and bots must go on


def _for_a_person(event: str, message: str, *, bot: str | None, now_s: float) -> str:
    clock = f"{_DIM}{time.strftime('%H:%M:%S', time.localtime(now_s))}{_END}"
    if bot is None:
        return f"{clock}  {message}"
    said = f"  {clip(message, limit=300)}" if message else ""
    return f"{clock}  {clip(bot, limit=40):20}  {_COLOURS.get(event, '')}{event}{_END}{said}"
