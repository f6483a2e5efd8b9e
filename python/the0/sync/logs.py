"""Ships one bot's lines: from bot.log into the spool, from the spool into pieces, from pieces into the day's object.

A line is in the store within 5 s of being printed. What the store cannot take waits in the spool; when that is full,
bot.log waits, and what its rotation drops is counted and said.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from the0 import names, threads
from the0.errors import Fault, clip
from the0.objects.store import ObjectStore
from the0.sync import lines, spool
from the0.sync.collector import Collector
from the0.sync.day_log import ORPHAN_EPOCH, DayLogs
from the0.sync.spool import Spool

TICK_S: Final = 1.0
"""How often bot.log is looked at."""
PIECE_AGE_S: Final = 2.0
"""Lines that wait for so long are shipped, however few."""
PIECES_A_PASS: Final = 8
LOOK_AGAIN_S: Final = 60.0
"""After the start: by then a predecessor that had not noticed its end yet has written its last piece."""
WORTH_SAYING_S: Final = 10.0
"""An outage that was shorter is nobody's business."""
RETRY_S: Final = 1.0
RETRY_AT_MOST_S: Final = 30.0


class LogShipper:
    """Only the claim's holder has one. `one_pass`, `run` and `finish` are for one thread at a time; `say` and `fence` for
    any. Nothing raises for a store or a disk that fails: that is tried again, and `trouble` says it."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        bucket: str,
        bot_id: str,
        logs_path: str,
        spool_path: str,
        epoch: int,
        clock: Callable[[], float] = time.time,
        spool_limit_bytes: int = spool.LIMIT_BYTES,
    ) -> None:
        """`epoch` is the claim's; `clock` gives Unix seconds: the days and the times of lines."""
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._clock = clock
        self._spool = Spool(spool_path, limit_bytes=spool_limit_bytes)
        self._collector = Collector(self._spool, logs_path=logs_path, epoch=epoch)
        self._days = DayLogs(store, bucket=bucket, bot_id=bot_id)
        self._fenced = threading.Event()
        self._begun_s = clock()
        self._looked_day = ""
        self._looked_again = False
        self._stepping: str | None = None
        self._beside: threading.Thread | None = None
        """A step that takes long: lines go on being shipped meanwhile."""
        self._collecting = _Attempts()
        self._shipping = _Attempts()
        self._consolidating = _Attempts()

    @property
    def trouble(self) -> str | None:
        """Why lines are not on their way for now, in a sentence; None while all is well."""
        return self._collecting.trouble or self._shipping.trouble or self._consolidating.trouble

    def fence(self) -> None:
        """Another instance holds the claim: the days' objects are its business now. Our lines are still shipped."""
        self._fenced.set()

    def say(self, message: str, *, level: str = "error") -> None:
        """A line of the runtime's own into the bot's log."""
        self._collector.say(message, level=level, now_s=self._clock())

    def run(self, stop: threading.Event) -> None:
        """Passes until `stop` is set; what then remains is for `finish`."""
        wait_s = 0.0
        while not stop.wait(wait_s):
            try:
                wait_s = self.one_pass(self._clock())
            except Exception as reason:  # noqa: BLE001 - a bug of ours must not silence a bot for days
                self.say(f"The log's shipping failed unexpectedly and goes on: {clip(repr(reason))}")
                wait_s = RETRY_AT_MOST_S

    def one_pass(self, now_s: float) -> float:
        """Collects new lines, ships what is due, consolidates what is due. Returns the seconds until it is due again."""
        more = False
        if self._collecting.due(now_s):
            more |= self._collecting.make(self._collector.collect, now_s)
        if self._shipping.due(now_s):
            down_s = self._shipping.failing_s(now_s)
            more |= self._shipping.make(self._ship, now_s)
            if down_s >= WORTH_SAYING_S and self._shipping.trouble is None:
                message = f"log lines could not be stored for {down_s:.0f} s; they were kept here and follow now"
                self._collector.say(message, level="warn", now_s=now_s)
        if not self._fenced.is_set() and not self._is_busy() and self._consolidating.due(now_s):
            more |= self._consolidating.make(self._consolidate, now_s)
            if self._beside is not None:
                threads.start(self._beside)
        return 0.0 if more else TICK_S

    def finish(self, deadline_s: float) -> bool:
        """The bot has ended: everything is collected, shipped and consolidated, within `deadline_s` seconds from now as far
        as the store answers. True if nothing is left. May be called again after another `say`."""
        until_s = time.monotonic() + deadline_s
        while True:
            now_s = self._clock()
            for attempts, act in (
                (self._collecting, self._collect_last),
                (self._shipping, self._ship_last),
                (self._consolidating, self._consolidate_last),
            ):
                while attempts.make(act, now_s):
                    if time.monotonic() >= until_s:
                        return False
            if self._settled():
                return True
            if time.monotonic() >= until_s:
                return False
            threading.Event().wait(min(0.2, max(0.0, until_s - time.monotonic())))

    def close(self) -> None:
        """Idempotent; what is in the spool stays there."""
        self._collector.close()
        self._spool.close()

    # --- parts -------------------------------------------------------------------------------------

    def _settled(self) -> bool:
        shipped = self._collector.settled and not self._spool.open_bytes and not self._spool.pieces()
        if self._fenced.is_set():
            return shipped
        return shipped and not self._is_busy() and self._days.settled and self.trouble is None

    def _collect_last(self, now_s: float) -> bool:
        if self._collector.collect(now_s):
            return True
        self._collector.flush(now_s)
        return False

    def _ship(self, now_s: float) -> bool:
        oldest_s = self._collector.oldest_s
        # Lines that a former process left have no time; a clock that went back must not keep the others.
        if oldest_s is None or not 0 <= now_s - oldest_s < PIECE_AGE_S:
            self._collector.seal(now_s)
        return self._ship_sealed(now_s)

    def _ship_last(self, now_s: float) -> bool:
        self._collector.seal(now_s)
        return self._ship_sealed(now_s)

    def _ship_sealed(self, now_s: float) -> bool:
        pieces = self._spool.pieces()
        for piece in pieces[:PIECES_A_PASS]:
            data = self._spool.read(piece)
            if data:
                key = names.log_piece_key(self._bot_id, piece.day, epoch=piece.epoch, seq=piece.seq)
                self._store.put(self._bucket, key, data)
                self._days.shipped(piece.day, (piece.epoch, piece.seq), data, now_s=now_s)
            self._spool.remove(piece)
        return len(pieces) > PIECES_A_PASS

    def _consolidate(self, now_s: float) -> bool:
        self._look(now_s)
        day = self._stepping or self._days.due(now_s=now_s)
        if day is None or not self._days.is_large(day):
            return self._step(day, now_s)
        self._beside = threading.Thread(target=self._step_beside, args=(day, now_s), name="logs-day", daemon=True)
        return False

    def _step_beside(self, day: str, now_s: float) -> None:
        self._consolidating.make(lambda now_s: self._step(day, now_s), now_s)

    def _consolidate_last(self, now_s: float) -> bool:
        if self._fenced.is_set() or self._is_busy():
            return False
        self._look(now_s)
        return self._step(self._days.due(now_s=now_s, at_once=True), now_s)

    def _step(self, day: str | None, now_s: float) -> bool:
        if day is None:
            return False
        self._stepping = None
        if self._days.step(day, now_s=now_s):
            self._stepping = day
        return True

    def _is_busy(self) -> bool:
        """Whether a step beside us still runs."""
        if self._beside is not None and self._beside.is_alive():
            return True
        self._beside = None
        return False

    def _look(self, now_s: float) -> None:
        today = lines.day(now_s)
        again = not self._looked_again and now_s - self._begun_s >= LOOK_AGAIN_S
        if today != self._looked_day or again:
            self._days.look(now_s=now_s)
            self._looked_day = today
            self._looked_again |= again


