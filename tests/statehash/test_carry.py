"""Cleaning: segments are dropped once what counts in them was carried, and every generation still comes back."""

from __future__ import annotations

import mmap
import os
from functools import partial
from pathlib import Path
from random import Random

import pytest

from statehash import machine, oracle
from the0 import statehash as sh


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def check(tmp_path: Path, root: Path, index: sh.Index, segments: list[machine.Stored], name: str) -> None:
    dest = tmp_path / f"restored-{name}"
    restored = machine.restore(dest, segments)
    assert oracle.read(dest) == oracle.read(root)
    assert machine.entries(index) == machine.entries(machine.listing(segments)) == machine.entries(restored)
    live = [live for _, _, _, live in index.segments()]
    assert sum(live) <= sum(len(data) for _, _, data in segments)
    replayed = [live for _, _, _, live in restored.segments()]
    # Played back, a removal counts only where a listed segment does hold the path; here also where one might.
    assert all(one <= other for one, other in zip(replayed, live, strict=True))


@pytest.mark.parametrize("seed", range(int(os.environ.get("CARRY_SEEDS", "12"))))
def test_every_generation_comes_back_whatever_is_dropped(tmp_path: Path, root: Path, seed: int) -> None:
    rng = Random(seed)
    home = tmp_path / "home"
    home.mkdir()
    index = sh.Index()
    segments: list[machine.Stored] = []
    with machine.folder(home) as home_fd:
        index.save(home_fd, "index")
        for generation in range(16):
            for _ in range(rng.choice([0, 1, 3, 40])):
                oracle.edit(root, rng)
            keys = [key for key, _, _ in segments]
            carry = rng.sample(keys, rng.randrange(len(keys) + 1)) if rng.random() < 0.7 else []
            options = {"segment_bytes": rng.choice([1, 100_000, 1 << 25]), "threads": rng.choice([1, 2, 4])}
            edits = [partial(oracle.edit, root, rng)] * rng.choice([0, 0, 1, 2])
            segments = machine.clean(root, index, segments, carry, meanwhile=edits, **options)
            assert not {key for key, _, _ in segments} & set(carry), "all of it could be read"
            check(tmp_path, root, index, segments, str(generation))
            if rng.random() < 0.5:
                before = index.segments()
                index = sh.Index.open(home_fd, "index")
                assert index.segments() == before


def test_all_becomes_one(tmp_path: Path, root: Path) -> None:
    index = sh.Index()
    segments: list[machine.Stored] = []
    for n in range(20):
        (root / f"f{n}").write_bytes(b"%d" % n)
        segments += machine.commit(root, index)
    for n in range(0, 20, 2):
        (root / f"f{n}").unlink()
    segments += machine.commit(root, index)
    assert len(segments) == 21
    segments = machine.clean(root, index, segments, [key for key, _, _ in segments])
    assert len(segments) == 1
    [(_, _, stored, live)] = index.segments()
    assert live > stored * 0.7
    check(tmp_path, root, index, segments, "one")


@pytest.mark.parametrize("size", [1000, 200_000, 3_000_000])
def test_what_is_not_as_the_index_says_stays_where_it_is(root: Path, size: int) -> None:
    index = sh.Index()
    (root / "doubt").write_bytes(Random(1).randbytes(size))
    (root / "good").write_bytes(b"good")
    with machine.folder(root) as fd, (root / "doubt").open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[size - 1] = 1  # from now on the page is dirty: later writes to it leave no trace until it was written back
        segments = machine.commit(root, index)
        while sh.scan(fd, index):  # too young for the clock to tell
            segments += machine.commit(root, index)
        before = os.stat(root / "doubt")
        view[size - 1] = 2
        carry = [key for key, _, _ in segments]
        scan = sh.scan(fd, index).carry(index, carry)
        packing = sh.Pack(fd, index, scan)
        while packing.next() is not None:
            pass
        if os.stat(root / "doubt").st_mtime_ns != before.st_mtime_ns:
            assert packing.dropped == carry  # it was written back just then: simply a changed file
        else:
            assert (packing.doubtful, packing.dropped) == ([b"doubt"], [])


