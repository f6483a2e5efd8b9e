"""Query processes that are kept for the next question: how many, for how long, and one question at a time for a bot.

They end in time, when another one needs the place, when memory runs out, and when nobody wants them any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import processes
from the0.orchestrate.warm_query import WarmQuery
from the0.sync.head import Stored

MOST: Final = 8
MOST_BYTES: Final = 512 << 20
"""Of all of them, with what we run beside each."""
LOOK_S: Final = 5.0
"""How often they are looked at, as long as there are any."""


@dataclass(slots=True)
class Kept:
    """One bot's."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    warm: WarmQuery | None = None
    counts: bool = False
    """Takes one of the places for processes that are kept."""
    config_hash: str = ""
    generation: int = 0
    stored: Stored | None = None
    """The HEAD that the process was started for, or a later one of the same content."""
    keep_s: float = 0.0
    used_s: float = 0.0
    """Monotonic."""
    unwanted: bool = False
    """Ends with the turn of whoever has it, or soon."""


class KeptQueries:
    """From any thread."""

    def __init__(self, *, is_current: Callable[[str, Kept], bool]) -> None:
        """`is_current`: whether the bot's state is still the one that the process has."""
        self._is_current = is_current
        self._lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        self.closed = False
        self._news = threading.Event()
        self._keeper: threading.Thread | None = None

    @contextmanager
    def turn(self, bot_id: str, *, deadline: float) -> Iterator[Kept]:
        """The bot's, whose questions others wait for meanwhile. Raises Fatal (TIMED_OUT)."""
        with self._lock:
            kept = self._kept.setdefault(bot_id, Kept())
            kept.users += 1
        try:
            if not kept.turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise Fatal(f"Bot {clip(bot_id)} was busy with other queries.", code=ExitCode.TIMED_OUT)
            try:
                yield kept
            finally:
                if kept.unwanted:
                    self.end(kept)
                kept.turn.release()
        finally:
            with self._lock:
                kept.users -= 1
                if not kept.users and kept.warm is None and self._kept.get(bot_id) is kept:
                    del self._kept[bot_id]

    def begin(
        self, kept: Kept, start: Callable[[], WarmQuery], *, config_hash: str, stored: Stored
    ) -> WarmQuery | None:
        """Starts one, by whoever has the bot's turn; None: there is no room for it. Raises Fault."""
        if not self._make_room(kept):
            return None
        begun = start()
        with self._lock:
            kept.warm, kept.config_hash, kept.stored = begun, config_hash, stored
            closed = self.closed
        if closed:
            self.end(kept)
            raise Fatal("This platform is ending and answers nothing any more.", code=ExitCode.STOPPED_EARLY)
        return begun

    def end(self, kept: Kept) -> None:
        """By whoever has the bot's turn. Idempotent."""
        warm = kept.warm
        if warm is not None:
            warm.end()
        with self._lock:
            kept.warm, kept.stored, kept.counts, kept.unwanted = None, None, False, False

    def look_after(self) -> None:
        """Has somebody end it in time."""
        with self._lock:
            if self._keeper is None and not self.closed:
                self._keeper = threading.Thread(target=self._keep, name="warm-queries", daemon=True)
                self._keeper.start()

    def keep_only(self, is_of: Callable[[str, str], bool]) -> None:
        """Ends those for which it is not so (bot, configuration); soon, and without waiting."""
        with self._lock:
            for bot_id, kept in self._kept.items():
                if kept.warm is not None and not is_of(bot_id, kept.config_hash):
                    kept.unwanted = True
        self._news.set()

    def drop(self, bot_id: str) -> None:
        """Ends what is kept of a bot, at once unless it is being asked."""
        with self._lock:
            kept = self._kept.get(bot_id)
            if kept is not None:
                kept.unwanted = True
        if kept is not None and kept.turn.acquire(blocking=False):
            try:
                self.end(kept)
            finally:
                kept.turn.release()

    def close(self) -> None:
        """Ends all. Idempotent."""
        with self._lock:
            self.closed = True
            warm = [kept.warm for kept in self._kept.values() if kept.warm is not None]
            keeper = self._keeper
        self._news.set()
        for each in warm:
            each.let_go()
        if keeper is not None:
            keeper.join()
        for each in warm:
            each.end()

    # --- how many ---------------------------------------------------------------------------------

    def _make_room(self, mine: Kept) -> bool:
        """Takes one of the places, if need be that of the process that nobody asked for the longest time."""
        while True:
            with self._lock:
                if self.closed:
                    return False
                if sum(each.counts for each in self._kept.values()) < MOST:
                    mine.counts = True
                    return True
            if not self._end_oldest():
                return False

    def _end_oldest(self) -> bool:
        """False: all of them are being asked."""
        with self._lock:
            idle = sorted(
                (each for each in self._kept.values() if each.warm is not None and not each.turn.locked()),
                key=lambda each: each.used_s,
            )
        for each in idle:
            if each.turn.acquire(blocking=False):
                try:
                    self.end(each)
                finally:
                    each.turn.release()
                return True
        return False

    # --- for how long -----------------------------------------------------------------------------

    def _keep(self) -> None:
        """Until nothing is kept any more."""
        try:
            while self._goes_on():
                self._news.wait(self._pause_s())
                self._news.clear()
                with self._lock:
                    found = list(self._kept.items())
                for bot_id, each in found:
                    if each.warm is not None and each.turn.acquire(blocking=False):
                        try:
                            if not self._is_worth_keeping(bot_id, each):
                                self.end(each)
                        finally:
                            each.turn.release()
                self._keep_to_memory()
        except BaseException:  # the next answer begins another one; the traceback goes to stderr
            with self._lock:
                self._keeper = None
            raise

    def _goes_on(self) -> bool:
        """Whoever is told False ends; whatever is kept from then on has another one."""
        with self._lock:
            for bot_id in [bot_id for bot_id, each in self._kept.items() if not each.users and each.warm is None]:
                del self._kept[bot_id]
            if not self.closed and any(each.warm is not None or each.users for each in self._kept.values()):
                return True
            self._keeper = None
            return False

    def _pause_s(self) -> float:
        with self._lock:
            idle = [each for each in self._kept.values() if each.warm is not None and not each.turn.locked()]
            ends = [each.used_s + each.keep_s for each in idle]
        return max(0.0, min([LOOK_S, *(end - time.monotonic() for end in ends)]))

    def _is_worth_keeping(self, bot_id: str, kept: Kept) -> bool:
        if kept.unwanted or kept.warm is None or kept.warm.child.poll() is not None:
            return False
        if time.monotonic() >= kept.used_s + kept.keep_s:
            return False
        return self._is_current(bot_id, kept)

    def _keep_to_memory(self) -> None:
        while True:
            with self._lock:
                pids = [each.warm.child.pid for each in self._kept.values() if each.warm is not None]
            if not pids:
                return
            used = sum(stat.memory_bytes for tree in processes.tree(pids).values() for stat in tree)
            if used <= MOST_BYTES or not self._end_oldest():
                return
