"""A store that answers badly while the host is lost: what it had said it stored is there, and a start never takes it for empty."""

from __future__ import annotations

import random
import time

import pytest

from faults.field import Field
from rig.proxy import Answer, DropReply, Fate, LateReply, Request

FOR_S = 2.0


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
