"""Every row of the start table with a real store and a real disk, and what a start says and refuses."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from world import Host, Tree, World, read_tree, write_tree

from rig.fault_table import Row
from the0 import names
from the0.errors import ExitCode, Fault
from the0.settings import Limits, Policies
from the0.sync import lease, local
from the0.sync import start as start_module
from the0.sync.archive import ArchiveFile
from the0.sync.head import ArchiveRef, HeadFile, with_nonce
from the0.sync.imports import publish
from the0.sync.local import Origin, StateFolder

FIRST = {"a.txt": b"one", "folder/b.bin": bytes(range(256)) * 1000, "empty": None}
SDK = {f"{names.SDK_STATE_DIR}/cash.json": b"100", f"{names.SDK_STATE_DIR}/seen.json": b"[1]"}


def committed(world: World, host: Host, tree: dict[str, bytes | None] = FIRST) -> Tree:
    """A bot that ran on the host and left this tree in the store, cleanly."""
    world.start(host)
    write_tree(host.state, tree)
    world.commit(host)
    world.release(host)
    return host.tree


def tar_of(members: dict[str, bytes | None], *, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", format=format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                member.mode = 0o755
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def put_archive(world: World, data: bytes) -> str:
    return world.store.put(world.buckets.state, names.archive_key(world.bot_id), data)


POWER_LOST = pytest.mark.fault(
    "power loss imitated: the index kept, files rolled back or not, another boot id",
    "the tree where it is what was stored, else what was stored; a person chooses where commits had been failing",
)
CONTRADICTING = pytest.mark.fault(
    "HEAD deleted, of another lineage, older, or of other segments than the tree on the disk",
    "the start is refused (211), and nothing is changed",
)
DAMAGED = pytest.mark.fault(
    "segments truncated, emptied, bit-flipped, with something behind them, missing",
    "the start is refused (214), never empty; once they are back, all is there",
)


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "boot_id", lambda: "another-boot")
    monkeypatch.setattr(start_module, "boot_id", lambda: "another-boot")


def publish_archive(world: World, host: Host) -> None:
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder)
        former = committer.content.archive
        stored = ArchiveFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
        assert publish(folder, committer, stored, former_etag=former.etag if former else None)


# --- rows -------------------------------------------------------------------------------------------


def test_first_run(world: World) -> None:
    host = world.host()
    started = world.start(host)
    assert (started.how, started.generation, started.epoch, started.wait_s) == ("first", 0, 1, 0.0)
    assert host.tree == {}
    write_tree(host.state, FIRST)
    assert world.commit(host).generation == 1
    assert world.stored_tree() == host.tree
    world.check()


def test_restore_on_an_empty_host(world: World) -> None:
    tree = committed(world, world.host())
    other = world.host("other")
    started = world.start(other)
    assert (started.how, started.generation, started.wait_s) == ("restored", 1, 0.0)
    assert other.tree == tree
    assert world.commit(other).generation is None, "a restored tree is not changed"
    world.check()


def test_a_tree_without_index_becomes_generation_1(world: World) -> None:
    host = world.host()
    write_tree(host.state, FIRST)
    tree = host.tree
    assert world.start(host).generation == 1
    assert world.stored_tree() == tree == host.tree
    world.check()


def test_the_store_wins_over_a_tree_of_unknown_origin(world: World) -> None:
    tree = committed(world, world.host())
    other = world.host("other")
    write_tree(other.state, {"mine.txt": b"precious"})
    started = world.start(other)
    assert other.tree == tree
    assert (other.asides[0] / "mine.txt").read_bytes() == b"precious"
    assert any("set aside" in note for note in started.notes)
    world.check()


def test_what_is_on_the_disk_is_kept_and_nothing_is_downloaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    committed(world, host)
    write_tree(host.state, {"a.txt": b"newer, not stored"})
    tree = host.tree

    def no_restore(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be restored here")

    monkeypatch.setattr(start_module, "restore", no_restore)
    assert world.start(host).how == "kept"
    assert host.tree == tree
    assert world.commit(host).generation == 2
    assert world.stored_tree() == tree
    world.check()


def test_an_emptied_folder_is_a_change_like_any_other(world: World) -> None:
    host = world.host()
    committed(world, host)
    for name in ("a.txt", "folder", "empty"):
        path = host.state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert world.start(host).how == "kept"
    assert world.commit(host).generation == 2
    assert world.stored_tree() == {}
    world.check()


@POWER_LOST
def test_after_a_reboot_an_unchanged_tree_is_kept(world: World, monkeypatch: pytest.MonkeyPatch, fault: Row) -> None:
    host = world.host()
    tree = committed(world, host)
    reboot(monkeypatch)
    monkeypatch.setattr(start_module, "restore", None)
    assert world.start(host).how == "kept"
    assert host.tree == tree
    assert world.commit(host).generation is None
    with StateFolder(host.settings.paths.state) as folder:
        index = folder.open_index()
        assert index is not None
        assert Origin.decode(index.meta).boot_id == "another-boot"
    world.check()
    fault.judged()


@POWER_LOST
def test_after_a_reboot_a_torn_tree_gives_way_to_the_store(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Row
) -> None:
    host = world.host()
    tree = committed(world, host)
    stat_before = os.stat(host.state / "a.txt")
    (host.state / "a.txt").write_bytes(b"0ne")
    os.utime(host.state / "a.txt", ns=(stat_before.st_mtime_ns, stat_before.st_mtime_ns))
    reboot(monkeypatch)
    assert world.start(host).how == "restored"
    assert host.tree == tree
    assert (host.asides[0] / "a.txt").read_bytes() == b"0ne"
    world.check()
    fault.judged()


@POWER_LOST
def test_after_a_reboot_while_commits_were_failing_a_person_chooses(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Row
) -> None:
    host = world.host()
    committed(world, host)
    (host.state / "a.txt").write_bytes(b"newer than the store")
    with StateFolder(host.settings.paths.state) as folder:
        index = folder.open_index()
        assert index is not None
        index.set_meta(replace(Origin.decode(index.meta), failing_since_s=1.0).encode())
    reboot(monkeypatch)
    before = world.head
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.REFUSED
    assert (host.state / "a.txt").read_bytes() == b"newer than the store"
    assert world.head == before, "a refused start does not claim"
    fault.judged()


def test_another_host_ran_it_since(world: World) -> None:
    here, there = world.host(), world.host("there")
    committed(world, here)
    world.start(there)
    write_tree(there.state, {"a.txt": b"two"})
    world.commit(there)
    world.release(there)
    tree = there.tree
    assert world.start(here).how == "restored"
    assert here.tree == tree
    assert here.asides == [], "the older tree was wholly stored: nothing to keep"
    world.check()


def test_another_host_ran_it_since_and_this_one_was_ahead(world: World) -> None:
    here, there = world.host(), world.host("there")
    committed(world, here)
    write_tree(here.state, {"a.txt": b"unsynced"})
    world.start(there)
    write_tree(there.state, {"a.txt": b"two"})
    world.commit(there)
    world.release(there)
    world.start(here)
    assert here.tree == there.tree
    assert (here.asides[0] / "a.txt").read_bytes() == b"unsynced"
    world.check()


def delete_head(world: World) -> None:
    world.store.delete(world.buckets.state, names.head_key(world.bot_id))


def other_lineage(world: World) -> None:
    heads = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
    stored = heads.read()
    assert stored is not None
    heads.swap(stored, with_nonce(replace(stored.head, content=replace(stored.head.content, lineage="f" * 16))))


def older(world: World) -> None:
    heads = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
    stored = heads.read()
    assert stored is not None
    heads.swap(
        stored, with_nonce(replace(stored.head, content=replace(stored.head.content, generation=0, segments=())))
    )


def other_digest(world: World) -> None:
    heads = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
    stored = heads.read()
    assert stored is not None
    heads.swap(stored, with_nonce(replace(stored.head, content=replace(stored.head.content, segments=()))))


@CONTRADICTING
@pytest.mark.parametrize("damage", [delete_head, other_lineage, older, other_digest])
def test_a_contradiction_is_refused_and_a_person_chooses(world: World, damage: object, fault: Row) -> None:
    host = world.host()
    tree = committed(world, host)
    damage(world)  # type: ignore[operator]
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.REFUSED
    assert "runtime state adopt" in caught.value.sentence
    assert host.tree == tree
    fault.judged()


def test_segments_without_head_are_no_first_run(world: World) -> None:
    committed(world, world.host())
    delete_head(world)
    with pytest.raises(Fault) as caught:
        world.start(world.host("fresh"))
    assert caught.value.code is ExitCode.REFUSED


def test_an_unreadable_index_is_no_index(world: World) -> None:
    host = world.host()
    tree = committed(world, host)
    (host.state / "a.txt").write_bytes(b"ahead")
    (host.state / names.RESERVED_DIR / names.INDEX).write_bytes(b"garbage")
    started = world.start(host)
    assert started.how == "restored"
    assert host.tree == tree
    assert (host.asides[0] / "a.txt").read_bytes() == b"ahead"
    world.check()


def test_an_incomplete_generation_is_not_restored_unless_told(world: World) -> None:
    small = Limits(state_bytes=1 << 30, state_file_bytes=100_000)
    host = world.host(limits=small)
    world.start(host)
    write_tree(host.state, FIRST)
    done = world.commit(host)
    assert done.incomplete == ("folder/b.bin",)
    world.release(host)
    assert world.start(host).how == "kept", "where the whole tree is on the disk, nothing is missing"
    world.release(host)
    with pytest.raises(Fault) as caught:
        world.start(world.host("other", limits=small))
    assert caught.value.code is ExitCode.REFUSED
    assert "folder/b.bin" in caught.value.sentence
    willing = world.host("willing", limits=small, policies=Policies(incomplete="run"))
    assert world.start(willing).how == "restored"
    assert willing.tree.keys() == {b"a.txt", b"folder", b"empty"}
    world.check()


def test_a_removed_bot_leaves_nothing_to_its_successor(world: World) -> None:
    host = world.host()
    committed(world, host, FIRST | SDK)
    put_archive(world, tar_of({f"{names.SDK_STATE_DIR}/old.json": b"1"}))
    etag = world.store.head(world.buckets.state, names.archive_key(world.bot_id)).etag  # type: ignore[union-attr]
    heads = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
    stored = heads.read()
    assert stored is not None
    content = stored.head.content
    gone = replace(content, tombstone=content.lineage, segments=(), archive=ArchiveRef(etag, 1))
    heads.swap(stored, with_nonce(replace(stored.head, content=gone)))
    started = world.start(host)
    assert started.how == "first"
    assert started.lineage != content.lineage
    assert host.tree == {}
    assert (host.asides[0] / "a.txt").read_bytes() == b"one"
    assert world.head.content.tombstone == content.lineage
    # A third host still has the removed bot's tree.
    write_tree(host.state, {"new.txt": b"new"})
    world.commit(host)
    world.release(host)
    world.check()


# --- claims -----------------------------------------------------------------------------------------


def test_taking_an_unreleased_claim_of_another_host_waits(world: World) -> None:
    world.start(world.host())
    assert world.start(world.host("there")).wait_s == lease.TAKEOVER_S


def test_taking_a_claim_whose_holder_was_seen_to_end_does_not(world: World) -> None:
    world.start(world.host(), instance="dead")
    assert world.start(world.host("there"), ended="dead").wait_s == 0.0


def test_the_own_disks_claim_is_taken_at_once(world: World) -> None:
    host = world.host()
    world.start(host)
    assert world.start(host).wait_s == 0.0
    assert world.head.claim.epoch == 2


def test_after_a_reboot_the_own_disks_claim_is_taken_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    world.start(host)
    reboot(monkeypatch)
    assert world.start(host).wait_s == 0.0


def test_a_copied_folder_does_not_say_that_the_original_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index names the original's instance, and its lock is free, while the original may still run."""
    world.start(world.host())
    copy = world.host("there")
    shutil.copytree(world.host().state, copy.state, dirs_exist_ok=True)
    reboot(monkeypatch)
    monkeypatch.setattr(lease, "machine_here", lambda: "another-machine")
    assert world.start(copy).wait_s == lease.TAKEOVER_S


