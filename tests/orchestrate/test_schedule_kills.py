"""Two schedulers on one store, each killed again and again: every slot is run once or recorded as something else, none twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrate.schedule_place import Place, document
from rig.server import wait_until
from the0.runs import Run, slot_s

BOTS = 10
SECONDS = 22
PROGRAM = Path(__file__).with_name("schedule_process.py")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def begin(place: Place, number: int) -> subprocess.Popen[bytes]:
    log = open(place.root / f"scheduler-{number}.log", "ab")  # noqa: SIM115 - the process's, for as long as it lives
    with log:
        return subprocess.Popen([sys.executable, str(PROGRAM), str(place.root)], stdout=log, stderr=log)


def test_no_slot_is_run_twice(place: Place) -> None:
    of = random.Random("kills")
    for number in range(BOTS):
        # Some overlap with their next slot, some queue, some are over at once.
        config = {"seconds": [0, 0.3, 1.4][number % 3], "the0": {"overlap": ["skip", "queue"][number % 2]}}
        place.add(document(f"bot-{number}", "* * * * * *", next_s=int(time.time()) + 2, **config))
    schedulers = [begin(place, number) for number in range(2)]
    kills = 0
    until = time.monotonic() + SECONDS
    try:
        while time.monotonic() < until:
            a_while(of.uniform(0.5, 2.5))
            number = of.randrange(2)
            schedulers[number].kill()
            schedulers[number].wait()
            kills += 1
            if of.random() < 0.3:  # for a while there is none
                other = 1 - number
                schedulers[other].kill()
                schedulers[other].wait()
                a_while(2)
                schedulers[other] = begin(place, other)
                kills += 1
            schedulers[number] = begin(place, number)
        last = int(time.time())
        wait_until(
            lambda: all(settled(place, number, last) for number in range(BOTS)), deadline_s=40, what="all settle"
        )
    finally:
        for scheduler in schedulers:
            scheduler.terminate()
            scheduler.wait()
    ran = Counter(place.engine.ran())
    assert [slot for slot, times in ran.items() if times > 1] == []
    results: Counter[str] = Counter()
    for number in range(BOTS):
        records = [run for run in place.records(f"bot-{number}") if run.due_s <= last]
        results.update(str(run.result) for run in records)
        begun = {slot for bot_id, slot in ran if bot_id == f"bot-{number}"}
        for run in records:
            assert not run.is_open
            if run.result in ("ok", "failed"):
                assert run.slot in begun
            elif run.result in ("missed", "skipped"):
                assert run.slot not in begun, run
        assert begun <= {run.slot for run in place.records(f"bot-{number}")}
        assert uncovered(records, last) == set()
    assert sum(ran.values()) >= 60, results
    assert kills >= 10
    assert results["ok"] >= 50, results
    assert results["missed"], results
    for log in place.root.glob("*.log"):
        assert b"Traceback" not in log.read_bytes(), log.read_text()


def a_while(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, deadline_s=10, what="a while")


def settled(place: Place, number: int, last: int) -> bool:
    records = place.records(f"bot-{number}")
    return (
        bool(records) and records[-1].due_s > last + 2 and not any(run.is_open for run in records if run.due_s <= last)
    )


def uncovered(records: list[Run], last: int) -> set[int]:
    """Slots without any record, from the first one to the last."""
    found: set[int] = set()
    for run in records:
        found |= set(range(run.due_s, (slot_s(run.last) if run.last else run.due_s) + 1))
    return set(range(min(found), last)) - found
