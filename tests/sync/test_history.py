"""Former generations: listed, shown, restored, bounded; damage among them is found."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_interrupted import ALL, FEW, ONE, many_commits
from world import Host, Tree, World, read_tree, write_tree

from the0 import names
from the0.errors import ExitCode, Fatal, Permanent
from the0.objects.store import ObjectInfo
from the0.sync import commands
from the0.sync.adopt import adopt_local
from the0.sync.head import Content, SegmentRef
from the0.sync.history import NotKept, decode, prefix
from the0.sync.sweep import Limits, Plan, plan
from the0.sync.verify import verify

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def here(world: World) -> Host:
    return world.host()


@pytest.fixture
def trees(world: World, here: Host) -> dict[int, Tree]:
    """Twelve generations, some of them in history alone."""
    world.start(here)
    write_tree(here.state, ONE)
    world.commit(here)
    found = many_commits(world, here, 11, bounds=FEW)
    assert len(world.history.list()) > 1
    return found


def test_every_generation_is_listed_and_restored(
    world: World, here: Host, trees: dict[int, Tree], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    assert commands.history(here.settings, world.store, as_json=True, out=out) == 0
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["generation"] for row in rows] == list(range(12, 0, -1))
    assert all(row["stored_s"] and row["stored_bytes"] and row["segments"] for row in rows)
    for generation, tree in trees.items():
        target = tmp_path / f"generation-{generation}"
        assert commands.restore(here.settings, world.store, to=str(target), generation=generation) == 0
        assert f"Generation {generation} of bot bot-1 is in {target}" in capsys.readouterr().out
        assert read_tree(target, skip=None) == tree
        out = io.StringIO()
        assert commands.ls(here.settings, world.store, generation=generation, as_json=True, out=out) == 0
        assert {json.loads(line)["path"].encode() for line in out.getvalue().splitlines()} == set(tree)
    before = world.head
    with pytest.raises(Fatal, match="is not empty") as told:
        commands.restore(here.settings, world.store, to=str(target), generation=3)
    assert told.value.code is ExitCode.USAGE
    for missing in (0, 13, 99):
        with pytest.raises(NotKept, match=f"Generation {missing} of bot bot-1 is not kept"):
            commands.ls(here.settings, world.store, generation=missing)
    with pytest.raises(NotKept):
        commands.ls(here.settings, world.store, generation=3, lineage="other")
    assert commands.history(here.settings, world.store) == 0
    assert capsys.readouterr().out.count(before.content.lineage) == 12
    assert world.head == before, "looking changes nothing"
    world.check()


def test_a_generation_whose_beginnings_are_gone_is_not_offered(world: World, trees: dict[int, Tree]) -> None:
    oldest, *others = world.history.list()
    world.store.delete(world.buckets.state, oldest.key)
    gone = names.numbered(oldest.key)
    assert gone is not None
    kept = [one.generation for one in world.history.kept(world.head.content)]
    assert kept == list(range(12, gone[1], -1))
    with pytest.raises(NotKept):
        world.history.content_at(world.head.content, gone[1])
    assert others
    world.sweep(limits=ALL)
    assert [one.generation for one in world.history.kept(world.head.content)] == kept
    assert world.stored_tree(world.history.content_at(world.head.content, gone[1] + 1)) == trees[gone[1] + 1]
    world.check()


def test_damage_among_former_generations_is_found(world: World, trees: dict[int, Tree]) -> None:
    bucket = world.buckets.state
    whole = verify(world.store, bucket=bucket, bot_id=world.bot_id)
    assert (whole.problems, whole.history, whole.unreferenced) == ((), len(world.history.list()), 0)
    assert whole.history_bytes > 0
    entry = world.history.list()[0]
    content = world.history.read(entry.key)
    assert content is not None
    named = {ref.key for ref in world.head.content.segments}
    victim = next(ref for ref in content.segments if ref.key not in named)
    data = world.store.get(bucket, victim.key, limit_bytes=1 << 20).data
    world.store.put(bucket, victim.key, data[:-1] + bytes([data[-1] ^ 1]))
    [problem] = verify(world.store, bucket=bucket, bot_id=world.bot_id).problems
    assert victim.key in problem
    world.store.put(bucket, victim.key, data)
    written = world.store.get(bucket, entry.key, limit_bytes=1 << 20).data
    for damaged in (
        b"",
        b"[]",
        written[:-1],
        written.replace(b'"cut":true', b'"cut":false'),
        written.replace(b'"format":1', b'"format":2'),
    ):
        assert damaged != written
        world.store.put(bucket, entry.key, damaged)
        [problem] = verify(world.store, bucket=bucket, bot_id=world.bot_id).problems
        assert entry.key in problem
        before = world.segment_keys()
        with pytest.raises(Permanent, match="cannot be used"):
            world.sweep(limits=ALL)
        assert world.segment_keys() == before, "what it names is not known, so nothing is deleted"
    world.store.put(bucket, entry.key, written)
    assert trees
    world.check()


def test_entries_of_the_first_form_are_read(world: World) -> None:
    data = b'{"content":{"cut":true,"generation":3,"incomplete":[],"lineage":"l","segments":[],"stale":[]},"format":1}'
    key = names.history_key(world.bot_id, lineage="l", generation=3)
    assert decode(data, key=key, bot_id=world.bot_id) == Content(lineage="l", generation=3)
    with pytest.raises(Permanent, match="another generation"):
        decode(data, key=key + "0", bot_id=world.bot_id)


def test_what_a_person_gave_up_stays_for_its_time(world: World, here: Host, trees: dict[int, Tree]) -> None:
    former = world.head.content
    write_tree(here.state, {"a": b"chosen"})
    adopt_local(here.settings, world.store)
    assert world.head.content.lineage != former.lineage
    world.sweep(limits=Limits(age_s=-1.0, floor_bytes=0), live_bytes=0)
    kept = [(one.lineage, one.generation) for one in world.history.kept(world.head.content)]
    assert (former.lineage, former.generation) in kept, "whatever its size"
    found = world.history.content_at(world.head.content, former.generation, lineage=former.lineage)
    assert world.stored_tree(found) == trees[former.generation]
    world.sweep(limits=Limits(age_s=-1.0, history_s=-1.0))
    assert {one.lineage for one in world.history.kept(world.head.content)} == {world.head.content.lineage}
    assert world.segment_keys() == {ref.key for ref in world.head.content.segments}
    world.check()


def ref(generation: int, size: int = 100) -> SegmentRef:
    return SegmentRef(names.segment_key("b", lineage="l", generation=generation, digest="ab"), "ab", size)


def content(*generations: int, lineage: str = "l") -> Content:
    return Content(
        lineage=lineage, generation=max(generations), segments=tuple(ref(generation) for generation in generations)
    )


def planned(
    head: Content,
    history: dict[float, Content],
    *,
    segments: dict[int, float],
    live: int,
    now_s: float,
    **limits: float,
) -> Plan:
    """`entries` by their age in seconds, `segments` by their generation to their age."""

    def info(key: str, size: int, age_s: float) -> ObjectInfo:
        return ObjectInfo(key=key, size=size, etag="", modified_s=now_s - age_s)

    infos = {
        names.history_key("b", lineage=one.lineage, generation=one.generation): (age, one)
        for age, one in history.items()
    }

    def read(keys: object) -> Iterator[Content | None]:
        for key in keys:  # type: ignore[attr-defined]
            yield infos[key][1]

    return plan(
        head,
        entries=[info(key, 10, age) for key, (age, _) in sorted(infos.items())],
        segments=[info(ref(generation).key, 100, age) for generation, age in segments.items()],
        read=read,
        live_bytes=live,
        now_s=now_s,
        limits=replace(Limits(floor_bytes=0), **limits),  # type: ignore[arg-type]
    )


def test_what_may_go() -> None:
    head = content(1, 9)
    entries = {1 * DAY: content(1, 6, 7, 8), 2 * DAY: content(1, 2, 3, 5), 3 * DAY: content(1, 2, 3, 4)}
    segments = dict.fromkeys(range(1, 10), 4 * DAY)

    def numbers(found: Plan) -> tuple[list[int], list[int]]:
        return tuple([names.numbered(key)[1] for key in keys] for keys in (found.history, found.segments))  # type: ignore[index,return-value]

    def what_goes(**changes: object) -> tuple[list[int], list[int]]:
        arguments: dict[str, object] = {"segments": segments, "live": 10_000, "now_s": 1e9, **changes}
        return numbers(planned(head, entries, **arguments))  # type: ignore[arg-type]

    assert what_goes() == ([], [])
    assert what_goes(now_s=1e9, history_s=2.5 * DAY) == ([4], [4])
    assert what_goes(history_s=1.5 * DAY) == ([4, 5], [2, 3, 4, 5])
    # By bytes: the newest entry needs three segments that HEAD does not name, the next one three more, the oldest one more.
    assert what_goes(live=750) == ([], [])
    assert what_goes(live=729) == ([4], [4])
    assert what_goes(live=619) == ([4, 5], [2, 3, 4, 5])
    assert what_goes(live=0) == ([4, 5, 8], [2, 3, 4, 5, 6, 7, 8])
    assert what_goes(live=0, floor_bytes=1000) == ([], [])
    assert what_goes(entries=1) == ([4, 5], [2, 3, 4, 5])
    # Young ones, those of a generation to come, and those that are nobody's.
    assert what_goes(live=0, segments={**segments, 3: 0.5 * HOUR, 10: 4 * DAY}) == ([4, 5, 8], [2, 4, 5, 6, 7, 8])
    # An entry that lacks a segment gives nothing back.
    assert what_goes(segments={g: 4 * DAY for g in range(1, 10) if g != 4}) == ([4], [])


def test_a_beginning_of_a_list() -> None:
    whole = replace(content(1, 2, 5, 6, 8), since=5)
    assert prefix(whole, 8) is whole
    found = prefix(whole, 6)
    assert found is not None
    assert [names.numbered(ref.key)[1] for ref in found.segments] == [1, 2, 5, 6]  # type: ignore[index]
    assert (found.generation, found.cut) == (6, False)
    assert prefix(whole, 4) is None
    assert prefix(whole, 9) is None
    assert prefix(Content(lineage="l"), 0) is None
