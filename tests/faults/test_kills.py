"""kill -9 at random instants: of the host, of what keeps the state, of the store. And the promise: what is lost at most."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest
from bot_place import COMMAND, Place

from faults.field import SLOW_S, SOAK, Field
from rig.waiting import eventually

ROUNDS = 30 if SOAK else 2
PROMISED_S = 2.0


@pytest.mark.fault("the host is lost at random instants under steady small writes", "all but the last 2 s of work")
def test_the_host_is_lost(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        place = bot.host()
        run = place.start()
        bot.works(run)
        time.sleep(luck.random())
        work = bot.loses_host(run, place)
        place = bot.host()
        run = place.start()
        bot.works(run)
        assert bot.found() == work.number, "it went on from what was stored"
        bot.loses_host(run, place)
    # Five times as slow a machine is no fault of the store's; the figure is in the table.
    assert bot.row.worst_s is not None
    assert bot.row.worst_s <= PROMISED_S * 5


@pytest.mark.fault("kill -9 of supervisor, bot and sync at random instants; disk and boot stay", "all work")
def test_all_is_killed_and_the_disk_stays(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    for _ in range(ROUNDS):
        bot.works(run)
        time.sleep(luck.random())
        bot.kill_all(run)
        bot.judge()
        run = bot.finds_all(place)
    bot.stops(run)


@pytest.mark.fault(
    "kill -9 of the supervisor alone at random instants; disk and boot stay", "all work: what it ran ends with it"
)
def test_the_supervisor_is_killed(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    for _ in range(ROUNDS):
        bot.works(run)
        time.sleep(luck.random())
        run.process.kill()
        run.process.communicate()
        # What it ran ends a moment later.
        eventually(lambda: not bot.works_now(), "the bot's end", within_s=SLOW_S)
        bot.judge()
        run = bot.finds_all(place)
    bot.stops(run)


@pytest.mark.fault("a clean stop (SIGTERM) at random instants", "all work")
def test_a_clean_stop(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        run = bot.host().start()
        bot.works(run)
        time.sleep(luck.random())
        bot.stops(run)
    assert bot.row.worst_s == 0.0


@pytest.mark.fault("kill -9 of the bot at random instants", "all work: what it left is stored at its end")
def test_the_bot_is_killed(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        run = bot.host().start()
        bot.works(run)
        time.sleep(luck.random())
        os.kill(run.child("bot"), signal.SIGKILL)
        run.end(within_s=SLOW_S)
        assert bot.lost().number >= bot.done()
    assert bot.row.worst_s == 0.0


@pytest.mark.fault(
    "kill -9 of the sync process at random instants, then the host is lost", "all but the last 2 s of work"
)
def test_sync_is_killed(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        os.kill(run.child("the0-sync"), signal.SIGKILL)
        bot.judge()
        bot.goes_on()
        time.sleep(luck.random())
    bot.loses_host(run, place)


def daemon(place: Place, *argv: str) -> subprocess.Popen[str]:
    """A command of a Pod's sidecars, in that place."""
    command = [*COMMAND[:-1], "daemon", *argv, "--bot-id", "bot-1"]
    process = subprocess.Popen(
        command, env=place.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True, cwd="/"
    )
    place.started.append(process)
    return process


@pytest.mark.fault(
    "kill -9 of a Pod's `daemon sync` at random instants, started again; then the host is lost",
    "all but the last 2 s of work",
)
def test_the_daemon_of_a_pod_is_killed(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    begun = daemon(place, "init", "--code-file", str(place.environment()["CODE_FILE"]))
    assert begun.wait(SLOW_S) == 0
    sync = daemon(place, "sync")
    run = place.start("--skip-sync")
    bot.works(run)
    for _ in range(ROUNDS):
        time.sleep(luck.random())
        sync.kill()
        sync.wait()
        bot.judge()
        sync = daemon(place, "sync")
        bot.goes_on()
    sync.kill()
    bot.loses_host(run, place)


@pytest.mark.fault(
    "kill -9 of the store at random instants, started again; then the host is lost", "all but the last 2 s of work"
)
def test_the_store_is_killed(bot: Field, luck: random.Random) -> None:
    if bot.minio.again is None:
        pytest.skip("MINIO_ENDPOINT names a store that is not ours to kill")
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        time.sleep(luck.random())
        bot.minio.again()
        bot.judge()
        bot.goes_on()
    bot.loses_host(run, place)
