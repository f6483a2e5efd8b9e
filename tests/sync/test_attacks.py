"""State under attack: requests that fail in part, disks that fail, files of ours tampered with, races with another holder."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_keeper import Kept, keeping
from test_start import put_archive, tar_of
from world import Host, World, write_tree

from the0 import names, statehash
from the0.errors import ExitCode, Fatal, Fault
from the0.objects.store import Denied, ObjectStore, Unavailable
from the0.settings import Limits, Policies
from the0.sync import archive, daemon
from the0.sync.adopt import adopt_local
from the0.sync.commit import Fenced
from the0.sync.head import Content, Head, HeadFile, with_nonce
from the0.sync.local import Origin, StateFolder
from the0.sync.start import start

SDK = f"{names.SDK_STATE_DIR}/cash.json"
OTHER = f"{names.SDK_STATE_DIR}/seen.json"


class Meddled:
    """A store whose requests first go through `before`, then, once applied, through `after` (method, key)."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.before: Callable[[str, str], object] = lambda *_: None
        self.after: Callable[[str, str], object] = lambda *_: None

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, method: str) -> Any:
        original = getattr(self._store, method)

        def meddled(bucket: str, key: str, *args: Any, **kwargs: Any) -> Any:
            self.before(method, key)
            result = original(bucket, key, *args, **kwargs)
            self.after(method, key)
            return result

        return meddled


def denied_segments(method: str, key: str) -> None:
    if method == "put" and "/segments/" in key:
        raise Denied("PUT is denied.", code=ExitCode.STORE_DENIED)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def meddle(kept: Kept, before: Callable[[str, str], object]) -> Meddled:
    meddled = Meddled(kept.store)  # type: ignore[arg-type]
    meddled.before = before
    kept.keeper._committer._store = meddled  # type: ignore[assignment]
    kept.keeper._committer._heads._store = meddled  # type: ignore[assignment]
    return meddled


def sdk_state(host: Host) -> dict[str, bytes]:
    folder = host.state / names.SDK_STATE_DIR
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


# --- the claim stays in sight, whatever fails ---------------------------------------------------------


def test_a_holder_that_cannot_commit_still_learns_of_another_claim(world: World) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        meddle(kept, denied_segments)
        write_tree(host.state, {"a": b"1"})
        for second in range(1, 20):
            kept.keeper.one_pass(float(second))
        world.start(world.host("there"))

        def passes() -> None:
            for second in range(20, 50):
                kept.keeper.one_pass(float(second))

        with pytest.raises(Fenced):
            passes()


