"""Run records over every kind of store: one holder a slot, conditional changes, folding, and what is never claimed again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from the0 import names, runs
from the0.errors import ExitCode, Fatal, Permanent
from the0.objects.retry import Retrying
from the0.runs import KEPT_S, Changed, Run, Runs, slot_name, slot_s

NOW_S = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC"""
SLOT = slot_name(1_790_000_000)
DAY_S = 86400


@pytest.fixture
def records(store: Retrying, bucket: str) -> Runs:
    return Runs(store, bucket=bucket)


def claim(records: Runs, slot: str = SLOT, *, token: str = "secret", bot: str = "bot-1", now_s: float = NOW_S) -> Run:
    run = records.claim(bot, slot, holder="scheduler-a", token=token, now_s=now_s, generation_before=3)
    assert run is not None
    return run


def test_one_of_sixteen_gets_the_slot(records: Runs) -> None:
    got: list[Run] = []
    ready = threading.Barrier(16)

    def contend(number: int) -> None:
        ready.wait()
        run = records.claim("bot-1", SLOT, holder=f"scheduler-{number}", token=f"token-{number}", now_s=NOW_S)
        if run is not None:
            got.append(run)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(got) == 1
    assert records.read("bot-1", SLOT) == got[0]


def test_a_run_from_claim_to_end(records: Runs) -> None:
    run = claim(records)
    assert run.is_open
    assert records.claim("bot-1", SLOT, holder="scheduler-b", token="other", now_s=NOW_S) is None
    run = records.change(run, start_s=NOW_S + 0.25)
    run = records.change(
        run, end_s=NOW_S + 2, result="ok", code=0, by="bot", reason="It ended with 0.", generation_after=4
    )
    read = records.read("bot-1", SLOT)
    assert read == run
    assert read is not None
    assert read.log_range_s == (NOW_S + 0.25, NOW_S + 2)
    assert (read.result, read.generation_before, read.generation_after) == ("ok", 3, 4)


def test_a_claim_whose_answer_was_lost_is_repeated(records: Runs) -> None:
    first = claim(records)
    assert claim(records, now_s=NOW_S + 1) == first


def test_a_change_counts_only_over_what_was_read(records: Runs) -> None:
    run = claim(records)
    lost = records.change(run, result="lost", end_s=NOW_S + 9)
    with pytest.raises(Changed) as changed:
        records.change(run, result="ok", end_s=NOW_S + 2)
    assert changed.value.run == lost
    # The very same change twice: the answer to the first one may have been lost.
    assert records.change(run, result="lost", end_s=NOW_S + 9) == lost


def test_the_token_is_not_in_the_record(records: Runs, store: Retrying, bucket: str) -> None:
    claim(records, token="a-token-of-the-holder")
    stored = store.get(bucket, names.run_key("bot-1", SLOT), limit_bytes=10000).data
    assert b"a-token-of-the-holder" not in stored
    assert json.loads(stored)["claimed"] == "2026-09-21T14:13:20.000Z"


def test_what_execute_checks(records: Runs, store: Retrying, bucket: str) -> None:
    def refused(token: str | None, slot: str = SLOT) -> str:
        with pytest.raises(Fatal) as raised:
            runs.check(store, bucket=bucket, bot_id="bot-1", slot=slot, token=token)
        assert raised.value.code == ExitCode.SLOT_TAKEN
        return raised.value.sentence

    assert "never claimed" in refused("secret")
    run = claim(records)
    runs.check(store, bucket=bucket, bot_id="bot-1", slot=SLOT, token="secret")
    assert "belongs to scheduler-a" in refused("other")
    assert "belongs to scheduler-a" in refused(None)
    assert "never claimed" in refused("secret", slot_name(int(NOW_S) + 1))
    records.change(run, result="lost", end_s=NOW_S)
    assert "recorded as lost" in refused("secret")


def test_slots_that_were_not_run(records: Runs) -> None:
    missed = Run(
        bot_id="bot-1",
        slot=SLOT,
        holder="scheduler-a",
        claimed_s=NOW_S + 600,
        result="missed",
        count=10,
        last=slot_name(int(NOW_S) + 540),
        reason="No scheduler was up.",
    )
    noted = records.note(missed)
    assert noted == replace(missed, etag=noted.etag if noted else "")
    assert records.note(replace(missed, reason="another one says so")) is None
    assert records.claim("bot-1", SLOT, holder="scheduler-b", token="t", now_s=NOW_S) is None
    assert records.taken("bot-1", int(NOW_S) - 60, int(NOW_S) + 60) == {int(NOW_S)}


