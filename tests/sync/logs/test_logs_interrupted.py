"""Killed at every request of a run's life, before and after the store has applied it, and started again: each line once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync.logs.station import BOT, MIDNIGHT_S, KilledError, Station, Watched
from the0.sync import day_log
from the0.sync.logs import LogShipper


class Life:
    """A shipper that is killed once, and its successors."""

    def __init__(self, station: Station, store: Watched, *, epochs: Iterator[int]) -> None:
        self._station = station
        self._store = store
        self._epochs = epochs
        self._shipper = self._new()

    def _new(self) -> LogShipper:
        return self._station.shipper(epoch=next(self._epochs), store=self._store)

    def run(self, seconds: float) -> None:
        try:
            self._station.run(self._shipper, seconds)
        except KilledError:
            self._shipper = self._new()
            self._station.run(self._shipper, seconds)

    def finish(self) -> None:
        try:
            assert self._shipper.finish(10)
        except KilledError:
            self._shipper = self._new()
            assert self._shipper.finish(10)


def live(station: Station, store: Watched, *, epochs: Iterator[int]) -> None:
    """Pieces, a rewrite, a growing object, midnight, two ends."""
    station.now_s = MIDNIGHT_S + 86_400 - 336
    life = Life(station, store, epochs=epochs)
    station.print(0, 1)
    life.run(3)
    station.print(2)
    station.writer.write(b'{"timestamp":"t",')
    life.run(3)
    station.writer.write(b'"n":3}\n')
    life.run(310)
    station.print(4)
    life.run(18)
    station.print(5)
    life.run(2)
    station.print(6)
    life.run(4)
    station.print(7)
    life.finish()
    station.print(8)
    life = Life(station, store, epochs=epochs)
    life.finish()


@pytest.mark.parametrize("respawned", [True, False], ids=["same epoch", "next epoch"])
def test_each_line_once_wherever_the_process_dies(
    station: Station, memory: Path, monkeypatch: pytest.MonkeyPatch, respawned: bool
) -> None:
    # The folder store grows objects of any size: so both ways of consolidating are gone through in one short life.
    monkeypatch.setattr(day_log, "REWRITE_BELOW_BYTES", 40)

    def epochs() -> Iterator[int]:
        epoch = 1
        while True:
            yield epoch
            epoch += not respawned

    def begin(number: int) -> Station:
        bucket = f"{station.bucket}-{number}"
        station.store.ensure_bucket(bucket)
        (memory / bucket).mkdir()
        return Station(store=station.store, bucket=bucket, base=memory / bucket)

    whole = begin(0)
    counted = Watched(station.store)
    live(whole, counted, epochs=epochs())
    assert whole.numbers() == list(range(9))
    assert counted.requests > 25
    assert {"append", "put_if"} <= counted.asked
    whole.close()
    for kill_at in range(counted.requests):
        for applied in (False, True):
            bot = begin(1 + 2 * kill_at + applied)
            live(bot, Watched(station.store, kill_at=kill_at, applied=applied), epochs=epochs())
            assert bot.numbers() == list(range(9)), f"killed at request {kill_at}, applied: {applied}"
            assert bot.stored() == [f"logs/{BOT}/20231115.log", f"logs/{BOT}/20231116.log"]
            bot.close()
