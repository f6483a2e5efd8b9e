"""One bot's way of lines: a writer, a shipper and a reader on folders of their own, under a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from the0.objects.store import ObjectStore, Unavailable
from the0.sync import log_reader
from the0.sync.botlog import BotLogWriter
from the0.sync.logs import LogShipper

MIDNIGHT_S = 1_700_006_400.0
"""2023-11-15T00:00:00Z."""
NOON_S = MIDNIGHT_S + 43_200
DAY = "20231115"
BOT = "bot-1"


@dataclass
class Station:
    store: ObjectStore
    bucket: str
    base: Path
    now_s: float = NOON_S
    limit_bytes: int = 16 << 20
    """Of bot.log."""
    spool_limit_bytes: int = 256 << 20
    opened: list[LogShipper] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.base / "state").mkdir(exist_ok=True)
        self.writer = self.new_writer()

    @property
    def logs(self) -> Path:
        return self.base / "logs"

    @property
    def spool(self) -> Path:
        return self.base / "state" / ".the0" / "spool"

    def clock(self) -> float:
        return self.now_s

    def new_writer(self) -> BotLogWriter:
        return BotLogWriter(str(self.logs), limit_bytes=self.limit_bytes, clock=self.clock)

    def shipper(self, *, epoch: int = 1, store: ObjectStore | None = None) -> LogShipper:
        """One that takes up what the one before left; that one is not asked anything more, as if it had been killed."""
        for former in self.opened:
            former.close()
        made = LogShipper(
            store=store or self.store,
            bucket=self.bucket,
            bot_id=BOT,
            logs_path=str(self.logs),
            spool_path=str(self.spool),
            epoch=epoch,
            clock=self.clock,
            spool_limit_bytes=self.spool_limit_bytes,
        )
        self.opened = [made]
        return made

    def print(self, *numbers: int) -> None:
        """Lines that a bot prints, each with its number."""
        self.writer.write(b"".join(line(number) for number in numbers))

    def run(self, shipper: LogShipper, seconds: float, *, tick_s: float = 1.0) -> None:
        """As the loop would call it, without the waiting."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            while shipper.one_pass(self.now_s) == 0.0:
                pass
            self.now_s += tick_s

    def lines(self, **options: Any) -> list[bytes]:
        return list(log_reader.read(self.store, self.bucket, BOT, **options))

    def numbers(self, **options: Any) -> list[int]:
        """Of the bot's lines, as our reader gives them."""
        return numbers(self.lines(**options))

    def messages(self) -> list[str]:
        """Our own lines."""
        return [value["message"] for value in map(json.loads, self.lines()) if "level" in value]

    def stored(self) -> list[str]:
        return [info.key for info in self.store.list(self.bucket, "")]

    def day_object(self, day: str = DAY) -> bytes:
        return self.store.get(self.bucket, f"logs/{BOT}/{day}.log", limit_bytes=1 << 30).data

    def close(self) -> None:
        self.writer.close()
        for shipper in self.opened:
            shipper.close()


def line(number: int) -> bytes:
    return b'{"timestamp":"t","n":%d}\n' % number


def numbers(found: list[bytes]) -> list[int]:
    return [value["n"] for value in map(json.loads, found) if "n" in value]


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


class Watched:
    """A store that counts requests and the bytes sent, and can fail or kill at one of them."""

    def __init__(self, store: ObjectStore, *, kill_at: int | None = None, applied: bool = False) -> None:
        self._store = store
        self._kill_at = kill_at
        self._applied = applied
        self.requests = 0
        self.asked: set[str] = set()
        self.sent_bytes = 0
        self.day_bytes = 0
        """Of them, into days' objects."""
        self.down = False

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._store, name)

        def asked(*args: Any, **kwargs: Any) -> Any:
            if self.down:
                raise Unavailable("The store does not answer.")
            self.requests += 1
            self.asked.add(name)
            kill = self.requests - 1 == self._kill_at
            if kill and not self._applied:
                raise KilledError
            result = act(*args, **kwargs)
            if isinstance(result, Iterator):
                result = iter(list(result))
            if name in ("put", "put_if", "append"):
                self.sent_bytes += len(args[2])
                if args[1].endswith(".log"):
                    self.day_bytes += len(args[2])
            if kill:
                raise KilledError
            return result

        return asked