def test_what_cannot_be_read_stays_where_it_is(tmp_path: Path, root: Path) -> None:
    index = sh.Index()
    (root / "big").write_bytes(b"x" * 5000)
    segments = machine.commit(root, index)
    (root / "big").write_bytes(b"y" * 50_000)
    (root / "other").write_bytes(b"1")
    carry = [key for key, _, _ in segments]
    packing, stored = machine.pack(root, index, carry=carry, max_file_bytes=10_000)
    assert (packing.incomplete, packing.dropped) == ([b"big"], [])
    index.stage(packing, [key for key, _, _ in stored], b"")
    index.confirm(b"")
    segments += stored
    dest = tmp_path / "restored"
    machine.restore(dest, segments)
    assert (dest / "big").read_bytes() == b"x" * 5000
    assert (dest / "other").read_bytes() == b"1"


def test_what_vanished_meanwhile_is_dropped(tmp_path: Path, root: Path) -> None:
    index = sh.Index()
    for name in ("file", "large", "kept"):
        (root / name).write_bytes(Random(1).randbytes(3_000_000 if name == "large" else 5))
    (root / "folder").mkdir()
    (root / "folder/below").write_bytes(b"x")
    segments = machine.commit(root, index)
    with machine.folder(root) as fd:
        carrying = sh.scan(fd, index).carry(index, [key for key, _, _ in segments])
        (root / "file").unlink()
        (root / "large").unlink()
        (root / "folder/below").unlink()
        packing = sh.Pack(fd, index, carrying)
        stored = []
        while (segment := packing.next()) is not None:
            stored.append((f"k{len(stored)}", segment.digest, bytes(segment)))
    assert packing.dropped == [key for key, _, _ in segments]
    index.stage(packing, [key for key, _, _ in stored], b"")
    index.confirm(b"")
    dest = tmp_path / "restored"
    machine.restore(dest, stored)
    assert sorted(oracle.read(dest)) == [b"folder", b"kept"]


def test_a_staged_commit_that_drops_is_abandoned_or_confirmed_after_a_crash(tmp_path: Path, root: Path) -> None:
    index = sh.Index()
    segments: list[machine.Stored] = []
    with machine.folder(tmp_path) as home:
        index.save(home, "index")
        for n in range(3):
            (root / "f").write_bytes(b"%d" % n)
            segments += machine.commit(root, index)
        before = index.segments()
        packing, stored = machine.pack(root, index, carry=[key for key, _, _ in segments])
        dropped = packing.dropped
        assert len(dropped) == 3
        index.stage(packing, [key for key, _, _ in stored], b"next")
        waiting = sh.Index.open(home, "index")
        assert (waiting.pending_meta, waiting.segments()) == (b"next", before)
        waiting.abandon()
        assert sh.Index.open(home, "index").segments() == before
        index = sh.Index.open(home, "index")
        packing, stored = machine.pack(root, index, carry=dropped)
        index.stage(packing, [key for key, _, _ in stored], b"next")
        waiting = sh.Index.open(home, "index")
        waiting.confirm(b"next")
        after = sh.Index.open(home, "index")
        assert [key for key, _, _, _ in after.segments()] == [key for key, _, _ in stored]


def test_misuse_is_told(root: Path) -> None:
    index = sh.Index()
    (root / "f").write_bytes(b"1")
    with machine.folder(root) as fd:
        scan = sh.scan(fd, index)
        with pytest.raises(ValueError, match="knows no segment"):
            scan.carry(index, ["nowhere"])
        segments = machine.commit(root, index)
        with pytest.raises(ValueError, match="another index"):
            scan.carry(index, [segments[0][0]])
        packing = sh.Pack(fd, index, sh.scan(fd, index))
        with pytest.raises(ValueError, match="not at its end"):
            packing.dropped  # noqa: B018
