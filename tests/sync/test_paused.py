"""A holder that is paused for hours around any of its requests, while another one takes over, goes on, and sweeps.

Whatever the paused one was about to do, when it goes on it stores nothing and deletes nothing that counts: its next swap of HEAD
fails, and what it deletes nobody can need any more.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_interrupted import ALL, FEW, FEWER, ONE, every_generation_comes_back, many_commits
from world import Host, Tree, World, write_tree

from rig.fault_table import Row
from the0 import names
from the0.objects.store import ObjectStore
from the0.sync.commit import Committer, Fenced
from the0.sync.head import HeadFile
from the0.sync.local import StateFolder
from the0.sync.sweep import Limits, Sweeper, Swept

PAUSED = pytest.mark.fault(
    "a writer paused for hours around each of its requests, while another takes over, stores, cleans and sweeps",
    "the other one's generations, all of them; the paused one stores and deletes nothing that counts",
)


class Paused:
    """A store whose holder is paused at one step: just before a request, or when it was applied and its reply is under way."""

    def __init__(self, store: ObjectStore, *, at: int, meanwhile: Callable[[], None]) -> None:
        self._store = store
        self._at = at
        self._meanwhile = meanwhile
        self.steps = 0

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._store, attribute)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self._step()
            try:
                result = method(*args, **kwargs)
                return list(result) if attribute == "list" else result
            finally:
                self._step()

        return stepped

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._meanwhile()


def each_pause(
    world: World,
    prepare: Callable[[], None],
    action: Callable[[ObjectStore], object],
    meanwhile: Callable[[], None],
    then: Callable[[int, bool], None],
) -> int:
    for at in range(1, 500):
        world.reset()
        prepare()
        paused = Paused(world.store, at=at, meanwhile=meanwhile)
        try:
            action(paused)  # type: ignore[arg-type]
            fenced = False
        except Fenced:
            fenced = True
        if paused.steps < at:
            return at - 1
        then(at, fenced)
    raise AssertionError("it never ends")


@pytest.fixture
def here(world: World) -> Host:
    return world.host()


@pytest.fixture
def there(world: World) -> Host:
    return world.host("there")


@PAUSED
@pytest.mark.parametrize("length", [0, 1, 9])
def test_a_paused_commit_that_cleans(world: World, here: Host, there: Host, length: int, fault: Row) -> None:
    trees: dict[int, Tree] = {}

    def prepare() -> None:
        trees.clear()
        world.start(here, instance="first")
        write_tree(here.state, ONE)
        world.commit(here)
        trees.update(many_commits(world, here, 4))
        write_tree(here.state, {"a": b"of the paused one"})

    def meanwhile() -> None:
        """The other one may make the very same change, so that even the names of its segments are the same."""
        world.start(there, ended="first")
        generation = world.head.content.generation
        trees[generation] = there.tree
        for number in range(length):
            write_tree(there.state, {"hot": b"there %d" % number})
            world.commit(there, bounds=FEW)
            generation += 1
            trees[generation] = there.tree
            world.sweep(limits=Limits(age_s=-1.0, floor_bytes=4096), live_bytes=0)
        world.sweep(limits=ALL)

    def then(step: int, fenced: bool) -> None:
        head = world.head
        assert head.claim.instance != "first"
        # Paused after its swap was applied, it may end without a further look.
        assert fenced or head.content.since or head.content.generation == 6 + length, f"step {step}"
        assert world.stored_tree() == there.tree, f"step {step}: what the new holder stored last"
        every_generation_comes_back(world, trees)
        world.check()
        world.sweep(limits=ALL)
        world.check()
        every_generation_comes_back(world, trees)

    def commit(store: ObjectStore) -> None:
        stored = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id).read()
        assert stored is not None
        with StateFolder(here.settings.paths.state) as folder:
            index = folder.open_index()
            assert index is not None
            committer = Committer.of(here.settings, store, folder=folder, index=index, stored=stored, bounds=FEW)
            committer.commit(committer.scan())

    pauses = each_pause(world, prepare, commit, meanwhile, then)
    assert pauses >= 6
    fault.judged(tries=pauses)


@PAUSED
@pytest.mark.parametrize("length", [0, 5])
def test_a_paused_sweep(world: World, here: Host, there: Host, length: int, fault: Row) -> None:
    trees: dict[int, Tree] = {}
    tight = Limits(age_s=-1.0, floor_bytes=1_000)

    def prepare() -> None:
        trees.clear()
        world.start(here, instance="first")
        write_tree(here.state, ONE)
        world.commit(here)
        trees.update(many_commits(world, here, 6, bounds=FEWER))
        # A commit that was cut off before HEAD; the next one stores the very same bytes under the very same name.
        write_tree(here.state, {"hot": b"cut off"})
        shutil.copytree(here.state, world.base / "copy", symlinks=True)

    def meanwhile() -> None:
        world.start(there, ended="first")
        for number in range(length):
            write_tree(there.state, {"hot": b"there %d" % number})
            generation = world.commit(there, bounds=FEW).generation
            assert generation is not None
            trees[generation] = there.tree
        world.sweep(limits=ALL)

    def then(step: int, fenced: bool) -> None:
        assert not fenced, f"step {step}"
        assert world.stored_tree() == there.tree
        every_generation_comes_back(world, trees)
        world.check()

    def sweep(store: ObjectStore) -> None:
        world.sweep(store=store, limits=tight, live_bytes=0)

    pauses = each_pause(world, prepare, sweep, meanwhile, then)
    assert pauses > 10
    fault.judged(tries=pauses)


def test_what_a_cut_off_commit_uploaded_is_not_swept_before_its_generation_has_passed(world: World, here: Host) -> None:
    """The same holder commits the same bytes again, under the same name: a sweep that was paused must not delete them."""
    world.start(here)
    write_tree(here.state, ONE)
    world.commit(here)
    lineage = world.head.content.lineage

    def orphan(generation: int) -> str:
        key = names.segment_key(world.bot_id, lineage=lineage, generation=generation, digest="0" * 64)
        world.store.put(world.buckets.state, key, b"x")
        return key

    orphan(1)
    coming = orphan(2)
    other = names.segment_key(world.bot_id, lineage="other", generation=9, digest="0" * 64)
    world.store.put(world.buckets.state, other, b"x")
    world.sweep(limits=ALL)
    assert world.segment_keys() == {coming, *(ref.key for ref in world.head.content.segments)}
    world.check()


def test_only_the_holder_sweeps(world: World, here: Host, there: Host) -> None:
    world.start(here, instance="first")
    write_tree(here.state, ONE)
    world.commit(here)
    orphan = names.segment_key(world.bot_id, lineage="other", generation=9, digest="0" * 64)
    world.store.put(world.buckets.state, orphan, b"x")
    former = world.head.claim
    world.start(there, ended="first")
    sweeper = Sweeper(
        world.store,
        bucket=world.buckets.state,
        bot_id=world.bot_id,
        epoch=former.epoch,
        instance=former.instance,
        limits=ALL,
    )
    assert sweeper.sweep(live_bytes=0, stop=threading.Event()) == Swept(finished=False)
    assert orphan in world.segment_keys()
