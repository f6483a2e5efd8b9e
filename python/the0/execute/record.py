"""What a run leaves for others to read in THE0_RUN_DIR: `done`, the bot's exit code, and `exit.json`, who ended it and why.

A bot may write there too: its links are replaced, never followed, and nothing there is believed by us.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Literal

from the0 import files, names
from the0.execute.times import rfc3339
from the0.frozen import dataclass, replace

_RECORDS = 3
_RECORD_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `code` is what `execute` exits with."""

    by: Literal["bot", "runtime"]
    code: int
    reason: str
    bot_code: int | None = None
    """The bot's own exit code, 128+N for signal N; None where it never ran."""
    signal: int | None = None
    oom: bool = False
    stop_asked: bool = False
    """Whether somebody had asked for the end (SIGTERM, SIGINT)."""

    def overruled(self, *, code: int, reason: str) -> Outcome:
        """The same end of the bot, with something of ours gone wrong as well."""
        return replace(self, by="runtime", code=code, reason=f"{reason} (the bot: {self.reason})")


class RunFolder:
    """THE0_RUN_DIR of this run; made if it is missing. OSError where it cannot be used. Room for the records is set aside now, so
    that a bot which fills the disk, or its folder in memory, does not keep us from saying how it ended."""

    def __init__(self, path: str, *, keep_fenced: bool) -> None:
        self.path = path
        self._started = rfc3339()
        os.makedirs(path, exist_ok=True)
        with files.folder(path) as fd:
            for name in (names.DONE, names.EXIT_RECORD, *(() if keep_fenced else (names.FENCED,))):
                files.remove_tree(fd, name)
            self._room = _room(fd)

    def write(self, outcome: Outcome, *, instance: str) -> None:
        """Both files, `exit.json` first: whoever waits for `done` finds the other. Raises nothing: what cannot be written is
        said on stderr, and the exit code tells the most of it."""
        told = {
            "by": outcome.by,
            "code": outcome.code,
            "reason": outcome.reason,
            "bot_code": outcome.bot_code,
            "signal": outcome.signal,
            "oom": outcome.oom,
            "stop_asked": outcome.stop_asked,
            "instance": instance,
            "started": self._started,
            "ended": rfc3339(),
        }
        done = outcome.code if outcome.bot_code is None else outcome.bot_code
        try:
            os.makedirs(self.path, exist_ok=True)
            with files.folder(self.path) as fd:
                self._replace(fd, names.EXIT_RECORD, json.dumps(told).encode() + b"\n")
                self._replace(fd, names.DONE, f"{done}\n".encode())
        except OSError as reason:
            fault = files.disk_fault(reason, f"writing {names.EXIT_RECORD} and {names.DONE} to {self.path}")
            print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)
        except MemoryError:
            print(f"the0: {names.EXIT_RECORD} and {names.DONE}: no memory to write them.", file=sys.stderr, flush=True)

    def is_fenced(self) -> bool:
        return os.path.lexists(os.path.join(self.path, names.FENCED))

    def _replace(self, fd: int, name: str, data: bytes) -> None:
        # Each of the two files, and one more: a file that is written anew exists twice for a moment.
        if self._room:
            os.close(self._room.pop())
        try:
            files.write_atomic(fd, name, data, durable=False)
        except IsADirectoryError:
            files.remove_tree(fd, name)
            files.write_atomic(fd, name, data, durable=False)


def _room(folder_fd: int) -> list[int]:
    """Descriptors of files without a name that take the room of the records; as many as there is room for."""
    held: list[int] = []
    try:
        for _ in range(_RECORDS):
            held.append(files.open_nameless(folder_fd))
            files.write_all(held[-1], bytes(_RECORD_BYTES))
    except OSError:
        pass  # the disk is full already: what cannot be written then is said on stderr
    return held