def test_a_long_upload_does_not_hide_another_claim(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    world.start(host)
    clock = [1.0]
    monkeypatch.setattr(daemon.time, "monotonic", lambda: clock[0])
    stored: list[str] = []

    def slowly(method: str, key: str) -> None:
        if method == "put" and "/segments/" in key:
            stored.append(key)
            clock[0] += 20.0
            if len(stored) == 1:
                world.start(world.host("there"))

    with keeping(world, host) as kept:
        meddle(kept, slowly)
        write_tree(host.state, {f"f{number}": os.urandom(16 << 20) for number in range(12)})
        with pytest.raises(Fenced):
            kept.keeper.one_pass(clock[0])
    assert len(stored) <= 4, "the upload ends soon after HEAD was looked at"


def test_a_store_that_answers_reads_is_not_down(world: World) -> None:
    host = world.host(policies=Policies(store_down="stop"))
    world.start(host)

    def no_segments(method: str, key: str) -> None:
        if method == "put" and "/segments/" in key:
            raise Unavailable("PUT does not work.")

    with keeping(world, host) as kept:
        meddle(kept, no_segments)
        write_tree(host.state, {"a": b"1"})
        for second in range(1, 200):
            kept.keeper.one_pass(float(second))
        assert not kept.keeper.store_down, "HEAD was read all along: nobody else can have claimed unseen"


def test_a_holder_denied_to_read_head_obeys_store_down(world: World) -> None:
    host = world.host(policies=Policies(store_down="stop"))
    world.start(host)

    def nothing(*_: object) -> None:
        raise Denied("The credential expired.", code=ExitCode.STORE_DENIED)

    with keeping(world, host) as kept:
        meddle(kept, nothing)
        for second in range(1, 120):
            kept.keeper.one_pass(float(second))
        assert kept.keeper.store_down


def test_a_commit_whose_reply_was_lost_goes_on_in_the_same_process(world: World) -> None:
    host = world.host()
    world.start(host)
    away = [False]

    def unreachable(*_: object) -> None:
        if away[0]:
            raise Unavailable("The connection is gone.")

    def cut(method: str, _: str) -> None:
        if method == "put_if" and not away[0]:
            away[0] = True
            raise Unavailable("The reply was lost.")

    with keeping(world, host) as kept:
        meddled = meddle(kept, unreachable)
        meddled.after = cut
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(1.0)
        assert world.head.content.generation == 1
        assert len(kept.said) == 1
        write_tree(host.state, {"a": b"2"})
        away[0] = False
        meddled.after = lambda *_: None
        kept.keeper.one_pass(10.0)
        assert world.head.content.generation == 2
        assert len(kept.said) == 2
    assert world.stored_tree() == host.tree
    world.check()


# --- a local disk that fails ----------------------------------------------------------------------------


def test_a_pass_survives_a_disk_that_cannot_be_read_or_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        kept.keeper.one_pass(1.0)

        class Broken:
            """The index on a full disk."""

            def __init__(self, index: statehash.Index) -> None:
                self._index = index
                self.pending_meta = None
                self.set_meta = full_disk

            def __getattr__(self, name: str) -> Any:
                return getattr(self._index, name)

        whole = kept.keeper._committer.index
        kept.keeper._committer.index = Broken(whole)  # type: ignore[assignment]
        monkeypatch.setattr(daemon.Rehash, "step", lambda *_, **__: [])
        monkeypatch.setattr(kept.keeper._committer, "scan", full_disk)
        for second in range(2, 100):
            kept.keeper.one_pass(float(second))
        assert len(kept.said) == 1
        kept.keeper._committer.index = whole
        monkeypatch.undo()
        write_tree(host.state, {"a": b"1"})
        for second in range(100, 120):
            kept.keeper.one_pass(float(second))
    assert world.stored_tree() == host.tree


def test_too_many_open_files_is_no_unreadable_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    world.start(host)
    write_tree(host.state, {"a": b"1"})
    world.commit(host)
    write_tree(host.state, {"a": b"unsynced"})

    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(StateFolder, "open_index", exhausted)
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.LOCAL_DISK
    monkeypatch.undo()
    assert world.start(host).how == "kept"
    assert host.asides == []
    assert (host.state / "a").read_bytes() == b"unsynced"


def test_a_fenced_holder_that_cannot_set_aside_is_still_fenced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    for number in range(3):
        (host.state / names.RESERVED_DIR / names.ASIDE / f"2999010{number}T000000Z-x").mkdir(parents=True)
    instance = "one"
    epoch = world.start(host, instance=instance).epoch
    write_tree(host.state, {"a": b"unsynced"})
    stop, codes = threading.Event(), []

    def notify(word: str) -> None:
        if word == "ready":
            write_tree(host.state, {"a": b"more"})
            world.start(world.host("there"))
        if word == "fenced":
            stop.set()

    monkeypatch.setattr(daemon.lease, "LOOK_S", 0.0)
    codes.append(daemon.run(host.settings, world.store, instance=instance, epoch=epoch, stop=stop, notify=notify))
    assert codes == [ExitCode.FENCED]
    assert (host.state / "a").read_bytes() == b"more"


# --- races with a holder that still runs ------------------------------------------------------------------


def test_two_first_starts_at_once_are_no_lost_head(world: World) -> None:
    """The other one claims and commits between our look at HEAD and our look for segments."""
    there = world.host("there")

    def after(method: str, _: str) -> None:
        if method == "head" and not there.state.exists():
            world.start(there)
            write_tree(there.state, {"a": b"1"})
            world.commit(there)

    meddled = Meddled(world.store)
    head_seen = threading.Event()

    def before(method: str, asked: str) -> None:
        if method == "head" and asked == names.archive_key(world.bot_id):
            assert head_seen.wait(10)

    original = HeadFile.read

    def read(heads: HeadFile) -> Any:
        found = original(heads)
        head_seen.set()
        return found

    meddled.before, meddled.after = before, after
    here = world.host("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadFile, "read", read)
        start(here.settings, meddled, instance="second")  # type: ignore[arg-type]
    assert here.tree == {b"a": ("file", b"1")}
    world.check()


def test_an_archive_that_appears_while_looking_is_not_cleared(world: World) -> None:
    """The former holder writes its first archive between our look at the archive and our look at HEAD."""
    there = world.host("there")
    world.start(there)
    write_tree(there.state, {SDK: b"1"})
    world.commit(there)
    key = names.archive_key(world.bot_id)
    archive_seen = threading.Event()
    published = threading.Event()

    def before(method: str, asked: str) -> None:
        if method == "get" and asked == names.head_key(world.bot_id):
            assert archive_seen.wait(10)
            if not published.is_set():
                with keeping(world, there) as kept:
                    kept.keeper.one_pass(100.0)
                assert world.head.content.archive is not None
                published.set()

    def after(method: str, asked: str) -> None:
        if method == "head" and asked == key:
            archive_seen.set()

    meddled = Meddled(world.store)
    meddled.before, meddled.after = before, after
    here = world.host("here")
    start(here.settings, meddled, instance="taking over")  # type: ignore[arg-type]
    assert sdk_state(here) == {"cash.json": b"1"}
    world.check()


# --- archives -----------------------------------------------------------------------------------------------


def test_an_archive_with_much_sdk_state_is_merged_like_any_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1000)
    host = world.host()
    world.start(host)
    write_tree(host.state, {SDK: b"1", OTHER: b"2"})
    with keeping(world, host) as kept:
        kept.keeper.finish(deadline_s=1e9)
        kept.keeper.release()
    put_archive(world, tar_of({SDK: b"1", OTHER: b"x" * 2000}))
    world.start(host)
    assert sdk_state(host) == {"cash.json": b"1", "seen.json": b"x" * 2000}
    world.check()


def test_a_bot_with_much_sdk_state_keeps_its_keys_against_an_archive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1000)
    host = world.host()
    world.start(host)
    write_tree(host.state, {SDK: b"bot's", OTHER: b"x" * 2000})
    world.commit(host)
    put_archive(world, tar_of({SDK: b"theirs"}))
    notes = world.start(host).notes
    assert sdk_state(host)["cash.json"] == b"bot's"
    assert any("keep the bot's value" in note for note in notes)


