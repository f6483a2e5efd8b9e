"""A generation that calls itself a consistent cut is one: a writer's invariant over two files holds in it, restored from the store."""

from __future__ import annotations

import operator
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import pytest
from test_keeper import Kept, keeping
from world import Host, World, write_tree

from the0.sync.head import Content
from the0.sync.watching import Watching

SOAK = bool(os.environ.get("THE0_SOAK"))
CUTS = 500 if SOAK else 60
DEADLINE_S = 1800.0 if SOAK else 120.0

# In bursts, with rests between them: n to `a/count` in place, then n to `b/count` by renaming. Between the two, in the order in which a
# folder is read, lies a file of which every block changes in each burst, so that reading takes longer than many pairs; and folders
# come, go and move.
WRITER = """
import os, random, shutil, sys, time
root, burst_s, rest_s, pause_s = sys.argv[1], *map(float, sys.argv[2:])
chance = random.Random(7)
a = os.open(f"{root}/a/count", os.O_RDWR | os.O_CREAT, 0o644)
bulk = os.open(f"{root}/ab", os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(bulk, 8 << 20)
number = burst = 0
while True:
    burst += 1
    until_s = time.monotonic() + burst_s * chance.random()
    for block in range(0, 8 << 20, 1 << 16):
        os.pwrite(bulk, bytes([burst % 251 + 1]), block)
    while True:
        number += 1
        os.pwrite(a, b"%09d" % number, 0)
        with open(f"{root}/b/next", "wb") as file:
            file.write(b"%09d" % number)
        os.rename(f"{root}/b/next", f"{root}/b/count")
        if time.monotonic() >= until_s:
            break
        if pause_s:
            time.sleep(pause_s * chance.random())
    if burst % 5 == 0:
        os.makedirs(f"{root}/aa-{burst % 4}/deep", exist_ok=True)
        with open(f"{root}/aa-{burst % 4}/deep/{burst % 7}", "wb") as file:
            file.write(os.urandom(50_000))
    elif burst % 11 == 0 and os.path.isdir(f"{root}/aa-{burst % 4}"):
        shutil.rmtree(f"{root}/moved-{burst % 3}", ignore_errors=True)
        os.rename(f"{root}/aa-{burst % 4}", f"{root}/moved-{burst % 3}")
    time.sleep(rest_s * chance.random())
"""


@contextmanager
def writer(host: Host, *, burst_s: float, rest_s: float, pause_s: float = 0.0005) -> Iterator[None]:
    write_tree(host.state, {"a/count": b"0" * 9, "b/count": b"0" * 9})
    arguments = [str(host.state), str(burst_s), str(rest_s), str(pause_s)]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments])
    try:
        yield
        assert process.poll() is None, "the writer must not end by itself"
    finally:
        process.kill()
        process.wait()


def pair(world: World, content: Content) -> tuple[int, int]:
    tree = world.stored_tree(content)
    shutil.rmtree(world.base / f"restored-{world.clock}")
    return int(tree[b"a/count"][1]), int(tree[b"b/count"][1])


def generations(kept: Kept, *, cuts: int) -> list[Content]:
    """One after the other, as quickly as they come, until so many were cuts."""
    found: list[Content] = []
    deadline = time.monotonic() + DEADLINE_S
    while sum(content.cut for content in found) < cuts:
        assert time.monotonic() < deadline, f"{sum(c.cut for c in found)} cuts in {len(found)} generations"
        kept.keeper.one_pass(time.monotonic())
        content = kept.keeper._committer.content
        if not found or content.generation > found[-1].generation:
            found.append(content)
    return found


@dataclass
class Counted:
    generations: int = 0
    cuts: int = 0
    torn_cuts: int = 0
    torn_others: int = 0

    def __add__(self, more: Counted) -> Counted:
        return Counted(*map(operator.add, astuple(self), astuple(more)))


def counted(world: World, found: list[Content]) -> Counted:
    """How many of them were cuts, and of how many the two files are not of one instant."""
    told = Counted(generations=len(found))
    for content in found:
        a, b = pair(world, content)
        told.cuts += content.cut
        if not 0 <= a - b <= 1:
            told.torn_cuts += content.cut
            told.torn_others += not content.cut
    print(told)
    world.check()
    return told


@pytest.mark.parametrize(("burst_s", "rest_s"), [(0.02, 0.1), (0.1, 0.2)])
def test_an_invariant_holds_in_every_cut(world: World, burst_s: float, rest_s: float) -> None:
    host = world.host()
    world.start(host)
    with writer(host, burst_s=burst_s, rest_s=rest_s), keeping(world, host) as kept:
        found = generations(kept, cuts=CUTS // 2)
        assert kept.said == []
    assert counted(world, found).torn_cuts == 0


def test_without_the_rule_many_would_be_torn(world: World) -> None:
    """What the tests here are worth: a writer like theirs, and a committer that takes whatever it read for a cut. How many are torn
    hangs on how quickly it reads."""
    host = world.host()
    world.start(host)
    deadline = time.monotonic() + DEADLINE_S
    told = Counted()
    with writer(host, burst_s=0.1, rest_s=0.2), keeping(world, host) as kept:
        kept.keeper._committer.live = False
        while told.torn_cuts < CUTS // 50 or told.cuts < CUTS // 2:
            assert time.monotonic() < deadline, told
            told += counted(world, generations(kept, cuts=10))


def test_it_holds_without_inotify(world: World) -> None:
    host = world.host()
    world.start(host)
    with writer(host, burst_s=0.02, rest_s=0.5), keeping(world, host) as kept:
        kept.keeper.watching = Watching(kept.keeper._folder.root_fd, say=kept.said.append, max_folders=1)
        found = generations(kept, cuts=CUTS // 10)
    assert len(kept.said) == 1
    assert "too many folders" in kept.said[0]
    assert counted(world, found).torn_cuts == 0


def test_what_never_rests_is_stored_all_the_same(world: World) -> None:
    host = world.host()
    world.start(host)
    with writer(host, burst_s=DEADLINE_S * 1000, rest_s=0.0, pause_s=0.0), keeping(world, host) as kept:
        deadline = time.monotonic() + DEADLINE_S
        found: list[Content] = []
        while len(found) < 5:
            assert time.monotonic() < deadline
            kept.keeper.one_pass(time.monotonic())
            content = kept.keeper._committer.content
            if not found or content.generation > found[-1].generation:
                found.append(content)
    assert counted(world, found).torn_cuts == 0
