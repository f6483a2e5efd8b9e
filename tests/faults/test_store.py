"""A store that answers badly while the host is lost: what it had said it stored is there, and a start never takes it for empty."""

from __future__ import annotations

import random
import time

import pytest

from faults.field import SOAK, Field
from rig.proxy import Answer, DropReply, Fate, LateReply, Request
from the0.errors import ExitCode

FOR_S = 1.5


def row(tried: str) -> pytest.MarkDecorator:
    return pytest.mark.fault(tried, "all that was reported as stored; afterwards it goes on")


@pytest.mark.parametrize(
    ("fate", "share"),
    [
        pytest.param(Answer(500, "InternalError"), 0.5, marks=row("half of all requests answered 500"), id="500"),
        pytest.param(Answer(503), 0.5, marks=row("half of all requests answered 503"), id="503"),
        pytest.param(DropReply(), 0.5, marks=row("half of all replies dropped, after the store applied"), id="dropped"),
        pytest.param(
            LateReply(20.0),
            0.1,
            marks=row("a tenth of all replies held back until the host is lost, after the store applied"),
            id="late",
        ),
        pytest.param(
            Answer(507, "XMinioStorageFull"), 1.0, marks=row("the store is full: each PUT answered 507"), id="full"
        ),
    ],
)
def test_bad_answers(bot: Field, luck: random.Random, fate: Fate, share: float) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)

    def rule(request: Request) -> Fate:
        wanted = request.method == "PUT" or not isinstance(fate, Answer) or fate.status != 507
        return fate if wanted and luck.random() < share else None

    bot.proxy.fail(rule)
    time.sleep(FOR_S)
    bot.kill_all(run)
    bot.proxy.heal()
    work = bot.lost()
    place = bot.host()
    run = place.start()
    bot.works(run)
    assert bot.found() >= work.number > 0
    bot.loses_host(run, place)


@pytest.mark.parametrize(
    "bytes_per_s", [pytest.param(10_000, marks=row("10 KB/s to and from the store, on each connection"), id="10 KB/s")]
)
def test_a_slow_store(bot: Field, luck: random.Random, bytes_per_s: float) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    bot.proxy.bytes_per_s = bytes_per_s
    bot.goes_on()
    time.sleep(luck.random())
    work = bot.loses_host(run, place)
    run = bot.starts_again(bot.host())
    assert bot.found() == work.number
    bot.works(run)
    bot.stops(run)


@pytest.mark.fault(
    "a timeout after HEAD was written: its reply does not come for longer than the client waits; then the host is lost",
    "the same run goes on, by what HEAD says; all but the last 2 s of work",
)
def test_a_reply_later_than_the_client_waits(bot: Field) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    held: list[Request] = []

    def rule(request: Request) -> Fate:
        head = request.method == "PUT" and request.path.split("?")[0].endswith("/HEAD")
        if not head or held:
            return None
        held.append(request)
        return LateReply(60.0)

    bot.proxy.fail(rule)
    bot.until(lambda: bool(held))
    written = bot.judge()
    bot.goes_on()
    assert bot.judge().number > written.number
    assert bot.head_there().claim.epoch == 1, "by the same run"
    bot.loses_host(run, place)


@pytest.mark.fault(
    "the store out of reach for a while (connections refused, cut)",
    "all work: it is stored once the store is back",
)
def test_a_store_out_of_reach(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    bot.proxy.down()
    time.sleep(FOR_S * luck.random())
    bot.judge()
    if SOAK:
        # A start meanwhile tries for 10 s, then says so, and is no empty one; `tests/execute` does the same.
        empty = bot.host()
        empty.env["THE0_ENDED"] = None
        bot.is_refused(empty, ExitCode.STORE_UNREACHABLE)
    bot.proxy.up()
    bot.goes_on()
    bot.stops(run)
