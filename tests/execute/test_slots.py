"""`execute` of a scheduled run: only the token that claimed the slot runs it."""

from __future__ import annotations

import time

import pytest
from bot_place import Place

from the0.errors import ExitCode
from the0.objects.folder import Folder
from the0.runs import Runs, slot_name

BOT = """
    def main(bot_id, config):
        print("ran")
"""


@pytest.fixture
def records(place: Place) -> Runs:
    place.put_bot(BOT)
    return Runs(Folder(str(place.store)), bucket="bot-state")


def test_the_holder_of_a_slot_runs_it(place: Place, records: Runs) -> None:
    slot = slot_name(int(time.time()))
    assert records.claim("bot-1", slot, holder="scheduler", token="mine", now_s=time.time()) is not None
    place.env = {"THE0_SLOT": slot, "THE0_RUN_TOKEN": "mine", "BOT_TYPE": "scheduled"}
    ended = place.run()
    assert (ended.code, "ran" in ended.log) == (0, True), ended.err


@pytest.mark.parametrize("token", ["another", None])
@pytest.mark.parametrize("flags", [(), ("--skip-sync",)])
def test_nobody_else_does(place: Place, records: Runs, token: str | None, flags: tuple[str, ...]) -> None:
    slot = slot_name(int(time.time()))
    assert records.claim("bot-1", slot, holder="scheduler-a", token="mine", now_s=time.time()) is not None
    place.env = {"THE0_SLOT": slot, "THE0_RUN_TOKEN": token, "BOT_TYPE": "scheduled"}
    ended = place.start(*flags).end()
    assert ended.code == ExitCode.SLOT_TAKEN
    assert f"Run {slot} of bot bot-1 belongs to scheduler-a" in ended.err
    assert "ran" not in ended.log
    assert not (place.store / "bot-state/bot-1/HEAD").exists()


def test_a_run_that_counts_as_lost_does_not_begin(place: Place, records: Runs) -> None:
    slot = slot_name(int(time.time()))
    run = records.claim("bot-1", slot, holder="scheduler", token="mine", now_s=time.time())
    assert run is not None
    records.change(run, result="lost", end_s=time.time())
    place.env = {"THE0_SLOT": slot, "THE0_RUN_TOKEN": "mine", "BOT_TYPE": "scheduled"}
    ended = place.run()
    assert ended.code == ExitCode.SLOT_TAKEN
    assert "is recorded as lost already" in ended.err
