"""Cleaning: HEAD's list, storage and restores stay bounded however many commits there are, and nothing is lost by it."""

from __future__ import annotations

import os
from random import Random

import pytest
from world import World, write_tree

from the0.sync import commit
from the0.sync.cleaning import Bounds, Held, choose
from the0.sync.local import StateFolder
from the0.sync.sweep import Limits

SMALL = Bounds(listed=16, per_bytes=1 << 20, carry_bytes=1 << 20, slack_bytes=64 << 10)
"""The real bounds, scaled down 32 times or so."""


def held(*sizes: tuple[int, int]) -> list[Held]:
    return [Held(f"k{n}", stored, live) for n, (stored, live) in enumerate(sizes)]


MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([], ""),
        ([(30 * MIB, 30 * MIB)] * 60, ""),
        ([(30 * MIB, 16 * MIB)], ""),
        ([(30 * MIB, 14 * MIB), (30 * MIB, 30 * MIB)], "k0"),
        # What one commit carries is bounded: the emptiest first.
        ([(64 * MIB, 30 * MIB), (64 * MIB, 2 * MIB), (64 * MIB, 20 * MIB)], "k1 k2"),
        # Dead bytes that are not worth it.
        ([(1000, 0), (900 * 1024, 0), (30 * MIB, 30 * MIB)], ""),
        ([(1000, 0)] * 62 + [(30 * MIB, 30 * MIB)], ""),
        ([(1000, 0)] * 63 + [(30 * MIB, 30 * MIB)], " ".join(f"k{n}" for n in range(63))),
        ([(40 * MIB, 40 * MIB), *[(4096, 4096)] * 70], " ".join(f"k{n}" for n in range(1, 71))),
    ],
)
def test_what_is_chosen(sizes: list[tuple[int, int]], chosen: str) -> None:
    found = choose(held(*sizes), bounds=Bounds())
    assert set(found) == set(chosen.split())
    assert list(found) == sorted(found, key=lambda key: int(key[1:]))


def test_what_could_not_be_carried_is_spared() -> None:
    segments = held((30 * MIB, 14 * MIB), (30 * MIB, 10 * MIB))
    assert choose(segments, bounds=Bounds(), spared={"k1"}) == ("k0",)


def test_any_number_of_commits_is_carried_a_few_times_at_most() -> None:
    """The plan alone, 100,000 commits: the list stays bounded, and so does what is carried again and again."""
    rng = Random(1)
    bounds = Bounds()
    segments = [Held(f"base{n}", 32 * MIB, 32 * MIB) for n in range(32)]
    stored = carried = most = cleanings = 0
    for n in range(100_000):
        if chosen := set(choose(segments, bounds=bounds)):
            live = sum(s.live_bytes for s in segments if s.key in chosen)
            assert live <= bounds.carry_bytes
            segments = [s for s in segments if s.key not in chosen] + [Held(f"m{n}", live, live)]
            carried += live
            cleanings += 1
        segments.append(Held(f"c{n}", 4096, 4096))
        stored += 4096
        # Each commit replaces what an older one had stored.
        at = rng.randrange(len(segments))
        one = segments[at]
        segments[at] = Held(one.key, one.stored_bytes, max(one.live_bytes - 4096, 0))
        most = max(most, len(segments))
    live = sum(s.live_bytes for s in segments)
    assert most <= bounds.listed + 32 + 1
    assert sum(s.stored_bytes for s in segments) <= 2 * live
    assert carried <= 12 * stored
    assert cleanings <= 100_000 / 8


@pytest.mark.parametrize("seed", range(3))
def test_many_commits(world: World, seed: int) -> None:
    """HEAD, storage and history after each of many commits, and every generation that is kept."""
    rng = Random(seed)
    host = world.host()
    world.start(host)
    write_tree(host.state, {f"base/{n}": rng.randbytes(20_000) for n in range(100)})
    trees = {}
    commits = int(os.environ.get("CLEANING_COMMITS", "150"))
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder, bounds=SMALL)
        dropped = 0
        for number in range(commits):
            for _ in range(rng.choice([1, 1, 1, 20])):
                path = host.state / f"base/{rng.randrange(130)}"
                if rng.random() < 0.2:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(rng.randbytes(rng.choice([10, 20_000])))
            (host.state / "hot").write_bytes(b"%d" % number)
            done = committer.commit(committer.scan())
            assert done.generation == number + 1
            dropped += done.dropped
            trees[done.generation] = host.tree if number % 3 == 0 or done.dropped else None
            content = world.head.content
            live = committer.live_bytes()
            assert len(content.segments) <= SMALL.listed + live // SMALL.per_bytes + 1
            assert sum(ref.bytes for ref in content.segments) <= 2.1 * live + SMALL.slack_bytes
        assert dropped > 20
        kept = {one.generation for one in world.history.kept(committer.content)}
        assert kept == set(range(1, commits + 1)), "nothing was swept yet"
        swept = world.sweep(limits=Limits(age_s=-1, floor_bytes=0), live_bytes=committer.live_bytes())
        assert swept.finished
        assert swept.history > 0
        assert swept.segments > 0
    present = list(world.store.list(world.buckets.state, f"{world.bot_id}/segments/"))
    named = sum(ref.bytes for ref in world.head.content.segments)
    assert sum(info.size for info in present) <= named + live, "history takes no more than what is live"
    kept = {one.generation for one in world.history.kept(world.head.content)}
    assert max(kept) == commits
    assert kept == set(range(min(kept), commits + 1)), "the oldest go first"
    compared = 0
    for generation, tree in trees.items():
        if tree is not None and generation in kept:
            assert world.stored_tree(world.history.content_at(world.head.content, generation)) == tree
            compared += 1
    assert compared > 3
    world.check()


def test_what_takes_long_to_weigh_is_cleaned_all_the_same_only_not_at_each_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = world.host()
    world.start(host)
    monkeypatch.setattr(commit, "WEIGHED_S", -1.0)
    monkeypatch.setattr(commit, "WEIGHED_SHARE", 1e12)
    commits = SMALL.listed * 2
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder, bounds=SMALL)
        for number in range(commits):
            (host.state / "hot").write_bytes(b"%d" % number)
            assert committer.commit(committer.scan()).dropped == 0
        assert len(world.head.content.segments) == commits
    monkeypatch.setattr(commit, "WEIGHED_SHARE", 0.0)
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder, bounds=SMALL)
        (host.state / "hot").write_bytes(b"last")
        assert committer.commit(committer.scan()).dropped > 0
    assert len(world.head.content.segments) <= SMALL.listed
    world.check()