def test_which_slots_of_a_range_have_a_record(records: Runs) -> None:
    base = int(NOW_S)
    for at in (base - 60, base, base + 60, base + 120):
        claim(records, slot_name(at), token=str(at))
    claim(records, slot_name(base + 30, manual=True))
    assert records.taken("bot-1", base, base + 60) == {base, base + 60}
    assert records.taken("bot-1", base + 1, base + 59) == set()
    assert records.taken("bot-2", base, base + 60) == set()


def test_newest_first(records: Runs) -> None:
    slots = [slot_name(int(NOW_S) - age) for age in (60, 120, 7200, 3 * DAY_S, 12 * DAY_S)]
    for slot in slots:
        claim(records, slot, token=slot)
    assert [run.slot for run in records.newest("bot-1", limit=3, now_s=NOW_S)] == slots[:3]
    assert [run.slot for run in records.newest("bot-1", limit=50, now_s=NOW_S)] == slots
    assert records.newest("bot-2", now_s=NOW_S) == []


def test_old_records_fold_into_their_months(records: Runs, store: Retrying, bucket: str) -> None:
    ages_d = (0, 29, 33, 34, 70)
    slots = [slot_name(int(NOW_S) - age * DAY_S) for age in ages_d]
    for slot in slots:
        run = claim(records, slot, token=slot, now_s=slot_s(slot))
        if slot != slots[3]:
            records.change(run, result="ok", end_s=slot_s(slot) + 5.0, code=0, by="bot")
    assert records.fold("bot-1", now_s=NOW_S) == 3
    assert records.fold("bot-1", now_s=NOW_S) == 0
    keys = {info.key for info in store.list(bucket, "bot-1/runs/")}
    assert keys == {
        f"bot-1/runs/{name}" for name in (f"{slots[0]}.json", f"{slots[1]}.json", "202608.ndjson", "202607.ndjson")
    }
    shown = records.newest("bot-1", now_s=NOW_S)
    assert [(run.slot, run.result) for run in shown] == [(slot, "lost" if slot == slots[3] else "ok") for slot in slots]
    # What was folded can't be claimed again, although nothing lies under its key any more.
    assert records.claim("bot-1", slots[4], holder="scheduler-b", token="t", now_s=NOW_S) is None
    # More of the same month, and a fold that was cut off between its two steps.
    again = slot_name(slot_s(slots[2]) + 60)
    claim(records, again, token=again, now_s=slot_s(again))
    store.put(bucket, names.run_key("bot-1", slots[2]), next(run for run in shown if run.slot == slots[2]).encode())
    assert records.fold("bot-1", now_s=NOW_S) == 2
    assert [run.slot for run in records.newest("bot-1", now_s=NOW_S)] == sorted([*slots, again], reverse=True)


def test_a_slot_older_than_thirty_days_is_never_claimed(records: Runs) -> None:
    old = slot_name(int(NOW_S - KEPT_S) - 1)
    assert records.claim("bot-1", old, holder="a", token="t", now_s=NOW_S) is None
    assert records.claim("bot-1", slot_name(int(NOW_S - KEPT_S) + 1), holder="a", token="t", now_s=NOW_S) is not None


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"format":2}', b'{"format":1,"bot_id":7}', b"\xff", b"[" * 9999])
def test_a_record_that_makes_no_sense(records: Runs, store: Retrying, bucket: str, bad: bytes) -> None:
    store.put(bucket, names.run_key("bot-1", SLOT), bad)
    with pytest.raises(Permanent, match=f"The record of run {SLOT} of bot bot-1 cannot be read"):
        records.read("bot-1", SLOT)
    (shown,) = records.newest("bot-1", now_s=NOW_S)
    assert (shown.slot, shown.result) == (SLOT, "lost")
    with pytest.raises(Permanent):
        runs.check(store, bucket=bucket, bot_id="bot-1", slot=SLOT, token="t")


def test_names_of_slots() -> None:
    assert SLOT == "20260921T141320Z"
    assert slot_s(SLOT) == slot_s(slot_name(int(NOW_S), manual=True)) == int(NOW_S)
    assert not any(map(runs.is_slot, ["", "20260921", "20260921T141320", "20261321T141320Z", "x-manual"]))
