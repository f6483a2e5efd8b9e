"""The wall clock of the runtime's processes jumps. The machine's own stays as it is, and so do the times of files: what the runtime
compares with its clock is then off by as much as the clock is."""

from __future__ import annotations

import mmap
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.field import SLOW_S, SOAK, Field
from rig.waiting import eventually

MINUTE_S, DAY_S = 60.0, 86400.0
ROUNDS = 5 if SOAK else 1


class Clock:
    """`jump` and `calls` are of all processes that it is preloaded into."""

    def __init__(self, root: Path) -> None:
        library = root / "clock.so"
        subprocess.run(
            [
                "cc",
                "-shared",
                "-fPIC",
                "-O2",
                "-Wall",
                "-Werror",
                "-o",
                library,
                Path(__file__).with_name("clock.c"),
                "-ldl",
            ],
            check=True,
        )
        path = root / "clock"
        path.write_bytes(bytes(16))
        self.environ = {"LD_PRELOAD": str(library), "FAULT_CLOCK": str(path)}
        with open(path, "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 16)

    def jump(self, seconds: float) -> None:
        """From the right time."""
        struct.pack_into("q", self._shared, 0, int(seconds * 1e9))

    @property
    def calls(self) -> int:
        return int(struct.unpack_from("q", self._shared, 8)[0])

    def close(self) -> None:
        self._shared.close()


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    made = Clock(tmp_path)
    yield made
    made.close()


@pytest.mark.fault(
    "the clock jumps by up to 10 minutes, back and forth, a bot is killed and started again meanwhile, then the host is lost",
    "all but the last 2 s of work",
)
def test_jumps_that_a_store_bears(bot: Field, clock: Clock, luck: random.Random) -> None:
    place = bot.host()
    place.env |= clock.environ
    run = place.start()
    bot.works(run)
    assert clock.calls > 0, "the runtime's processes must see this clock"
    for _ in range(ROUNDS):
        for sign in (1, -1):
            clock.jump(sign * luck.uniform(1, 10 * MINUTE_S))
            bot.goes_on()
            bot.judge()
        bot.kill_all(run)
        clock.jump(luck.uniform(-10 * MINUTE_S, 10 * MINUTE_S))
        run = bot.finds_all(place)
        bot.goes_on()
    bot.loses_host(run, place)


@pytest.mark.fault(
    "the clock jumps by a day or ten years, back and forth: the store refuses requests that are more than 15 minutes off",
    "the bot works on and its log says why nothing is stored; with the clock right again all is stored",
)
@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S, 3650 * DAY_S, -3650 * DAY_S] if SOAK else [DAY_S, -3650 * DAY_S])
def test_jumps_that_a_store_refuses(bot: Field, clock: Clock, off_s: float) -> None:
    place = bot.host()
    place.env |= clock.environ
    run = place.start()
    bot.works(run)
    clock.jump(off_s)
    done = bot.done()
    eventually(lambda: bot.done() > done + 20, "a bot that works on", within_s=SLOW_S)
    bot.judge()
    clock.jump(0)
    bot.goes_on()
    bot.told("set this machine's clock")
    bot.stops(run)
