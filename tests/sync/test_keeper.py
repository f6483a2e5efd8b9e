"""The daemon's passes with a clock of the test's own: what is committed when, what is said, when it stops."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from world import Host, World, write_tree

from the0 import names
from the0.errors import ExitCode, Fault
from the0.objects.store import ObjectStore, Unavailable
from the0.settings import Limits, Policies
from the0.sync import daemon
from the0.sync.archive import ArchiveFile
from the0.sync.commit import Fenced
from the0.sync.daemon import Keeper
from the0.sync.local import Origin, StateFolder

SDK = f"{names.SDK_STATE_DIR}/cash.json"


class Away:
    """A store that can be out of reach."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if self.away and callable(attribute):

            def refuse(*_: object, **__: object) -> None:
                raise Unavailable("The store does not answer.")

            return refuse
        return attribute


@dataclass
class Kept:
    keeper: Keeper
    store: Away
    said: list[str] = field(default_factory=list)


@contextmanager
def keeping(world: World, host: Host) -> Iterator[Kept]:
    store = Away(world.store)
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder, store=store)  # type: ignore[arg-type]
        kept = Kept(keeper=None, store=store)  # type: ignore[arg-type]
        kept.keeper = Keeper(
            host.settings,
            store,  # type: ignore[arg-type]
            folder=folder,
            committer=committer,
            say=kept.said.append,
            now_s=0.0,
        )
        yield kept


def archived_generation(world: World) -> str | None:
    info = world.store.head(world.buckets.state, names.archive_key(world.bot_id))
    return info.metadata[names.ARCHIVE_GENERATION] if info else None


