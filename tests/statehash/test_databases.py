"""What a pack leaves as it is stored, what it takes from copies, and which SQLite databases it says it read."""

from __future__ import annotations

import os
from pathlib import Path

from the0 import statehash as sh

MAGIC = b"SQLite format 3\0"


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def ended(pack: sh.Pack) -> list[bytes]:
    segments = []
    while (segment := pack.next()) is not None:
        segments.append(bytes(memoryview(segment)))
    return segments


def commit(index: sh.Index, pack: sh.Pack, segments: list[bytes]) -> None:
    index.stage(pack, [f"k{len(index.segments()) + n}" for n, _ in enumerate(segments)], b"")
    index.confirm(b"")


def contents(stored: list[bytes], target: Path) -> dict[str, bytes]:
    target.mkdir()
    fd = opened(target)
    try:
        restore = sh.Restore(fd)
        for number, data in enumerate(stored):
            restore.apply(data, key=f"k{number}", digest=sh.digest(data))
        restore.finish()
    finally:
        os.close(fd)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_kept_files_stay_as_stored_also_in_folds(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    for name, data in {"a": b"1", "d/b": b"1", "gone": b"1"}.items():
        (root / name).write_bytes(data)
    fd, index = opened(root), sh.Index()
    try:
        pack = sh.Pack(fd, index, sh.scan(fd, index))
        stored = ended(pack)
        commit(index, pack, stored)
        (root / "a").write_bytes(b"2")
        (root / "gone").unlink()
        (root / "new").write_bytes(b"2")
        (root / "other").write_bytes(b"2")
        scan = sh.scan(fd, index).keep([b"a", b"gone", b"new"])
        pack = sh.Pack(fd, index, scan)
        segments = ended(pack)
        (root / "new").write_bytes(b"33")
        (root / "other").write_bytes(b"33")
        pack.fold()
        segments += ended(pack)
        assert pack.differing([b"a", b"gone", b"new", b"none", b"d/b"])[:3] == [b"a", b"gone", b"new"]
        commit(index, pack, segments)
        stored += segments
        assert contents(stored, tmp_path / "first") == {"a": b"1", "d/b": b"1", "gone": b"1", "other": b"33"}
        # Where its folder goes, a kept file goes, too.
        (root / "d" / "b").unlink()
        (root / "d").rmdir()
        (root / "d").write_bytes(b"a file")
        pack = sh.Pack(fd, index, sh.scan(fd, index).keep([b"d/b"]))
        stored += ended(pack)
        assert contents(stored, tmp_path / "second") == {"a": b"2", "d": b"a file", "new": b"33", "other": b"33"}
    finally:
        os.close(fd)


def test_copies_take_the_place_of_files(tmp_path: Path) -> None:
    root, copies = tmp_path / "root", tmp_path / "copies"
    (root / "d").mkdir(parents=True)
    (copies / "d").mkdir(parents=True)
    large = os.urandom(3 << 20)
    for name, data in {"d/a": b"now", "d/b": b"now", "large": large}.items():
        (root / name).write_bytes(data)
    (copies / "d" / "a").write_bytes(b"then")
    (copies / "large").write_bytes(large[:-1] + b"!")
    (copies / "stray").write_bytes(b"of a folder that is not stored")
    fd, copies_fd, index = opened(root), opened(copies), sh.Index()
    try:
        pack = sh.Pack(fd, index, sh.scan(fd, index))
        stored = ended(pack)
        pack.replace(copies_fd, [b"large", b"d/a", b"d/b", b"none/x", b"d", b"copies/stray"])
        more = ended(pack)
        assert sum(map(len, more)) < 200_000, "only the block that differs"
        stored += more
        assert contents(stored, tmp_path / "first") == {"d/a": b"then", "large": large[:-1] + b"!"}
        commit(index, pack, stored)
        assert {b"d/a", b"d/b", b"large"} <= set(pack_changes(fd, index)), "all looked at again"
    finally:
        os.close(copies_fd)
        os.close(fd)


def pack_changes(fd: int, index: sh.Index) -> set[bytes]:
    scan = sh.scan(fd, index)
    return {path for path in (b"d/a", b"d/b", b"large", b"d") if scan.touches(path)}


def test_a_pack_names_the_databases_that_it_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    files = {
        "small": MAGIC + b"x",
        "d/large": MAGIC + os.urandom(3 << 20),
        "d/large-shm": b"shared",
        "plain": b"SQLite format 3",
        "plain-shm": b"a file of the bot's",
        "other-wal": b"",
        "d/one-journal": b"",
        "-wal": b"",
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    fd, index = opened(root), sh.Index()
    try:
        scan = sh.scan(fd, index)
        assert scan.specials == []
        pack = sh.Pack(fd, index, scan)
        stored = ended(pack)
        assert pack.databases == [b"d/large", b"d/one", b"other", b"small"]
        assert set(contents(stored, tmp_path / "first")) == set(files) - {"d/large-shm"}
        commit(index, pack, stored)
        assert sh.differences(fd, index) == []
        (root / "d" / "one-journal").unlink()
        pack = sh.Pack(fd, index, sh.scan(fd, index))
        ended(pack)
        assert b"d/one" in pack.databases, "it lost its journal"
    finally:
        os.close(fd)
