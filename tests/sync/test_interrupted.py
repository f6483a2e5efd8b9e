"""Killed at every step of commit, claim, restore, import and publish, then started again.

After each kill and the start that follows, the tree is exactly a generation whose HEAD had been sent and not older than the last
one reported committed, or the live tree where the start table keeps it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from test_start import publish_archive, put_archive, tar_of
from world import Host, Tree, World, every_kill, write_tree

from rig.fault_table import Row
from the0 import names
from the0.objects.store import ObjectStore
from the0.sync.cleaning import Bounds
from the0.sync.sweep import Limits, Swept

pytestmark = pytest.mark.fault(
    "kill -9 at each request (before it, and before its reply) and each change of the disk of a first claim, claim, restore, commit, "
    "cleaning, sweep, import, clearing, archive and release",
    "the tree on the disk, or else exactly a generation that was sent, none older than the last one reported",
)
SDK = f"{names.SDK_STATE_DIR}/cash.json"
ONE: dict[str, bytes | None] = {"a": b"1", "f/big": b"x" * 200_000, SDK: b"1"}
TWO: dict[str, bytes | None] = {"a": b"2", "f/new": b"n", SDK: b"2"}


def each_kill(
    world: World, prepare: Callable[[], None], action: Callable[[ObjectStore], object], then: Callable[[int], None]
) -> int:
    count = 0

    def reset() -> None:
        world.reset()
        prepare()

    for step in every_kill(action, world.store, reset=reset):
        then(step)
        count += 1
    reset()
    action(world.store)
    then(0)
    return count


@pytest.fixture
def here(world: World) -> Host:
    return world.host()


def ran_before(world: World, host: Host, tree: dict[str, bytes | None] = ONE, *, archive: bool = False) -> None:
    world.start(host, instance="first")
    write_tree(host.state, tree)
    world.commit(host)
    if archive:
        publish_archive(world, host)


def test_commit(world: World, here: Host, fault: Row) -> None:
    trees: list[Tree] = []

    def prepare() -> None:
        ran_before(world, here)
        trees[:] = [here.tree]
        write_tree(here.state, TWO)
        trees.append(here.tree)

    def then(step: int) -> None:
        assert world.stored_tree() in trees, "the store holds one of the two generations, whole"
        there = world.host("there")
        assert world.start(there).wait_s > 0
        assert there.tree == world.stored_tree()
        shutil.rmtree(there.state)
        generation = world.head.content.generation
        assert generation in (1, 2)
        started = world.start(here)
        assert started.how == "kept", f"step {step}: the live tree is HEAD's or ahead of it"
        assert here.tree == trees[1]
        done = world.commit(here)
        assert (done.generation is None) == (generation == 2), f"step {step}: what was stored is not stored again"
        assert world.stored_tree() == trees[1]
        world.check()

    count = each_kill(world, prepare, lambda store: world.commit(here, store=store), then)
    fault.judged(tries=count)
    assert count > 5


FEW = Bounds(listed=5)
FEWER = Bounds(listed=3)
ALL = Limits(age_s=-1.0)
"""Sweeps what is young, too."""


def many_commits(world: World, host: Host, count: int, *, bounds: Bounds | None = None) -> dict[int, Tree]:
    """Small commits after `ran_before`, a hot file among them; the tree of each generation."""
    trees = {1: host.tree}
    for number in range(2, count + 2):
        write_tree(host.state, {"hot": b"%d" % number, f"f/{number}": b"x"})
        done = world.commit(host, bounds=bounds)
        assert done.generation == number
        trees[number] = host.tree
    return trees


def every_generation_comes_back(world: World, trees: dict[int, Tree]) -> None:
    """Those that are kept: the newest, the oldest, and those beside which something was dropped."""
    kept = [one.generation for one in world.history.kept(world.head.content)]
    ends = {names.numbered(info.key)[1] for info in world.history.list()}  # type: ignore[index]
    for generation in {kept[0], kept[-1], *(ends & set(kept))}:
        assert world.stored_tree(world.history.content_at(world.head.content, generation)) == trees[generation]


def test_commit_that_cleans(world: World, here: Host, fault: Row) -> None:
    trees: dict[int, Tree] = {}

    def prepare() -> None:
        ran_before(world, here)
        trees.clear()
        trees.update(many_commits(world, here, 4))
        write_tree(here.state, TWO)
        trees[6] = here.tree

    def then(step: int) -> None:
        generation = world.head.content.generation
        assert generation in (5, 6)
        assert len(world.head.content.segments) == (5 if generation == 5 else 1)
        assert world.stored_tree() == trees[generation], "one of the two generations, whole"
        every_generation_comes_back(world, trees)
        assert world.start(here).how == "kept", f"step {step}: the live tree is HEAD's or ahead of it"
        assert here.tree == trees[6]
        done = world.commit(here, bounds=FEW)
        assert (done.generation is None) == (generation == 6), f"step {step}: what was stored is not stored again"
        assert len(world.head.content.segments) == 1
        assert {one.generation for one in world.history.kept(world.head.content)} == set(range(1, 7))
        world.sweep(limits=ALL)
        assert world.stored_tree() == trees[6]
        world.check()

    count = each_kill(world, prepare, lambda store: world.commit(here, store=store, bounds=FEW), then)
    fault.judged(tries=count)
    assert count > 7


def test_sweep(world: World, here: Host, fault: Row) -> None:
    trees: dict[int, Tree] = {}

    def prepare() -> None:
        ran_before(world, here)
        trees.clear()
        trees.update(many_commits(world, here, 6, bounds=FEWER))
        assert len(world.history.list()) > 1
        # What a commit leaves that was cut off.
        world.store.put(
            world.buckets.state,
            names.segment_key(world.bot_id, lineage=world.head.content.lineage, generation=3, digest="0" * 64),
            b"x",
        )

    def sweep(store: ObjectStore) -> None:
        world.sweep(store=store, limits=tight, live_bytes=0)

    tight = Limits(age_s=-1.0, floor_bytes=1_000)

    def then(step: int) -> None:
        assert world.stored_tree() == trees[7]
        world.start(here)
        sweep(world.store)
        assert world.sweep(limits=tight, live_bytes=0) == Swept(), "the first one left nothing to do"
        kept = [one.generation for one in world.history.kept(world.head.content)]
        assert kept == sorted(kept, reverse=True)
        assert 0 < len(kept) < 7, f"step {step}"
        every_generation_comes_back(world, trees)
        named = {ref.key for ref in world.head.content.segments}
        for info in world.history.list():
            entry = world.history.read(info.key)
            assert entry is not None
            named |= {ref.key for ref in entry.segments}
        assert world.segment_keys() == named
        world.check()

    fault.judged(tries=each_kill(world, prepare, sweep, then))


def test_claim_of_a_tree_that_stays(world: World, here: Host, fault: Row) -> None:
    trees: list[Tree] = []

    def prepare() -> None:
        ran_before(world, here)
        write_tree(here.state, TWO)
        trees[:] = [here.tree]

    def then(step: int) -> None:
        started = world.start(here)
        assert started.how == "kept"
        assert started.wait_s == 0.0, f"step {step}: this disk's own claim is known"
        assert here.tree == trees[0]
        world.commit(here)
        assert world.stored_tree() == trees[0]
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store, instance="killed"), then))


def test_first_claim(world: World, here: Host, fault: Row) -> None:
    def then(step: int) -> None:
        started = world.start(here)
        assert started.wait_s == 0.0, f"step {step}"
        assert here.tree == {}
        write_tree(here.state, ONE)
        world.commit(here)
        assert world.stored_tree() == here.tree
        world.check()

    fault.judged(
        tries=each_kill(world, lambda: None, lambda store: world.start(here, store=store, instance="killed"), then)
    )


def test_adopting_a_tree(world: World, here: Host, fault: Row) -> None:
    trees: list[Tree] = []

    def prepare() -> None:
        write_tree(here.state, ONE)
        trees[:] = [here.tree]

    def then(step: int) -> None:
        world.start(here)
        assert here.tree == trees[0], f"step {step}"
        world.commit(here)
        assert world.stored_tree() == trees[0]
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_restore(world: World, here: Host, fault: Row) -> None:
    trees: list[Tree] = []
    there = world.host("there")

    def prepare() -> None:
        ran_before(world, there)
        trees[:] = [there.tree]
        write_tree(there.state, TWO)
        world.commit(there)
        trees[:] = [there.tree]
        world.release(there)

    def then(step: int) -> None:
        world.start(here)
        assert here.tree == trees[0], f"step {step}"
        assert world.commit(here).generation is None
        assert here.asides == []
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_restore_over_an_older_tree(world: World, here: Host, fault: Row) -> None:
    trees: list[Tree] = []
    there = world.host("there")

    def prepare() -> None:
        ran_before(world, here)
        world.release(here)
        write_tree(here.state, {"a": b"unsynced"})
        world.start(there)
        write_tree(there.state, TWO)
        world.commit(there)
        world.release(there)
        trees[:] = [there.tree]

    def then(step: int) -> None:
        world.start(here)
        assert here.tree == trees[0], f"step {step}"
        kept = [aside / "a" for aside in here.asides if (aside / "a").exists()]
        assert [path.read_bytes() for path in kept] == [b"unsynced"], f"step {step}: unsynced work is kept aside"
        assert world.commit(here).generation is None
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_import_by_key(world: World, here: Host, fault: Row) -> None:
    def prepare() -> None:
        ran_before(world, here, archive=True)
        world.release(here)
        put_archive(world, tar_of({SDK: b"edited", f"{names.SDK_STATE_DIR}/new.json": b"n"}))

    def then(step: int) -> None:
        world.start(here)
        keys = {path.name: path.read_bytes() for path in (here.state / names.SDK_STATE_DIR).iterdir()}
        assert keys == {"cash.json": b"edited", "new.json": b"n"}, f"step {step}"
        assert (here.state / "a").read_bytes() == b"1"
        assert world.head.claim.import_etag is None
        assert world.stored_tree() == here.tree
        # An edit after that is still told apart from what the bot has.
        put_archive(world, tar_of({SDK: b"edited", f"{names.SDK_STATE_DIR}/new.json": b"m"}))
        world.start(here)
        assert (here.state / SDK).read_bytes() == b"edited"
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_import_of_a_whole_archive(world: World, here: Host, fault: Row) -> None:
    expected = {b"other": ("dir", b""), b"other/x": ("file", b"9")}

    def prepare() -> None:
        ran_before(world, here)
        world.release(here)
        put_archive(world, tar_of({"other/x": b"9"}))

    def then(step: int) -> None:
        world.start(here)
        assert here.tree == expected == world.stored_tree(), f"step {step}"
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_first_import(world: World, here: Host, fault: Row) -> None:
    expected = {b"other": ("dir", b""), b"other/x": ("file", b"9")}

    def then(step: int) -> None:
        world.start(here)
        assert here.tree == expected == world.stored_tree(), f"step {step}"
        world.check()

    def prepare() -> None:
        put_archive(world, tar_of({"other/x": b"9"}))

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_clearing(world: World, here: Host, fault: Row) -> None:
    def prepare() -> None:
        ran_before(world, here, archive=True)
        world.release(here)
        world.store.delete(world.buckets.state, names.archive_key(world.bot_id))

    def then(step: int) -> None:
        world.start(here)
        assert not (here.state / names.SDK_STATE_DIR).exists(), f"step {step}"
        assert (here.state / "a").read_bytes() == b"1"
        assert world.stored_tree() == here.tree
        world.check()

    fault.judged(tries=each_kill(world, prepare, lambda store: world.start(here, store=store), then))


def test_publishing_the_archive(world: World, here: Host, fault: Row) -> None:
    def prepare() -> None:
        ran_before(world, here, archive=True)
        write_tree(here.state, TWO)
        world.commit(here)

    def publish(store: ObjectStore) -> None:
        publish_archive(World(store=store, buckets=world.buckets, base=world.base), here)

    def then(step: int) -> None:
        started = world.start(here)
        assert started.how == "kept", f"step {step}: our own archive is never taken for somebody else's"
        assert (here.state / SDK).read_bytes() == b"2"
        world.check()

    fault.judged(tries=each_kill(world, prepare, publish, then))


def test_release(world: World, here: Host, fault: Row) -> None:
    def release(store: ObjectStore) -> None:
        World(store=store, buckets=world.buckets, base=world.base).release(here)

    def then(step: int) -> None:
        there = world.host("there")
        wait_s = world.start(there).wait_s
        assert (wait_s == 0.0) or step > 0
        assert there.tree == here.tree
        world.check()

    fault.judged(tries=each_kill(world, lambda: ran_before(world, here), release, then))