def test_a_change_is_committed_at_the_next_look_and_nothing_without_one(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        for second in range(3):
            assert kept.keeper.one_pass(float(second)) >= daemon.TICK_S
        assert world.head.content.generation == 0
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(4.0)
        assert world.head.content.generation == 1
        head = world.head
        for second in range(5, 25):
            kept.keeper.one_pass(float(second))
        assert world.head == head, "without a change HEAD does not move"
    assert kept.said == []
    assert world.stored_tree() == host.tree
    world.check()


def test_the_archive_follows_at_most_once_a_minute_and_at_the_stop(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(61.0)
        assert archived_generation(world) is None, "no SDK state, no archive"
        write_tree(host.state, {SDK: b"1"})
        kept.keeper.one_pass(62.0)
        assert archived_generation(world) == "2"
        for second in range(63, 120):
            write_tree(host.state, {SDK: str(second).encode()})
            kept.keeper.one_pass(float(second))
        assert archived_generation(world) == "2"
        write_tree(host.state, {SDK: b"last"})
        kept.keeper.one_pass(123.0)
        generation = world.head.content.generation
        assert archived_generation(world) == str(generation)
        assert world.head.content.archive is not None
        write_tree(host.state, {SDK: b"very last"})
        kept.keeper.finish(deadline_s=1e9)
        assert archived_generation(world) == str(generation + 1)
        shutil.rmtree(host.state / names.SDK_STATE_DIR)
        kept.keeper.finish(deadline_s=1e9)
    assert archived_generation(world) == str(generation + 2), (
        "an empty SDK state is an empty archive, not a missing one"
    )
    assert ArchiveFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id).read_base()[1] == {}
    world.check()


def test_a_foreign_archive_is_left_for_the_next_start(world: World) -> None:
    host = world.host()
    world.start(host)
    key = names.archive_key(world.bot_id)
    with keeping(world, host) as kept:
        write_tree(host.state, {SDK: b"1"})
        kept.keeper.one_pass(61.0)
        world.store.put(world.buckets.state, key, b"written by the API")
        write_tree(host.state, {SDK: b"2"})
        kept.keeper.one_pass(200.0)
        write_tree(host.state, {SDK: b"3"})
        kept.keeper.one_pass(300.0)
    assert world.store.get(world.buckets.state, key, limit_bytes=100).data == b"written by the API"
    assert len(kept.said) == 1
    assert "next start" in kept.said[0]
    assert world.stored_tree() == host.tree, "state itself goes on being stored"
    world.check()


def test_another_claim_is_noticed_without_any_change(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        kept.keeper.one_pass(1.0)
        world.start(world.host("there"))
        kept.keeper.one_pass(20.0)
        with pytest.raises(Fenced):
            kept.keeper.one_pass(31.0)


def test_another_claim_is_noticed_at_once_by_a_commit(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        world.start(world.host("there"))
        write_tree(host.state, {"a": b"unsynced"})
        with pytest.raises(Fenced):
            kept.keeper.one_pass(1.0)
        kept.keeper.set_aside_unsynced()
    assert (host.asides[0] / "a").read_bytes() == b"unsynced"
    assert world.stored_tree() == {}
    world.check()


@pytest.mark.parametrize(("policy", "stops"), [("run", False), ("stop", True)])
def test_a_store_out_of_reach(world: World, policy: Any, stops: bool) -> None:
    host = world.host(policies=Policies(store_down=policy))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(1.0)
        kept.store.away = True
        write_tree(host.state, {"a": b"22"})
        for second in range(2, 130):
            kept.keeper.one_pass(float(second))
        assert len(kept.said) == 1, "said once"
        assert kept.keeper.store_down is stops
        with StateFolder(host.settings.paths.state) as folder:
            index = folder.open_index()
            assert index is not None
            assert Origin.decode(index.meta).failing_since_s is not None, "a start after a reboot must know"
        kept.store.away = False
        for second in range(130, 150):
            kept.keeper.one_pass(float(second))
        assert len(kept.said) == 2
        assert "again" in kept.said[1]
        with StateFolder(host.settings.paths.state) as folder:
            index = folder.open_index()
            assert index is not None
            assert Origin.decode(index.meta).failing_since_s is None
    assert world.stored_tree() == host.tree
    world.check()


def test_a_last_commit_that_cannot_be_made_is_told(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1"})
        kept.store.away = True
        with pytest.raises(Unavailable):
            kept.keeper.finish(deadline_s=0.0)
        kept.store.away = False
        kept.keeper.finish(deadline_s=0.0)
        kept.keeper.release()
    assert world.head.claim.released
    assert world.stored_tree() == host.tree


def test_a_tree_over_its_limit_keeps_the_last_generation(world: World) -> None:
    host = world.host(limits=Limits(state_bytes=1000, state_file_bytes=1000))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(1.0)
        tree = host.tree
        write_tree(host.state, {"big": bytes(2000)})
        for second in range(2, 6):
            kept.keeper.one_pass(float(second))
        assert world.stored_tree() == tree
        assert len(kept.said) == 1
        assert "MAX_STATE_SIZE_MB" in kept.said[0]
        with pytest.raises(Fault) as caught:
            kept.keeper.finish(deadline_s=0.0)
        assert caught.value.code is ExitCode.STATE_LIMIT
        (host.state / "big").unlink()
        write_tree(host.state, {"a": b"2"})
        kept.keeper.one_pass(7.0)
        assert len(kept.said) == 2
    assert world.stored_tree() == host.tree
    world.check()


def test_a_file_over_its_limit_keeps_its_last_stored_version(world: World) -> None:
    host = world.host(limits=Limits(state_bytes=1 << 20, state_file_bytes=1000))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"grows": b"small", "a": b"1"})
        kept.keeper.one_pass(1.0)
        write_tree(host.state, {"grows": bytes(2000), "a": b"2"})
        for second in range(2, 6):
            kept.keeper.one_pass(float(second))
        assert world.head.content.incomplete == ("grows",)
        assert len(kept.said) == 1
        stored = world.stored_tree()
        assert stored[b"grows"] == ("file", b"small")
        assert stored[b"a"] == ("file", b"2")
        write_tree(host.state, {"grows": b"smaller again"})
        kept.keeper.one_pass(7.0)
        assert world.head.content.incomplete == ()
    assert world.stored_tree() == host.tree
    world.check()


def test_what_is_no_file_is_never_opened_and_said_once(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        os.mkfifo(host.state / "pipe")
        write_tree(host.state, {"a": b"1"})
        finished = threading.Event()

        def passes() -> None:
            for second in range(1, 4):
                write_tree(host.state, {"a": str(second).encode()})
                kept.keeper.one_pass(float(second))
            finished.set()

        threading.Thread(target=passes, daemon=True).start()
        assert finished.wait(20), "a pipe must not block"
    assert len(kept.said) == 1
    assert "pipe" in kept.said[0]
    assert world.stored_tree() == {b"a": ("file", b"3")}


def test_odd_trees_come_back_as_they_were(world: World) -> None:
    host = world.host()
    world.start(host)
    root = os.fsencode(host.state)
    odd: list[Callable[[], None]] = [
        lambda: os.symlink(b"/etc/passwd", root + b"/link"),
        lambda: os.symlink(b"nowhere", root + b"/dangling"),
        lambda: Path(os.fsdecode(root + b"/\xff\xfe")).write_bytes(b"no utf-8"),
        lambda: Path(os.fsdecode(root + b"/" + b"n" * 255)).write_bytes(b"long"),
        lambda: Path(os.fsdecode(root + b"/new\nline\x1b[31m")).write_bytes(b"control"),
        lambda: Path(os.fsdecode(root + b"/empty file")).write_bytes(b""),
        lambda: os.makedirs(root + b"/" + b"/".join([b"deep"] * 64)),
        lambda: Path(os.fsdecode(root + b"/sparse")).write_bytes(b"") or os.truncate(root + b"/sparse", 5 << 20),
        lambda: Path(os.fsdecode(root + b"/script")).write_bytes(b"#!/bin/sh\n") and os.chmod(root + b"/script", 0o750),
    ]
    for make in odd:
        make()
    os.link(root + b"/script", root + b"/hard link")
    os.utime(root + b"/empty file", ns=(1, 1234567890123456789))
    world.commit(host)
    world.release(host)
    other = world.host("other")
    world.start(other)
    assert other.tree == host.tree
    there = os.fsencode(other.state)
    for name in (b"script", b"empty file", b"deep", b"link"):
        mine, theirs = os.lstat(root + b"/" + name), os.lstat(there + b"/" + name)
        assert (mine.st_mode, mine.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns), name
    assert os.stat(there + b"/hard link").st_nlink == 1
    world.check()
