"""What a person can ask and decide: show, ls, verify, adopt, aside; and the claim handed from init to sync in a Pod."""

from __future__ import annotations

import io
import json
import os
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from test_start import (
    FIRST,
    committed,
    delete_head,
    older,
    other_digest,
    other_lineage,
    put_archive,
    segment_path,
    tar_of,
)
from world import Host, World, write_tree

from the0 import names
from the0.errors import ExitCode, Fault
from the0.settings import SyncSettings
from the0.sync import commands, sidecar
from the0.sync.adopt import adopt_local, adopt_store
from the0.sync.head import HeadFile
from the0.sync.lock import hold_lock
from the0.sync.readiness import Readiness
from the0.sync.verify import verify


def asked(command: object, host: Host, world: World) -> dict[str, object]:
    out = io.StringIO()
    command(host.settings, world.store, as_json=True, out=out)  # type: ignore[operator]
    body: dict[str, object] = json.loads(out.getvalue())
    return body


@pytest.mark.parametrize("damage", [delete_head, other_lineage, older, other_digest])
def test_after_a_refusal_the_local_tree_is_adopted(world: World, damage: object) -> None:
    host = world.host()
    tree = committed(world, host)
    damage(world)  # type: ignore[operator]
    assert "new lineage" in adopt_local(host.settings, world.store)
    started = world.start(host)
    assert (started.how, started.wait_s) == ("kept", 0.0)
    assert host.tree == tree == world.stored_tree()
    world.check()


@pytest.mark.parametrize("damage", [other_digest, older])
def test_after_a_refusal_the_store_is_adopted(world: World, damage: object) -> None:
    host = world.host()
    committed(world, host)
    damage(world)  # type: ignore[operator]
    assert "restores generation" in adopt_store(host.settings, world.store)
    assert world.start(host).how == "restored"
    assert (host.asides[0] / "a.txt").read_bytes() == b"one"
    assert host.tree == world.stored_tree()
    world.check()


def test_a_garbled_head_is_overcome_only_by_a_person(world: World) -> None:
    host = world.host()
    tree = committed(world, host)
    world.store.put(world.buckets.state, names.head_key(world.bot_id), b"garbage")
    with pytest.raises(Fault) as caught:
        world.start(host)
    assert caught.value.code is ExitCode.STATE_DAMAGED
    adopt_local(host.settings, world.store)
    assert world.start(host).how == "kept"
    assert world.stored_tree() == tree
    world.check()


def test_adopting_the_local_tree_keeps_what_was_stored_in_history(world: World) -> None:
    host = world.host()
    committed(world, host)
    former = world.head.content
    adopt_local(host.settings, world.store)
    key = names.history_key(world.bot_id, lineage=former.lineage, generation=former.generation)
    assert world.store.head(world.buckets.state, key) is not None
    assert world.store.head(world.buckets.state, former.segments[0].key) is not None


def test_adopting_keeps_an_archive_from_being_taken_for_foreign(world: World) -> None:
    host = world.host()
    committed(world, host)
    put_archive(world, tar_of({f"{names.SDK_STATE_DIR}/x.json": b"1"}))
    adopt_local(host.settings, world.store)
    assert world.start(host).how == "kept"


def test_adopt_store_without_a_head_is_refused(world: World) -> None:
    host = world.host()
    write_tree(host.state, FIRST)
    with pytest.raises(Fault) as caught:
        adopt_store(host.settings, world.store)
    assert caught.value.code is ExitCode.REFUSED
    assert (host.state / "a.txt").exists()


def test_adopting_under_a_running_bot_is_refused(world: World) -> None:
    host = world.host()
    world.start(host)
    lock = hold_lock(host.settings.paths.state)
    try:
        with pytest.raises(Fault) as caught:
            commands.adopt(host.settings, world.store, side="local")
        assert caught.value.code is ExitCode.RUNNING_HERE
    finally:
        os.close(lock)


def test_verify_names_what_is_wrong(world: World) -> None:
    host = world.host()
    committed(world, host)
    assert commands.check(host.settings, world.store, out=io.StringIO()) == 0
    path = segment_path(world)
    good = path.read_bytes()
    for damaged in (good[:-1], good[:30] + bytes([good[30] ^ 1]) + good[31:]):
        path.write_bytes(damaged)
        found = verify(world.store, bucket=world.buckets.state, bot_id=world.bot_id)
        assert len(found.problems) == 1
        assert world.head.content.segments[0].key in found.problems[0]
        assert commands.check(host.settings, world.store, out=io.StringIO()) == ExitCode.STATE_DAMAGED
    path.unlink()
    assert verify(world.store, bucket=world.buckets.state, bot_id=world.bot_id).problems
    delete_head(world)


