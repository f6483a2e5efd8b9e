"""kill -9 at random instants: of the host, of what keeps the state, of the store. And the promise: what is lost at most."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from bot_place import eventually

from faults.field import SLOW_S, Field

SOAK = bool(os.environ.get("THE0_SOAK"))
ROUNDS = 30 if SOAK else 3
PROMISED_S = 2.0


@pytest.mark.fault("the host is lost at random instants under steady small writes", "all but the last 2 s of work")
def test_the_host_is_lost(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        place = bot.host()
        run = place.start()
        bot.works(run)
        time.sleep(luck.random())
        work = bot.judge(bot.lose_host(run, place))
        place = bot.host()
        run = place.start()
        bot.works(run)
        assert bot.found() == work.number, "it went on from what was stored"
        bot.judge(bot.lose_host(run, place))
    # Five times as slow a machine is no fault of the store's; the figure is in the table.
    assert bot.row.worst_s <= PROMISED_S * 5


@pytest.mark.fault("kill -9 of supervisor, bot and sync at random instants; disk and boot stay", "all work")
def test_all_is_killed_and_the_disk_stays(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    for _ in range(ROUNDS):
        run = place.start()
        bot.works(run)
        time.sleep(luck.random())
        for pid in [run.process.pid, *run.children().values()]:
            os.kill(pid, signal.SIGKILL)
        run.process.communicate()
        done, starts = bot.done(), bot.started()
        again = place.start()
        eventually(lambda starts=starts: bot.started() > starts, "another start", within_s=SLOW_S)
        assert bot.found() in (done, done + 1), "killed between a work and its line in the ledger, at most"
        bot.goes_on()
        again.send(signal.SIGTERM)
        again.end(within_s=SLOW_S)
        assert bot.judge(time.time()).number >= bot.done()


@pytest.mark.fault("a clean stop (SIGTERM) at random instants", "all work")
def test_a_clean_stop(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        run = bot.host().start()
        bot.works(run)
        time.sleep(luck.random())
        run.send(signal.SIGTERM)
        run.end(within_s=SLOW_S)
        assert bot.judge(time.time()).number >= bot.done()
    assert bot.row.worst_s == 0.0


@pytest.mark.fault("kill -9 of the bot at random instants", "all work: what it left is stored at its end")
def test_the_bot_is_killed(bot: Field, luck: random.Random) -> None:
    for _ in range(ROUNDS):
        run = bot.host().start()
        bot.works(run)
        time.sleep(luck.random())
        os.kill(run.child("bot"), signal.SIGKILL)
        run.end(within_s=SLOW_S)
        assert bot.judge(time.time()).number >= bot.done()
    assert bot.row.worst_s == 0.0


@pytest.mark.fault("kill -9 of the sync process at random instants, then the host is lost", "all but the last work")
def test_sync_is_killed(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        os.kill(run.child("the0-sync"), signal.SIGKILL)
        bot.judge(time.time())
        bot.goes_on()
        time.sleep(luck.random())
    bot.judge(bot.lose_host(run, place))


@pytest.mark.fault("kill -9 of the store at random instants, started again; then the host is lost", "as without it")
def test_the_store_is_killed(bot: Field, luck: random.Random) -> None:
    if bot.minio.again is None:
        pytest.skip("MINIO_ENDPOINT names a store that is not ours to kill")
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        time.sleep(luck.random())
        at_s = time.time()
        bot.minio.again()
        bot.judge(at_s)
        bot.goes_on()
    bot.judge(bot.lose_host(run, place))
