"""kill -9 at random moments: what was printed is what is read back, in order, each line once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from sync.logs.station import BOT, NOON_S, Station, line
from the0.sync.logs import LogShipper

SPEED = 200
"""The clock's, in the shipper: its seconds are 5 ms."""


def ship_for_ever(station: Station, *, epoch: int, begun_s: float) -> None:
    def clock() -> float:
        return NOON_S + (time.monotonic() - begun_s) * SPEED

    shipper = LogShipper(
        store=station.store,
        bucket=station.bucket,
        bot_id=BOT,
        logs_path=str(station.logs),
        spool_path=str(station.spool),
        epoch=epoch,
        clock=clock,
    )
    while True:
        time.sleep(shipper.one_pass(clock()) / SPEED)


def forked(station: Station, *, epoch: int, begun_s: float) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            ship_for_ever(station, epoch=epoch, begun_s=begun_s)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_of_the_shipper_repeats_and_loses_nothing(station: Station, seed: int) -> None:
    rng = random.Random(seed)
    station.writer.close()
    station.limit_bytes = 20_000
    station.writer = station.new_writer()
    begun_s = time.monotonic()
    number, epoch, rest = 0, 1, b""
    for _ in range(25):
        pid = forked(station, epoch=epoch, begun_s=begun_s)
        try:
            until_s = time.monotonic() + rng.uniform(0.003, 0.12)
            printed_bytes = 0
            while time.monotonic() < until_s:
                if printed_bytes < 8_000:
                    rest += line(number)
                    number += 1
                    # Cut anywhere, as a pipe is.
                    cut = rng.randrange(len(rest) + 1)
                    station.writer.write(rest[:cut])
                    printed_bytes += cut
                    rest = rest[cut:]
                time.sleep(rng.choice([0, 0, 0.001]))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        epoch += rng.random() < 0.3
        if rng.random() < 0.2:
            # The container was killed with it: its bot.log goes on, in the midst of a line.
            station.writer.write(rest)
            rest = b""
            station.writer.close()
            station.writer = station.new_writer()
    station.writer.write(rest)
    station.now_s = NOON_S + (time.monotonic() - begun_s) * SPEED
    assert number > 100
    before = station.numbers()
    assert before == list(range(len(before))), "read while nobody shipped"
    assert station.shipper(epoch=epoch).finish(20)
    assert station.numbers() == list(range(number))
    assert station.messages() == []
    assert all(key.endswith(".log") for key in station.stored())


def test_a_container_that_is_gone_leaves_its_spool(any_station: Station, tmp_path: Path) -> None:
    """What was collected, and not shipped, goes with the next container on the same host; bot.log is a new one there."""
    for epoch in (1, 2, 3):
        any_station.print(2 * epoch)
        shipper = any_station.shipper(epoch=epoch)
        any_station.run(shipper, 3)
        any_station.print(2 * epoch + 1)
        shipper.one_pass(any_station.now_s)
        any_station.writer.close()
        (any_station.logs).rename(tmp_path / f"gone-{epoch}")
        any_station.writer = any_station.new_writer()
    assert any_station.shipper(epoch=4).finish(10)
    assert any_station.numbers() == [2, 3, 4, 5, 6, 7]
