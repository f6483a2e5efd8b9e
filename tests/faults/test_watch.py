"""The system cannot tell what changes: inotify's queue overflows, or it has no watches or instances left."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from bot_place import COMMAND

from faults.field import SOAK, Field

ROUNDS = 10 if SOAK else 2


@pytest.mark.fault(
    "more changes than inotify's queue holds while the store is slow, then the host is lost",
    "all but the last 2 s of work, and all of the changes",
)
def test_the_queue_overflows(bot: Field, luck: random.Random) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    place = bot.host()
    run = place.start()
    bot.works(run)
    for number in range(ROUNDS):
        with bot.stored_nothing():
            # Each turn is an event for two files, which are not the same one twice in a row.
            many = place.state / f"many-{number}"
            os.makedirs(many / "deep")
            seen = len(bot.proxy.requests)
            deadline = time.monotonic() + 60
            while len(bot.proxy.requests) == seen:
                assert time.monotonic() < deadline, "the sync process asks the store for something"
                time.sleep(0.01)
            files = [os.open(many / name, os.O_WRONLY | os.O_CREAT) for name in ("a", "b")]
            for turn in range(limit):
                for file in files:
                    os.pwrite(file, b"%d" % (turn % 10), 0)
            for file in files:
                os.close(file)
            told = f"{number} {luck.random()}"
            (many / "deep" / "last").write_text(told)
        bot.goes_on()
        with bot.as_stored() as tree:
            assert (tree / f"many-{number}" / "deep" / "last").read_text() == told
    bot.told("More changed in the state folder than the system could tell at once")
    bot.loses_host(run, place)


@pytest.mark.fault(
    "no inotify watch, or no instance, is left for this user, then the host is lost",
    "all but the last 2 s of work: it is looked at every second",
)
@pytest.mark.parametrize("setting", ["max_inotify_watches", "max_inotify_instances"])
@pytest.mark.parametrize("most", [0, 1])
def test_no_watches(bot: Field, setting: str, most: int) -> None:
    place = bot.host()
    for folder in ("x", "x/y"):
        (place.state / folder).mkdir(parents=True)
    # Limits of a user namespace of its own: the machine's stay as they are.
    lowered = f'echo {most} > /proc/sys/user/{setting} && exec "$@"'
    place.command = ["unshare", "--user", "--map-root-user", "sh", "-c", lowered, "sh", *COMMAND]
    run = place.start()
    bot.works(run)
    if (setting, most) != ("max_inotify_instances", 1):
        bot.told("Changes in the state folder cannot be watched")
    (place.state / "x/y/z").write_text("seen")
    bot.goes_on()
    with bot.as_stored() as tree:
        assert (tree / "x/y/z").read_text() == "seen"
    bot.loses_host(run, place)