def test_two_starts_at_once_give_one_holder(world: World) -> None:
    committed(world, world.host())
    hosts = [world.host(f"host-{number}") for number in range(6)]
    errors: list[BaseException] = []

    def run(host: Host, instance: str) -> None:
        try:
            world.start(host, instance=instance)
        except Fault as reason:
            errors.append(reason)

    threads = [threading.Thread(target=run, args=(host, f"i{n}")) for n, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    head = world.head
    assert head.claim.epoch == 2 + len(hosts) - 1 + 0
    holders = [host for n, host in enumerate(hosts) if head.claim.instance == f"i{n}"]
    assert len(holders) == 1
    world.check()


# --- archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_earlier_archive_is_imported_by_a_first_run(world: World, format: int) -> None:  # noqa: A002
    put_archive(
        world,
        tar_of(
            {"./": None, "./data": None, "./data/x.db": b"1" * 5000, f"{names.SDK_STATE_DIR}/k.json": b"1"},
            format=format,
        ),
    )
    host = world.host()
    write_tree(host.state, {"stale.txt": b"x"})
    started = world.start(host)
    assert (started.how, started.generation) == ("imported", 1)
    expected = {
        b"data": ("dir", b""),
        b"data/x.db": ("file", b"1" * 5000),
        names.SDK_STATE_DIR.encode(): ("dir", b""),
        f"{names.SDK_STATE_DIR}/k.json".encode(): ("file", b"1"),
    }
    assert host.tree == expected == world.stored_tree()
    assert (host.asides[0] / "stale.txt").read_bytes() == b"x"
    assert world.head.claim.import_etag is None
    world.release(host)
    assert world.start(host).how == "kept", "an archive is imported once"
    world.check()


def test_keys_edited_outside_are_merged(world: World) -> None:
    host = world.host()
    committed(
        world, host, FIRST | SDK | {f"{names.SDK_STATE_DIR}/gone.json": b"1", f"{names.SDK_STATE_DIR}/both.json": b"1"}
    )
    publish_archive(world, host)
    put_archive(
        world,
        tar_of(
            {
                f"{names.SDK_STATE_DIR}/cash.json": b"250",
                f"{names.SDK_STATE_DIR}/seen.json": b"[1]",
                f"{names.SDK_STATE_DIR}/both.json": b"2",
                f"{names.SDK_STATE_DIR}/new.json": b"7",
            }
        ),
    )
    write_tree(host.state, {f"{names.SDK_STATE_DIR}/both.json": b"3", f"{names.SDK_STATE_DIR}/seen.json": b"[1,2]"})
    started = world.start(host)
    keys = {path.name: path.read_bytes() for path in (host.state / names.SDK_STATE_DIR).iterdir()}
    assert keys == {"cash.json": b"250", "seen.json": b"[1,2]", "both.json": b"3", "new.json": b"7"}
    assert (host.state / "a.txt").read_bytes() == b"one", "all else stays"
    assert any("both.json" in note for note in started.notes)
    assert world.stored_tree() == host.tree
    publish_archive(world, host)
    world.release(host)
    assert world.start(host).how == "kept"
    world.check()


def test_keys_edited_outside_reach_another_host(world: World) -> None:
    here = world.host()
    committed(world, here, FIRST | SDK)
    publish_archive(world, here)
    put_archive(world, tar_of({f"{names.SDK_STATE_DIR}/cash.json": b"250"}))
    there = world.host("there")
    started = world.start(there)
    assert started.how == "imported"
    keys = {path.name: path.read_bytes() for path in (there.state / names.SDK_STATE_DIR).iterdir()}
    assert keys == {"cash.json": b"250"}
    assert (there.state / "a.txt").read_bytes() == b"one"
    world.check()


def test_an_archive_of_the_earlier_layout_replaces_the_whole_state(world: World) -> None:
    host = world.host()
    committed(world, host, FIRST | SDK)
    publish_archive(world, host)
    write_tree(host.state, {"unsynced.txt": b"u"})
    put_archive(world, tar_of({"other/x": b"1"}))
    world.start(host)
    assert host.tree == {b"other": ("dir", b""), b"other/x": ("file", b"1")} == world.stored_tree()
    content = world.head.content
    assert content.generation == 3, "the unsynced work became a generation before it was replaced"
    world.check()


def test_a_deleted_archive_clears_the_sdk_state_only(world: World) -> None:
    host = world.host()
    committed(world, host, FIRST | SDK)
    publish_archive(world, host)
    world.store.delete(world.buckets.state, names.archive_key(world.bot_id))
    started = world.start(host)
    assert not (host.state / names.SDK_STATE_DIR).exists()
    assert (host.state / "a.txt").read_bytes() == b"one"
    assert any("cleared" in note for note in started.notes)
    assert world.stored_tree() == host.tree
    world.release(host)
    write_tree(host.state, SDK)
    world.start(host)
    assert (host.state / names.SDK_STATE_DIR / "cash.json").exists(), "cleared once, not for ever"
    world.check()


GOOD = {f"{names.SDK_STATE_DIR}/a.json": b"1" * 3000, "data/b": bytes(range(256)) * 40}


def linked(kind: bytes, target: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        member = tarfile.TarInfo("link")
        member.type = kind
        member.linkname = target
        tar.addfile(member)
    return raw.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        tar_of(GOOD)[:-1],
        tar_of(GOOD)[: len(tar_of(GOOD)) // 2],
        tar_of({"../x": b"1"}),
        tar_of({"/etc/x": b"1"}),
        tar_of({"a/../../x": b"1"}),
        tar_of({f"{names.RESERVED_DIR}/index": b"1"}),
        tar_of({"a": b"1", "a/b": b"2"}),
        tar_of({"n" * 300: b"1"}),
        linked(tarfile.SYMTYPE, "/etc/passwd"),
        linked(tarfile.LNKTYPE, "a"),
        linked(tarfile.FIFOTYPE, ""),
    ],
)
def test_a_damaged_or_hostile_archive_stops_the_start(world: World, data: bytes) -> None:
    host = world.host()
    tree = committed(world, host)
    put_archive(world, data)
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.STATE_DAMAGED
    assert names.archive_key(world.bot_id) in caught.value.sentence
    assert host.tree == tree == world.stored_tree()
    assert not (world.base / "x").exists()
    assert world.head.claim.released, "a start that fails gives its claim back"
    world.check()


def test_an_archive_over_the_limit_stops_the_start(world: World) -> None:
    put_archive(world, tar_of({"big": bytes(3 << 20)}))
    host = world.host(limits=Limits(state_bytes=1 << 20, state_file_bytes=1 << 20))
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.STATE_LIMIT
    assert host.tree == {}


# --- damage -----------------------------------------------------------------------------------------


def segment_path(world: World) -> Path:
    return world.base / "store" / world.buckets.state / world.head.content.segments[0].key


@DAMAGED
def test_damaged_state_is_never_started_from(world: World, fault: Row) -> None:
    committed(world, world.host())
    path = segment_path(world)
    good = path.read_bytes()
    other = world.host("other")
    for damaged in (
        good[:-1],
        b"",
        bytes([good[0] ^ 1]) + good[1:],
        good[:50] + bytes([good[50] ^ 16]) + good[51:],
        good + b"x",
    ):
        path.write_bytes(damaged)
        with pytest.raises(Fault) as caught:
            world.start(other)
        assert caught.value.code is ExitCode.STATE_DAMAGED
        assert other.tree == {}
        fault.judged()
    path.unlink()
    with pytest.raises(Fault) as caught:
        world.start(other)
    assert caught.value.code is ExitCode.STATE_DAMAGED
    path.write_bytes(good)
    assert world.start(other).how == "restored"
    world.check()
    fault.judged()


def test_state_over_the_limit_is_not_restored(world: World) -> None:
    committed(world, world.host())
    with pytest.raises(Fault) as caught:
        world.start(world.host("small", limits=Limits(state_bytes=1000, state_file_bytes=1000)))
    assert caught.value.code is ExitCode.STATE_LIMIT


def test_at_most_three_trees_are_kept_aside(world: World) -> None:
    committed(world, world.host())
    other = world.host("other")
    for number in range(3):
        index = other.state / names.RESERVED_DIR / names.INDEX
        index.unlink(missing_ok=True)
        write_tree(other.state, {"mine.txt": str(number).encode()})
        world.start(other)
        world.release(other)
    (other.state / names.RESERVED_DIR / names.INDEX).unlink()
    with pytest.raises(Fault) as caught:
        world.start(other)
    assert caught.value.code is ExitCode.REFUSED
    assert len(other.asides) == 3
    oldest = other.asides[0]
    os.utime(oldest, (0, 0))
    world.start(other)
    assert len(other.asides) == 3
    assert oldest not in other.asides
    assert read_tree(other.state) == world.stored_tree()