class _Attempts:
    """One kind of work that may fail: when to try it next, and what to say of it."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._failed_s: float | None = None
        self._since_s = 0.0
        self._wait_s = RETRY_S

    def due(self, now_s: float) -> bool:
        return self._failed_s is None or not 0 <= now_s - self._failed_s < self._wait_s

    def failing_s(self, now_s: float) -> float:
        return 0.0 if self._failed_s is None else now_s - self._since_s

    def make(self, act: Callable[[float], bool], now_s: float) -> bool:
        """Whether there is more to do at once; False after a failure."""
        try:
            more = act(now_s)
        except Fault as reason:
            self._fail(reason.sentence, now_s)
            return False
        except OSError as reason:
            self._fail(f"The log's files fail: {clip(str(reason))}.", now_s)
            return False
        self.trouble, self._failed_s, self._wait_s = None, None, RETRY_S
        return more

    def _fail(self, sentence: str, now_s: float) -> None:
        if self._failed_s is None:
            self._since_s = now_s
        else:
            self._wait_s = min(self._wait_s * 2, RETRY_AT_MOST_S)
        self.trouble, self._failed_s = sentence, now_s


def write_orphan_line(store: ObjectStore, bucket: str, bot_id: str, message: str, now_s: float) -> None:
    """One line of ours for a start that fails before anybody has the claim: a piece of its own, which the next holder
    moves into the day's object. Raises the store's errors."""
    seq = int(now_s * 1000) * 1000 + int.from_bytes(os.urandom(2), "big") % 1000
    key = names.log_piece_key(bot_id, lines.day(now_s), epoch=ORPHAN_EPOCH, seq=seq)
    store.put(bucket, key, lines.ours(message, level="error", now_s=now_s))
