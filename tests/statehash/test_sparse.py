"""Holes: not read, stored as a few bytes, restored as holes; to a digest they are zeros like any others."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from statehash import machine
from the0 import statehash as sh

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def bytes_read() -> int:
    """By this process so far, from the page cache too."""
    rows = Path("/proc/self/io").read_text().splitlines()
    return int(dict(row.split(": ") for row in rows)["rchar"])


def scattered(path: Path, *, size: int, parts: int) -> None:
    chance = Random(3)
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(parts):
            file.seek(size // parts * number // 4096 * 4096)
            file.write(chance.randbytes(4096))


def test_only_data_is_read_and_stored(root: Path, tmp_path: Path) -> None:
    scattered(root / "sparse", size=10 * GIB, parts=256)
    index = sh.Index()
    before = bytes_read()
    stored = machine.commit(root, index)
    read = bytes_read() - before
    assert read < 2 << 20, "1 MiB of data"
    assert sum(len(data) for _, _, data in stored) < 2 << 20
    with (root / "sparse").open("r+b") as file:
        file.seek(5 * GIB + 1)
        file.write(b"x")
    before = bytes_read()
    more = machine.commit(root, index)
    assert bytes_read() - before < 2 << 20
    assert sum(len(data) for _, _, data in more) < 10_000
    with machine.folder(root) as fd:
        assert sh.differences(fd, index) == []
    restored = machine.restore(tmp_path / "restored", stored + more)
    assert machine.entries(restored) == machine.entries(index)
    copy = (tmp_path / "restored" / "sparse").stat()
    assert copy.st_size == 10 * GIB
    assert copy.st_blocks * 512 <= 257 * sh.BLOCK_BYTES + (1 << 20), "holes stay holes, in blocks"


@pytest.mark.parametrize("size", [70_000, 3 << 20, (3 << 20) + 17])
def test_a_hole_and_zeros_are_the_same_content(root: Path, size: int) -> None:
    scattered(root / "sparse", size=size, parts=3)
    content = (root / "sparse").read_bytes()
    (root / "full").write_bytes(content)
    (root / "hole").touch()
    os.truncate(root / "hole", size)
    (root / "zeros").write_bytes(bytes(size))
    index = sh.Index()
    machine.commit(root, index)
    found = {entry.path: entry.digest for entry in index.entries()}
    assert found[b"sparse"] == found[b"full"]
    assert found[b"hole"] == found[b"zeros"] != found[b"full"]
    # From data to a hole and back again.
    (root / "full").write_bytes(b"")
    os.truncate(root / "full", size)
    (root / "hole").write_bytes(content)
    machine.commit(root, index)
    found = {entry.path: entry.digest for entry in index.entries()}
    assert found[b"full"] == found[b"zeros"]
    assert found[b"hole"] == found[b"sparse"]
    with machine.folder(root) as fd:
        assert sh.differences(fd, index) == []
