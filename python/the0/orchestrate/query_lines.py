"""Questions for a bot, one at a time and in the order of coming.

Whoever has had its turn asks the next one's question for it before doing anything else, so that the bot works while threads change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from the0 import asking
from the0.errors import ExitCode, Transient, clip

WAITING_FOR_ONE_BOT: Final = 32
"""Questions for one bot, the one that is being answered included; more are refused, so that one bot's slowness is its own."""

Begin = Callable[[], asking.Asked | None]
"""Asks without waiting for anything and without raising; None: whoever has the turn is to ask by itself."""


class LineTooLong(Transient):
    def __init__(self, bot_id: str) -> None:
        said = f"Bot {clip(bot_id)} answers one query at a time, and {WAITING_FOR_ONE_BOT} wait: ask again later."
        super().__init__(said, code=ExitCode.INTERNAL)


class QueryLines:
    """One for each bot that is being asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, list[_Place]] = {}

    @contextmanager
    def turn(self, bot_id: str, *, deadline: float, begin: Begin) -> Iterator[asking.Asked | None]:
        """What `begin` gave, if it was called. Raises LineTooLong, and asking.TooLate where the turn does not come before
        `deadline` (monotonic)."""
        mine = _Place(begin)
        with self._lock:
            line = self._lines.setdefault(bot_id, [])
            if len(line) >= WAITING_FOR_ONE_BOT:
                raise LineTooLong(bot_id)
            line.append(mine)
            mine.called = line[0] is mine
            first = mine.called
        if not first:
            self._wait(bot_id, mine, deadline)
        try:
            yield mine.begun
        finally:
            if mine.begun is not None:
                mine.begun.close()
            self._call_next(bot_id)

    def _wait(self, bot_id: str, mine: _Place, deadline: float) -> None:
        if mine.come.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return
        with self._lock:
            if not mine.called:
                self._lines[bot_id].remove(mine)
                raise asking.TooLate(f"Bot {clip(bot_id)} was busy with other queries.")
        mine.come.acquire()  # its question is just being asked, which waits for nothing

    def _call_next(self, bot_id: str) -> None:
        with self._lock:
            line = self._lines[bot_id]
            del line[0]
            if not line:
                del self._lines[bot_id]
                return
            called = line[0]
            called.called = True
        try:
            called.begun = called.begin()
        finally:
            called.come.release()


class _Place:
    """In a line."""

    __slots__ = ("begin", "begun", "called", "come")

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.begun: asking.Asked | None = None
        self.called = False
        """It is the first; guarded by the lines' lock."""
        self.come = threading.Lock()
        """Held until its turn has come."""
        self.come.acquire()