def test_an_import_cut_off_before_its_digests_were_kept_heals(world: World) -> None:
    host = world.host()
    world.start(host)
    write_tree(host.state, {SDK: b"1"})
    with keeping(world, host) as kept:
        kept.keeper.finish(deadline_s=1e9)
        kept.keeper.release()
    put_archive(world, tar_of({SDK: b"2"}))

    def no_base(method: str, key: str) -> None:
        if method == "put" and key == names.archive_base_key(world.bot_id):
            raise Unavailable("gone")

    meddled = Meddled(world.store)
    meddled.before = no_base
    with pytest.raises(Unavailable):
        start(host.settings, meddled, instance="cut off")  # type: ignore[arg-type]
    world.start(host)
    with keeping(world, host) as kept:
        kept.keeper.finish(deadline_s=1e9)
        kept.keeper.release()
    put_archive(world, tar_of({SDK: b"3"}))
    world.start(host)
    assert sdk_state(host) == {"cash.json": b"3"}, "the bot did not change that key since"
    world.check()


def test_an_imported_archive_is_soon_replaced_by_ours(world: World) -> None:
    """Otherwise an edit of one key in an archive of the earlier layout would bring the whole state of that day back."""
    host = world.host()
    put_archive(world, tar_of({"days.json": b"1", SDK: b"1"}))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"days.json": b"2"})
        kept.keeper.one_pass(1.0)
        kept.keeper.finish(deadline_s=1e9)
        kept.keeper.release()
    stored = world.store.get(world.buckets.state, names.archive_key(world.bot_id), limit_bytes=10_000)
    with tarfile.open(fileobj=io.BytesIO(stored.data)) as tar:
        assert tar.getnames() == [SDK]
    put_archive(world, tar_of({SDK: b"edited"}))
    world.start(host)
    assert sdk_state(host) == {"cash.json": b"edited"}
    assert (host.state / "days.json").read_bytes() == b"2"
    world.check()


