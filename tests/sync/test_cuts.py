"""A generation that calls itself a consistent cut is one: a writer's invariant over two files holds in it, restored from the store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_keeper import Kept, keeping
from world import Host, World, write_tree

from the0.sync.head import Content
from the0.sync.watching import Watching

SOAK = bool(os.environ.get("THE0_SOAK"))
CUTS = 500 if SOAK else 60
DEADLINE_S = 900.0 if SOAK else 60.0

# Writes n to `a/count`, then n to `b/count`, the one in place, the other by renaming; and what is read between the two comes and goes.
WRITER = """
import os, random, shutil, sys, time
root, pause_s = sys.argv[1], float(sys.argv[2])
chance = random.Random(7)
a = os.open(f"{root}/a/count", os.O_RDWR | os.O_CREAT, 0o644)
number = 0
while True:
    number += 1
    os.pwrite(a, b"%09d" % number, 0)
    if chance.random() < 0.3:
        time.sleep(pause_s * chance.random() / 4)
    with open(f"{root}/b/next", "wb") as file:
        file.write(b"%09d" % number)
    os.rename(f"{root}/b/next", f"{root}/b/count")
    if number % 5 == 0:
        os.makedirs(f"{root}/aa-{number % 4}/deep", exist_ok=True)
        with open(f"{root}/aa-{number % 4}/deep/{number % 7}", "wb") as file:
            file.write(os.urandom(200_000))
    elif number % 11 == 0 and os.path.isdir(f"{root}/aa-{number % 4}"):
        shutil.rmtree(f"{root}/moved-{number % 3}", ignore_errors=True)
        os.rename(f"{root}/aa-{number % 4}", f"{root}/moved-{number % 3}")
    time.sleep(pause_s * chance.random())
"""


@contextmanager
def writer(host: Host, *, pause_s: float) -> Iterator[None]:
    write_tree(host.state, {"a/count": b"0" * 9, "b/count": b"0" * 9})
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(host.state), str(pause_s)])
    try:
        yield
        assert process.poll() is None, "the writer must not end by itself"
    finally:
        process.kill()
        process.wait()


def restored(world: World, content: Content) -> tuple[int, int]:
    tree = world.stored_tree(content)
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


def check(world: World, found: list[Content]) -> None:
    torn = 0
    for content in found:
        a, b = restored(world, content)
        if content.cut:
            assert 0 <= a - b <= 1, f"generation {content.generation}: {a} and {b}"
        torn += not 0 <= a - b <= 1
    cuts = sum(content.cut for content in found)
    print(f"{len(found)} generations, {cuts} of them cuts, {torn} torn, none of these called a cut")
    world.check()


@pytest.mark.parametrize("pause_s", [0.002, 0.02])
def test_an_invariant_holds_in_every_cut(world: World, pause_s: float) -> None:
    host = world.host()
    world.start(host)
    with writer(host, pause_s=pause_s), keeping(world, host) as kept:
        found = generations(kept, cuts=CUTS // 2)
        assert kept.said == []
    check(world, found)


def test_it_holds_without_inotify(world: World) -> None:
    host = world.host()
    world.start(host)
    with writer(host, pause_s=0.15), keeping(world, host) as kept:
        kept.keeper.watching = Watching(kept.keeper._folder.root_fd, say=kept.said.append, max_folders=1)
        found = generations(kept, cuts=CUTS // 10)
    assert len(kept.said) == 1
    assert "too many folders" in kept.said[0]
    check(world, found)


def test_what_never_rests_is_stored_all_the_same(world: World) -> None:
    host = world.host()
    world.start(host)
    with writer(host, pause_s=0.0), keeping(world, host) as kept:
        deadline = time.monotonic() + DEADLINE_S
        while kept.keeper._committer.content.generation < 5:
            assert time.monotonic() < deadline
            kept.keeper.one_pass(time.monotonic())
    world.check()