def test_show_and_ls(world: World) -> None:
    host = world.host()
    committed(world, host)
    shown = asked(commands.show, host, world)
    assert shown["stored"]["generation"] == 1  # type: ignore[index]
    assert shown["local"]["index"]["generation"] == 1  # type: ignore[index]
    out = io.StringIO()
    assert commands.ls(host.settings, world.store, as_json=True, out=out) == 0
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(row["path"], row["kind"], row["size"]) for row in rows] == [
        ("a.txt", "file", 3),
        ("empty", "dir", 0),
        ("folder", "dir", 0),
        ("folder/b.bin", "file", 256_000),
    ]
    assert commands.show(world.host("nowhere").settings, world.store, out=io.StringIO()) == 0
    absent = replace(host.settings, bot_id="nobody")
    assert commands.show(absent, world.store, out=io.StringIO()) == 1


# --- Pods -------------------------------------------------------------------------------------------


def test_init_hands_its_claim_to_sync(world: World) -> None:
    host = world.host()
    tree = committed(world, host)
    pod = world.host("pod")
    os.makedirs(pod.settings.paths.logs)
    started = sidecar.init(pod.settings, world.store, ended=None, stop=threading.Event())
    assert started.how == "restored"
    assert pod.tree == tree
    for number in range(2):  # the sync container is restarted once
        stop = threading.Event()
        codes: list[int] = []
        done = os.path.join(world.base, f"done-{number}")
        thread = threading.Thread(target=_keep, args=(pod.settings, world, stop, done, codes))
        write_tree(pod.state, {"a.txt": f"from the pod {number}".encode()})
        thread.start()
        with open(done, "w") as file:
            file.write("0")
        thread.join(30)
        assert codes == [0]
        assert world.stored_tree() == pod.tree
    assert world.head.claim.released
    world.check()


def _keep(settings: SyncSettings, world: World, stop: threading.Event, done: str, codes: list[int]) -> None:
    codes.append(sidecar.keep(settings, world.store, stop=stop, done_file=done, readiness_port=0))


def test_sync_without_init_is_refused(world: World) -> None:
    with pytest.raises(Fault) as caught:
        sidecar.keep(world.host().settings, world.store, stop=threading.Event())
    assert caught.value.code is ExitCode.REFUSED


def test_a_fenced_sync_leaves_word_and_ends_with_210(world: World) -> None:
    pod = world.host("pod")
    os.makedirs(pod.settings.paths.logs)
    os.makedirs(pod.settings.paths.run)
    sidecar.init(pod.settings, world.store, ended=None, stop=threading.Event())
    there = world.host("there")
    world.start(there)
    write_tree(pod.state, {"a": b"unsynced"})
    stop = threading.Event()
    codes: list[int] = []
    thread = threading.Thread(target=_keep, args=(pod.settings, world, stop, None, codes))
    thread.start()
    fenced = os.path.join(pod.settings.paths.run, names.FENCED)
    for _ in range(600):
        if os.path.exists(fenced):
            break
        thread.join(0.05)
    assert os.path.exists(fenced)
    assert codes == [], "it waits until the bot beside it has ended"
    stop.set()
    thread.join(30)
    assert codes == [ExitCode.FENCED]
    stored = HeadFile(world.store, bucket=world.buckets.state, bot_id=world.bot_id).read()
    assert stored is not None
    assert not stored.head.claim.released, "the claim is the other's"


def test_readiness_tells_why_not() -> None:
    why: list[str] = ["starting"]
    serving = Readiness(0, reason=lambda: why[0] if why else None)
    try:
        address = f"http://127.0.0.1:{serving.port}"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/readyz", timeout=5)
        assert caught.value.code == 503
        assert caught.value.read() == b"not ready: starting"
        why.clear()
        assert urllib.request.urlopen(f"{address}/readyz", timeout=5).read() == b"ok"
        assert urllib.request.urlopen(f"{address}/healthz", timeout=5).read() == b"ok"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/else", timeout=5)
        assert caught.value.code == 404
    finally:
        serving.close()