def test_a_time_beyond_all_times_is_a_damaged_archive(world: World) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(SDK)
        member.pax_headers = {"mtime": "inf"}
        tar.addfile(member)
    put_archive(world, raw.getvalue())
    with pytest.raises(Fault) as caught:
        world.start(world.host())
    assert caught.value.code is ExitCode.STATE_DAMAGED


def test_a_removed_bots_imported_archive_is_not_imported_again(world: World) -> None:
    host = world.host()
    world.start(host)
    put_archive(world, tar_of({SDK: b"old"}))
    world.start(host)
    heads = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
    stored = heads.read()
    assert stored is not None
    content = stored.head.content
    assert content.archive is not None
    tomb = Content(
        lineage=content.lineage, generation=content.generation + 1, archive=content.archive, tombstone=content.lineage
    )
    heads.swap(stored, with_nonce(Head(content=tomb, claim=stored.head.claim)))
    new = world.host("new")
    world.start(new)
    assert sdk_state(new) == {}
    write_tree(new.state, {"a": b"1"})
    world.commit(new)
    world.release(new)
    world.start(new)
    assert sdk_state(new) == {}
    assert (new.state / "a").read_bytes() == b"1"


# --- limits ---------------------------------------------------------------------------------------------------


def test_what_was_within_the_limit_when_stored_can_be_restored(world: World) -> None:
    limits = Limits(state_bytes=1 << 20, state_file_bytes=1 << 20)
    host = world.host(limits=limits)
    world.start(host)
    write_tree(host.state, {"a": b"small", "b": os.urandom(900_000)})
    world.commit(host)
    write_tree(host.state, {"a": os.urandom(900_000), "b": b"small"})
    world.commit(host)
    world.release(host)
    there = world.host("there", limits=limits)
    world.start(there)
    assert there.tree == host.tree


def test_a_file_left_out_is_listed_even_if_nothing_else_changed(world: World) -> None:
    limits = Limits(state_bytes=1 << 20, state_file_bytes=1000)
    host = world.host(limits=limits)
    world.start(host)
    write_tree(host.state, {"a": b"1", "grows": b"2"})
    world.commit(host)
    write_tree(host.state, {"grows": b"3" * 2000})
    world.commit(host)
    assert world.head.content.incomplete == ("grows",)
    with pytest.raises(Fault) as caught:
        world.start(world.host("there", limits=limits))
    assert caught.value.code is ExitCode.REFUSED
    write_tree(host.state, {"grows": b"2"})
    world.commit(host)
    assert world.head.content.incomplete == ()


