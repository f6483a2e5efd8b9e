"""Files of every kind and in every state, one property at a time."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from statehash import machine, oracle
from the0 import statehash as sh


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def quiet(root: Path, index: sh.Index) -> sh.Scan:
    """A scan after the clock has moved on far enough to tell every file's times from now."""
    newest = max((os.lstat(path).st_ctime_ns for path, *_ in os.walk(root)), default=0)
    for path, _, files in os.walk(root):
        newest = max([newest, *(os.lstat(os.path.join(path, name)).st_ctime_ns for name in files)])
    while time.time_ns() < newest + 50_000_000:
        time.sleep(0.005)
    machine.commit(root, index)
    with machine.folder(root) as fd:
        return sh.scan(fd, index)


def test_specials_are_named_and_never_opened(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    (root / "f").write_bytes(b"x")
    index = sh.Index()
    with machine.folder(root) as fd:
        scan = sh.scan(fd, index)
    assert (sorted(scan.specials), scan.files, scan.changed) == ([b"fifo", b"socket"], 1, 1)
    machine.commit(root, index)
    assert [e.path for e in index.entries()] == [b"f"]
    (root / "f").unlink()
    os.mkfifo(root / "f")
    machine.commit(root, index)
    assert list(index.entries()) == []


def test_a_hundred_specials_are_enough(root: Path) -> None:
    for n in range(150):
        os.mkfifo(root / f"fifo-{n:03}")
    with machine.folder(root) as fd:
        assert len(sh.scan(fd, sh.Index()).specials) == 100


def descend(root: Path, names: list[bytes]) -> int:
    """Makes folders one in the other; gives the innermost, since no path to it would be short enough."""
    at = os.open(root, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    return at


@pytest.mark.parametrize("names", [[b"d"] * 70, [b"d"] * 2000, [b"x" * 250] * 40], ids=["70", "2000", "10000 bytes"])
def test_deep_trees(tmp_path: Path, root: Path, names: list[bytes]) -> None:
    at = descend(root, names)
    with os.fdopen(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=at), "wb") as file:
        file.write(b"down here")
    os.mkdir("beside", dir_fd=at)
    os.close(at)
    index = sh.Index()
    segments = machine.commit(root, index)
    path = b"/".join(names) + b"/deep"
    found = index.get(path)
    assert found is not None
    assert (found.size, found.digest) == (9, sh.digest(b"down here")[:32])
    restored = machine.restore(tmp_path / "restored", segments)
    assert machine.entries(restored) == machine.entries(index)
    with machine.folder(tmp_path / "restored") as fd:
        assert sh.differences(fd, restored) == []
    subprocess.run(["rm", "-rf", tmp_path / "restored", root], check=True)


def test_too_deep_is_incomplete_and_all_else_is_kept(root: Path) -> None:
    os.close(descend(root, [b"x" * 200] * 90))
    (root / "z").write_bytes(b"kept")
    index = sh.Index()
    packing, _ = machine.pack(root, index)
    assert [len(path) for path in packing.incomplete] == [82 * 201 - 1]
    machine.commit(root, index)
    assert index.get(b"z") is not None
    subprocess.run(["rm", "-rf", root], check=True)


def test_few_descriptors_are_enough(root: Path) -> None:
    at = root
    for n in range(60):
        for beside in range(3):
            (at / f"beside-{beside}").mkdir()
        (at / "f").write_bytes(b"%d" % n)
        at /= "d"
        at.mkdir()
    script = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
from the0 import statehash as sh
fd = os.open(sys.argv[1], os.O_RDONLY)
index = sh.Index()
pack = sh.Pack(fd, index, sh.scan(fd, index, threads=2))
while pack.next():
    pass
index.stage(pack, ["k"], b"")
index.confirm(b"")
print(index.files, sh.differences(fd, index))
"""
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=True)
    assert done.stdout == "60 []\n"


def test_hard_links_are_files_of_their_own(tmp_path: Path, root: Path) -> None:
    (root / "a").write_bytes(b"shared")
    os.link(root / "a", root / "b")
    machine.restore(tmp_path / "restored", machine.commit(root, sh.Index()))
    a, b = (os.stat(tmp_path / "restored" / name) for name in "ab")
    assert (a.st_ino != b.st_ino, a.st_nlink, b.st_size) == (True, 1, 6)


def test_the_runtimes_own_folder_is_left_out_at_the_top_only(root: Path) -> None:
    for path in [".the0/index", "sub/.the0/index", ".the0x/f"]:
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(b"x")
    index = sh.Index()
    machine.commit(root, index)
    assert {e.path for e in index.entries() if e.kind == "file"} == {b"sub/.the0/index", b".the0x/f"}
    with machine.folder(root) as fd:
        assert sh.scan(fd, sh.Index(), skip=b"sub").files == 1


def test_a_sparse_file_costs_little_and_stays_sparse(tmp_path: Path, root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(300 << 20)
        file.seek(200 << 20)
        file.write(b"an island")
    index = sh.Index()
    segments = machine.commit(root, index)
    assert sum(len(data) for _, _, data in segments) < 50_000
    machine.restore(tmp_path / "restored", segments)
    restored = (tmp_path / "restored/sparse").stat()
    assert (restored.st_size, restored.st_blocks * 512 < 1 << 20) == (300 << 20, True)
    with machine.folder(tmp_path / "restored") as fd:
        assert sh.differences(fd, index) == []


def test_one_page_of_a_large_file_costs_one_block(root: Path) -> None:
    (root / "large").write_bytes(Random(1).randbytes(20 << 20))
    index = sh.Index()
    machine.commit(root, index)
    with (root / "large").open("r+b") as file:
        file.seek(7 << 20)
        file.write(b"page" * 1024)
    assert sum(len(data) for _, _, data in machine.commit(root, index)) < 70_000
    with (root / "large").open("ab") as file:
        file.write(b"more")
    assert sum(len(data) for _, _, data in machine.commit(root, index)) < 1000


def test_touching_stores_metadata_only_and_touching_back_nothing(root: Path) -> None:
    (root / "f").write_bytes(Random(1).randbytes(50_000))
    (root / "large").write_bytes(Random(2).randbytes(500_000))
    index = sh.Index()
    machine.commit(root, index)
    before = {name: os.stat(root / name) for name in ("f", "large")}
    for name in before:
        os.utime(root / name, ns=(0, 10**18))
        (root / name).chmod(0o640)
    packing, segments = machine.pack(root, index)
    assert sum(len(data) for _, _, data in segments) < 300
    assert packing.touches(b"f")
    assert not packing.touches(b"fi")
    for name, stats in before.items():
        os.utime(root / name, ns=(0, stats.st_mtime_ns))
        (root / name).chmod(stat.S_IMODE(stats.st_mode))
    packing, segments = machine.pack(root, index)
    assert (packing.empty, segments, packing.touches(b"")) == (True, [], False)
    assert not quiet(root, index)


def test_files_over_the_limit_keep_their_last_stored_version(tmp_path: Path, root: Path) -> None:
    for name in ("small", "medium", "large"):
        (root / name).write_bytes(b"v1")
    index = sh.Index()
    segments = machine.commit(root, index)
    for name, size in {"small": 60_000, "medium": 300_000, "large": 3_000_000, "new": 90_000}.items():
        (root / name).write_bytes(bytes(size))
    (root / "beside").write_bytes(b"x")
    packing, new = machine.pack(root, index, max_file_bytes=50_000)
    assert sorted(packing.incomplete) == [b"large", b"medium", b"new", b"small"]
    index.stage(packing, [key for key, _, _ in new], b"")
    index.confirm(b"")
    machine.restore(tmp_path / "restored", segments + new)
    found = {path: content for path, (_, _, _, content) in oracle.read(tmp_path / "restored").items()}
    assert found == {b"small": b"v1", b"medium": b"v1", b"large": b"v1", b"beside": b"x"}


def test_what_a_scan_tells(root: Path) -> None:
    (root / ".the0-state").mkdir()
    (root / ".the0-state/key.json").write_bytes(b"{}")
    (root / "big").write_bytes(bytes(1000))
    index = sh.Index()
    with machine.folder(root) as fd:
        scan = sh.scan(fd, index, threads=2)
    assert (bool(scan), scan.changed, scan.removed, scan.files, scan.bytes, scan.largest) == (
        True,
        3,
        0,
        2,
        1002,
        (b"big", 1000),
    )
    assert not quiet(root, index)
    (root / ".the0-state/key.json").unlink()
    with machine.folder(root) as fd:
        scan = sh.scan(fd, index)
    assert (scan.removed, scan.touches(b".the0-state"), scan.touches(b"big"), scan.touches(b".the0-stat")) == (
        1,
        True,
        False,
        False,
    )
    assert (index.files, index.bytes) == (2, 1002)


def test_emptying_the_folder_is_a_change_like_any_other(tmp_path: Path, root: Path) -> None:
    rng = Random(5)
    for _ in range(40):
        oracle.edit(root, rng)
    index = sh.Index()
    segments = machine.commit(root, index)
    for name in os.listdir(os.fsencode(root)):
        oracle.remove(os.fsencode(root) + b"/" + name)
    segments += machine.commit(root, index)
    machine.restore(tmp_path / "restored", segments)
    assert (os.listdir(tmp_path / "restored"), list(index.entries())) == ([], [])


def test_live_bytes_follow_what_is_still_needed(root: Path) -> None:
    (root / "a").write_bytes(Random(1).randbytes(60_000))
    (root / "b").write_bytes(Random(2).randbytes(60_000))
    index = sh.Index()
    machine.commit(root, index)
    [(_, _, stored, live)] = index.segments()
    assert live == stored > 120_000
    (root / "a").write_bytes(b"other")
    machine.commit(root, index)
    (_, _, _, first), (_, _, second_stored, second) = index.segments()
    assert 59_000 < first < 61_000
    assert second == second_stored
    (root / "b").unlink()
    machine.commit(root, index)
    assert index.segments()[0][3] == 0
