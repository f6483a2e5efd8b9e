"""Brings bot.log and the runtime's own lines into the spool, and decides where one piece ends."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import Final

from the0.sync import lines
from the0.sync.botlog_reader import BotLogReader, Position
from the0.sync.spool import Spool

PIECE_BYTES: Final = 1 << 20
"""A piece is not much larger: what one read makes of the bot's output comes on top."""
READ_BYTES: Final = 64 << 10
READS_A_PASS: Final = 128
_OWN_LINES: Final = 100
_OWN_RESERVE_BYTES: Final = 1 << 20
"""A spool that is full still takes the lines that say so."""
_MARK_BYTES: Final = 1 << 20
_SEQ_PER_S: Final = 100


class Collector:
    """`say` may be called from any thread, the rest from one. Methods other than `say` raise OSError where the local disk
    fails; nothing is lost then, the next call goes on."""

    def __init__(self, spool: Spool, *, logs_path: str, epoch: int) -> None:
        self._spool = spool
        self._logs_path = logs_path
        self._epoch = epoch
        self._reader: BotLogReader | None = None
        self._cutter = lines.LineCutter()
        self._kept = Position()
        """Up to where bot.log is in the spool."""
        self._unkept: tuple[bytes, Position] | None = None
        """Read, but not in the spool yet."""
        self._lock = threading.Lock()
        self._own: deque[bytes] = deque()
        self._own_dropped = 0
        self._seq = 0
        self.oldest_s: float | None = None
        """When the oldest line arrived that no piece holds yet."""

    @property
    def settled(self) -> bool:
        """Whether all that was read and said is in the spool."""
        return self._unkept is None and not self._own

    def say(self, message: str, *, level: str, now_s: float) -> None:
        """Never raises: what the disk does not take waits in memory, up to a bound."""
        with self._lock:
            self._tell(message, level=level, now_s=now_s)
            try:
                self._keep_own(now_s)
            except OSError:
                pass  # the next `collect` meets the same disk, and raises

    def collect(self, now_s: float) -> bool:
        """Takes in what bot.log has new, at most READ_BYTES x READS_A_PASS. True where there is more."""
        reader = self._ready()
        with self._lock:
            problems, self._spool.problems[:] = self._spool.problems[:], []
            for problem in problems:
                self._tell(problem, level="error", now_s=now_s)
            self._keep_own(now_s)
        for _ in range(READS_A_PASS):
            if not self._keep_unkept(now_s):
                return False  # the spool is full: bot.log waits
            chunk = reader.read(READ_BYTES)
            if not chunk.data and not chunk.gap:
                return False
            out = b""
            if chunk.gap:
                count = "an unknown number of" if chunk.lost_bytes is None else str(chunk.lost_bytes)
                message = f"{count} bytes of the bot's output were lost: they came faster than they could be stored"
                out = self._cutter.flush(now_s=now_s) + lines.ours(message, level="error", now_s=now_s)
            out += self._cutter.feed(chunk.data, now_s=now_s)
            position = self._position(reader)
            if out or abs(position.reached - self._kept.reached) >= _MARK_BYTES:
                self._unkept = (out, position)
        return self._keep_unkept(now_s)

    def flush(self, now_s: float) -> None:
        """The bot has ended: its last line may have no newline."""
        reader = self._ready()
        if self._keep_unkept(now_s):
            line = self._cutter.flush(now_s=now_s)
            if line:
                self._unkept = (line, self._position(reader))
                self._keep_unkept(now_s)

    def seal(self, now_s: float) -> None:
        """Makes a piece of what is open, if anything is."""
        with self._lock:
            self._spool.load()
            if self._spool.open_bytes:
                self._seal(now_s)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # --- parts; those with a clock as their last word hold the lock --------------------------------

    def _ready(self) -> BotLogReader:
        if self._reader is None:
            self._spool.load()
            self._kept = self._spool.position
            self._reader = BotLogReader(self._logs_path, replace(self._kept, skipped_bytes=0))
            self._cutter = lines.LineCutter(skipped_bytes=self._kept.skipped_bytes)
        return self._reader

    def _position(self, reader: BotLogReader) -> Position:
        """Where a successor would begin to read: before the line that is unfinished."""
        at, held_bytes = reader.position, self._cutter.held_bytes
        if held_bytes <= at.offset:
            return replace(at, offset=at.offset - held_bytes, skipped_bytes=self._cutter.skipped_bytes)
        # The line began in the file before: that one is found by the offset in the stream.
        return Position(stream=at.stream, start=max(0, at.reached - held_bytes))

    def _keep_unkept(self, now_s: float) -> bool:
        if self._unkept is None:
            return True
        out, position = self._unkept
        with self._lock:
            if not self._keep(out, position, now_s):
                return False
        self._kept = position
        self._unkept = None
        return True

    def _keep(self, out: bytes, position: Position, now_s: float, *, reserve_bytes: int = 0) -> bool:
        day = lines.day(now_s)
        self._spool.load()
        if self._spool.open_bytes and self._spool.day != day:
            self._seal(now_s)
        if not self._spool.append(out, position=position, day=day, reserve_bytes=reserve_bytes):
            return False
        if out and self.oldest_s is None:
            self.oldest_s = now_s
        if self._spool.open_bytes >= PIECE_BYTES:
            self._seal(now_s)
        return True

    def _seal(self, now_s: float) -> None:
        # A spool that was lost under this epoch must not begin again where it began: so the clock tells the first one.
        following = self._spool.next_seq(self._epoch)
        seq = max(self._seq, int(now_s * _SEQ_PER_S) if following is None else following)
        self._spool.seal(epoch=self._epoch, seq=seq)
        self._seq = seq + 1
        self.oldest_s = None

    def _tell(self, message: str, *, level: str, now_s: float) -> None:
        if len(self._own) >= _OWN_LINES:
            self._own_dropped += 1
            return
        self._own.append(lines.ours(message, level=level, now_s=now_s))

    def _keep_own(self, now_s: float) -> None:
        if not self._own:
            return
        if self._reader is None:
            self._spool.load()
            self._kept = self._spool.position
        out = b"".join(self._own)
        if self._own_dropped:
            out += lines.ours(
                f"{self._own_dropped} lines of the runtime's own were dropped", level="error", now_s=now_s
            )
        if self._keep(out, self._kept, now_s, reserve_bytes=_OWN_RESERVE_BYTES):
            self._own.clear()
            self._own_dropped = 0