def test_a_file_left_out_and_then_removed_leaves_nothing_incomplete(world: World) -> None:
    host = world.host(limits=Limits(state_bytes=1 << 20, state_file_bytes=1000))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1", "large": b"3" * 2000})
        kept.keeper.one_pass(1.0)
        assert world.head.content.incomplete == ("large",)
        threading.Event().wait(0.05)
        kept.keeper.one_pass(2.0)
        (host.state / "large").unlink()
        kept.keeper.finish(deadline_s=0.0)
    assert world.head.content.incomplete == ()


def test_a_start_that_fails_leaves_the_tree_where_it_is(world: World) -> None:
    host, there = world.host(), world.host("there")
    world.start(host)
    write_tree(host.state, {"a": b"1"})
    world.commit(host)
    world.start(there)
    write_tree(there.state, {"a": b"2"})
    world.commit(there)
    world.release(there)
    write_tree(host.state, {"a": b"unsynced"})
    for ref in world.head.content.segments:
        world.store.delete(world.buckets.state, ref.key)
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            world.start(host)
        assert caught.value.code is ExitCode.STATE_DAMAGED
        assert (host.state / "a").read_bytes() == b"unsynced"
    adopt_local(host.settings, world.store)
    assert world.start(host).how == "kept"
    assert world.stored_tree() == host.tree == {b"a": ("file", b"unsynced")}
    world.check()


def test_a_respawned_sync_refuses_an_index_tampered_with(world: World) -> None:
    host = world.host()
    epoch = world.start(host, instance="one").epoch
    (host.state / names.RESERVED_DIR / names.INDEX).write_bytes(b"\0" * 100)
    with pytest.raises(Fault) as caught:
        daemon.run(
            host.settings, world.store, instance="one", epoch=epoch, stop=threading.Event(), notify=lambda _: None
        )
    assert caught.value.code is ExitCode.REFUSED


def test_a_tree_back_within_its_limit_ends_cleanly(world: World) -> None:
    host = world.host(limits=Limits(state_bytes=1000, state_file_bytes=1000))
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a": b"1"})
        kept.keeper.one_pass(1.0)
        threading.Event().wait(0.05)  # beyond the clock's granularity: the next look finds nothing to do
        kept.keeper.one_pass(1.5)
        write_tree(host.state, {"big": bytes(2000)})
        kept.keeper.one_pass(2.0)
        (host.state / "big").unlink()
        kept.keeper.one_pass(3.0)
        kept.keeper.finish(deadline_s=0.0)
        assert len(kept.said) == 2


# --- local files ------------------------------------------------------------------------------------------------


def test_a_crash_after_a_commit_was_found_confirmed_keeps_the_tree(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two records of the index."""
    host = world.host()
    world.start(host, instance="one")
    write_tree(host.state, {"a": b"1"})
    with StateFolder(host.settings.paths.state) as folder:
        committer = world.committer(host, folder)
        monkeypatch.setattr(committer, "_confirm", full_disk)
        with pytest.raises(OSError, match="No space"):
            committer.commit(committer.scan())
        monkeypatch.undo()
    write_tree(host.state, {"a": b"unsynced"})
    path = host.state / names.RESERVED_DIR / names.INDEX
    before = path.read_bytes()
    world.start(host, instance="two")
    after = path.read_bytes()
    assert after.startswith(before), "only records were appended"
    for cut in range(len(before), len(after)):
        path.write_bytes(after[:cut])
        with StateFolder(host.settings.paths.state) as folder:
            index = folder.open_index()
            assert index is not None
            assert Origin.decode(index.meta).lineage == world.head.content.lineage, f"cut at {cut - len(before)}"


def test_half_a_restore_is_not_adopted(world: World) -> None:
    host = world.host()
    world.start(host)
    write_tree(host.state, {"a": b"1"})
    world.commit(host)
    (host.state / names.RESERVED_DIR / names.RESTORING).write_bytes(b"")
    with pytest.raises(Fatal) as caught:
        adopt_local(host.settings, world.store)
    assert caught.value.code is ExitCode.REFUSED
    assert world.head.content.generation == 1
