"""Sweeps as the daemon does them, and on every kind of store."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest
from test_interrupted import ALL, FEWER, ONE, every_generation_comes_back, many_commits
from test_keeper import keeping
from world import Host, World, write_tree

from rig.waiting import eventually
from the0 import names
from the0.errors import ExitCode, Permanent
from the0.objects.retry import Retrying
from the0.objects.store import Unavailable
from the0.settings import Buckets
from the0.settings import Limits as SizeLimits
from the0.sync import daemon
from the0.sync.cleaning import Bounds
from the0.sync.sweep import EVERY_S, Limits, Sweeper, Sweeping, Swept


def sweeping() -> bool:
    return any(thread.name == "sweep" for thread in threading.enumerate())


def orphan(world: World) -> str:
    """What a commit of former times left."""
    key = names.segment_key(world.bot_id, lineage="former", generation=1, digest="0" * 64)
    world.store.put(world.buckets.state, key, b"x")
    return key


def test_on_each_store(store: Retrying, bucket: str, tmp_path: Path) -> None:
    world = World(store=store, buckets=Buckets(state=bucket), base=tmp_path)
    here = world.host()
    world.start(here)
    write_tree(here.state, ONE)
    world.commit(here)
    trees = many_commits(world, here, 9, bounds=FEWER)
    left = orphan(world)
    assert len(world.head.content.segments) <= FEWER.listed
    every_generation_comes_back(world, trees)
    before = len(world.history.list())
    assert world.sweep() == Swept(), "all of it is young"
    swept = world.sweep(limits=Limits(age_s=-1.0, floor_bytes=2_000), live_bytes=0)
    assert swept.finished
    assert 0 < swept.history < before
    assert left not in world.segment_keys()
    every_generation_comes_back(world, trees)
    there = world.host("there")
    world.start(there)
    assert there.tree == trees[10]
    world.check()


def test_the_daemon_sweeps_after_its_first_cleaning_and_then_once_an_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "Sweeper", partial(Sweeper, limits=ALL))
    here = world.host()
    world.start(here)
    with keeping(world, here) as kept:
        left = orphan(world)
        for second in range(70):
            write_tree(here.state, {"hot": b"%d" % second})
            assert left in world.segment_keys(), "nothing was cleaned yet"
            kept.keeper.one_pass(float(second))
            if world.history.list():
                break
        assert second == Bounds().listed, "as soon as HEAD would list too many"
        assert len(world.head.content.segments) <= 2
        eventually(lambda: left not in world.segment_keys(), "it")
        left = orphan(world)
        kept.keeper.one_pass(second + EVERY_S - 1)
        write_tree(here.state, {"hot": b"within the hour"})
        kept.keeper.one_pass(second + EVERY_S - 0.5)
        eventually(lambda: not sweeping(), "it")
        assert left in world.segment_keys(), "at most one an hour"
        write_tree(here.state, {"hot": b"once more"})
        kept.keeper.one_pass(second + EVERY_S)
        eventually(lambda: left not in world.segment_keys(), "it")
        eventually(lambda: not sweeping(), "it")
        left = orphan(world)
        kept.keeper.one_pass(second + 3 * EVERY_S)
        eventually(lambda: not sweeping(), "it")
        assert left in world.segment_keys(), "as long as nothing is committed, nothing is looked for"
        kept.keeper.finish(deadline_s=time.monotonic() + 5)
    assert kept.said == []
    assert world.stored_tree() == here.tree
    world.check()


def test_a_short_run_sweeps_at_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "Sweeper", partial(Sweeper, limits=ALL))
    here = world.host()
    world.start(here)
    left = orphan(world)
    write_tree(here.state, ONE)
    world.commit(here)
    many_commits(world, here, Bounds().listed - 2)
    with keeping(world, here) as kept:
        write_tree(here.state, {"hot": b"a"})
        kept.keeper.finish(deadline_s=time.monotonic() + 5)
        assert not world.history.list()
    with keeping(world, here) as kept:
        write_tree(here.state, {"hot": b"b"})
        kept.keeper.finish(deadline_s=time.monotonic() + 5)
    assert len(world.history.list()) == 1
    assert left not in world.segment_keys()
    world.check()


class Failing:
    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        self.calls = 0

    def sweep(self, *, live_bytes: int, stop: threading.Event) -> Swept:
        assert live_bytes == 7
        assert not stop.is_set()
        self.calls += 1
        raise self.reason


@pytest.mark.parametrize(
    ("reason", "said"),
    [(Unavailable("away"), 0), (Permanent("An entry cannot be used.", code=ExitCode.STATE_DAMAGED), 1)],
)
def test_a_sweep_that_fails_is_told_once_and_tried_again(reason: Exception, said: int) -> None:
    sweeper = Failing(reason)
    told: list[str] = []
    beside = Sweeping(sweeper, say=told.append)  # type: ignore[arg-type]
    for hour in range(3):
        beside.note(dropped=1)
        beside.tend(hour * EVERY_S, live_bytes=lambda: 7)
        eventually(lambda hours=hour: sweeper.calls == hours + 1, "it")
        beside.tend(hour * EVERY_S + 1, live_bytes=lambda: 7)
        eventually(lambda: not sweeping(), "it")
    beside.finish(live_bytes=lambda: 7)
    assert len(told) == said
    assert sweeper.calls == 3


def test_a_file_over_the_limit_keeps_its_segment_and_is_not_tried_at_each_commit(world: World) -> None:
    here: Host = world.host(limits=SizeLimits(state_file_bytes=1 << 20))
    world.start(here)
    write_tree(here.state, {"big": b"x" * 1000, "other": b"1"})
    world.commit(here, bounds=FEWER)
    [first] = world.head.content.segments
    write_tree(here.state, {"big": b"y" * (2 << 20)})
    for number in range(12):
        write_tree(here.state, {"hot": b"%d" % number})
        done = world.commit(here, bounds=FEWER)
        assert done.incomplete == ("big",)
    assert first in world.head.content.segments, "what is there of it must not be lost"
    assert world.stored_tree()[b"big"] == ("file", b"x" * 1000)
    (here.state / "big").write_bytes(b"small again")
    for number in range(12):
        write_tree(here.state, {"hot": b"again %d" % number})
        world.commit(here, bounds=FEWER)
    assert first not in world.head.content.segments
    assert world.stored_tree() == here.tree
    world.check()
