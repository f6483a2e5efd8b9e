"""inotify: a scan of the folders with news finds what a scan of everything finds, whatever happened; and the ways it ends."""

from __future__ import annotations

import os
import select
import shutil
import threading
from pathlib import Path
from random import Random

import pytest

from statehash import machine
from the0 import statehash as sh


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def commit(fd: int, index: sh.Index, scan: sh.Scan) -> None:
    pack = sh.Pack(fd, index, scan)
    keys = []
    while (segment := pack.next()) is not None:
        keys.append(segment.digest)
    index.stage(pack, keys, b"")
    index.confirm(b"")


def disturb(root: Path, chance: Random) -> None:
    """One change of any kind."""
    folders = [root, *(Path(at) for at, _, _ in os.walk(root) if ".the0" not in at and Path(at) != root)]
    folder, other = chance.choice(folders), chance.choice(folders)
    name = f"{chance.choice('abc')}{chance.randrange(3)}"
    path, target = folder / name, other / f"{chance.choice('abc')}{chance.randrange(3)}"
    match chance.randrange(9):
        case 0 | 1 | 2 if not path.is_dir():
            path.unlink(missing_ok=True) if path.is_symlink() else None
            path.write_bytes(chance.randbytes(chance.choice([0, 10, 5000])))
        case 3 if not path.exists() and not path.is_symlink() and len(folders) < 30:
            (path / "x" / "y").mkdir(parents=True)
            (path / "x" / "f").write_bytes(b"f")
        case 4 if path.exists() and not target.exists() and path not in target.parents and path != other:
            path.rename(target)
        case 5 if path.is_dir():
            shutil.rmtree(path)
        case 6 if path.exists() and not path.is_symlink():
            path.chmod(0o700 if chance.random() < 0.5 else 0o755)
        case 7 if not path.exists() and not path.is_symlink():
            path.symlink_to("a0")
        case 8 if path.is_file() and not path.is_symlink() and not os.path.lexists(target):
            os.link(path, target)


@pytest.mark.parametrize("seed", range(4))
def test_scans_of_news_find_all(root: Path, seed: int) -> None:
    chance = Random(seed)
    index = sh.Index()
    partial = 0
    with machine.folder(root) as fd:
        watch = sh.Watch(fd)
        scan = sh.scan(fd, index, watch=watch)
        for _ in range(60):
            commit(fd, index, scan)
            watch.settle(scan)
            for _ in range(chance.randrange(12)):
                disturb(root, chance)
            scan = sh.scan(fd, index, watch=watch, whole=False)
            whole = sh.scan(fd, index)
            partial += not scan.whole
            assert (scan.files, scan.bytes) == (whole.files, whole.bytes)
            commit(fd, index, scan)
            watch.settle(scan)
            # Nothing is left to find but what changed too recently for the clock to tell.
            assert sh.differences(fd, index) == []
            scan = sh.scan(fd, index, watch=watch, whole=False)
            assert not watch.moved_since(scan)
            assert watch.blind is None
    assert partial > 20
    folders = sum(1 for _ in os.walk(root))
    assert watch.folders == folders


def test_only_folders_with_news_are_read(root: Path) -> None:
    for number in range(20):
        (root / f"d{number}").mkdir()
        (root / f"d{number}" / "f").write_bytes(b"x")
    index = sh.Index()
    with machine.folder(root) as fd:
        watch = sh.Watch(fd)
        commit(fd, index, scan := sh.scan(fd, index, watch=watch))
        watch.settle(scan)
        assert watch.folders == 21
        assert watch.dirty == []
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        assert not poll.poll(0)
        (root / "d7" / "f").write_bytes(b"xy")
        # Racy, as all of them still are: a whole scan would name every file.
        assert poll.poll(0)
        scan = sh.scan(fd, index, watch=watch, whole=False)
        assert (scan.changed, scan.whole, watch.dirty) == (1, False, [b"d7"])
        assert not watch.moved_since(scan)
        (root / "d8" / "f").unlink()
        assert watch.moved_since(scan)
        watch.settle(scan)
        assert watch.dirty == [b"d8"]


def test_reading_and_the_reserved_folder_are_no_news(root: Path) -> None:
    (root / "f").write_bytes(b"x")
    (root / ".the0").mkdir()
    index = sh.Index()
    with machine.folder(root) as fd:
        watch = sh.Watch(fd)
        scan = sh.scan(fd, index, watch=watch)
        commit(fd, index, scan)
        (root / "f").read_bytes()
        (root / ".the0" / "index").write_bytes(b"x")
        (root / ".the0").chmod(0o700)
        os.listdir(root)
        assert not watch.moved_since(scan)
        assert watch.folders == 1


def test_more_news_than_the_queue_holds(root: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    index = sh.Index()
    for name in "ab":
        (root / name).write_bytes(b"")
    with machine.folder(root) as fd:
        watch = sh.Watch(fd)
        scan = sh.scan(fd, index, watch=watch)
        # Alternately, since equal events in a row become one.
        files = [os.open(root / name, os.O_WRONLY) for name in "ab"]
        for _ in range(limit // 2 + 10):
            for file in files:
                os.pwrite(file, b"x", 0)
        for file in files:
            os.close(file)
        assert watch.moved_since(scan)
        assert watch.blind == "overflow"
        (root / "c").write_bytes(b"x")
        assert sh.scan(fd, index, watch=watch, whole=False).whole, "a blind watch is not believed"
        # A new one knows everything after one scan.
        watch = sh.Watch(fd)
        commit(fd, index, sh.scan(fd, index, watch=watch))
        assert sh.differences(fd, index) == []
        assert watch.blind is None


def test_too_many_folders(root: Path) -> None:
    for number in range(10):
        (root / str(number)).mkdir()
    with machine.folder(root) as fd:
        watch = sh.Watch(fd, max_folders=5)
        scan = sh.scan(fd, sh.Index(), watch=watch)
        assert (watch.blind, scan.changed) == ("limit", 10), "the scan itself is complete"


def test_a_fold_holds_the_tree_against_what_was_packed(root: Path, tmp_path: Path) -> None:
    """Each pass of a pack stores what changed since the one before; together they are one commit."""
    for watched in (True, False):
        index, segments = sh.Index(), []
        (root / "same").write_bytes(b"same")
        (root / "large").write_bytes(Random(1).randbytes(3 << 20))
        with machine.folder(root) as fd:
            watch = sh.Watch(fd) if watched else None
            pack = sh.Pack(fd, index, sh.scan(fd, index, watch=watch))
            for number in range(4):
                while (segment := pack.next()) is not None:
                    segments.append((segment.digest, segment.digest, bytes(segment)))
                    if number:
                        assert segment.size < 80_000, "only the block that changed"
                if number == 3:
                    break
                (root / "back").write_bytes(b"first" if number % 2 else b"second")
                (root / f"gone-{number}").write_bytes(b"x")
                (root / f"gone-{number - 1}").unlink(missing_ok=True)
                with (root / "large").open("r+b") as file:
                    file.seek(number * 65_536)
                    file.write(bytes([number]))
                assert pack.fold(watch=watch)
            index.stage(pack, [key for key, _, _ in segments], b"")
            index.confirm(b"")
            assert sh.differences(fd, index) == []
        restored = machine.restore(tmp_path / f"restored-{watched}", segments)
        assert machine.entries(restored) == machine.entries(index)
        shutil.rmtree(root)
        root.mkdir()


def test_a_fold_under_fire_ends_in_what_is_there(root: Path, tmp_path: Path) -> None:
    index, segments, chance = sh.Index(), [], Random(5)
    stop = threading.Event()

    def disturbing() -> None:
        while not stop.wait(0.0002):
            try:
                disturb(root, chance)
            except OSError:
                pass  # what it meant to change was not there

    with machine.folder(root) as fd:
        watch = sh.Watch(fd)
        thread = threading.Thread(target=disturbing)
        thread.start()
        try:
            for _ in range(30):
                scan = sh.scan(fd, index, watch=watch, whole=False)
                pack = sh.Pack(fd, index, scan)
                keys = []
                for _ in range(3):
                    while (segment := pack.next()) is not None:
                        segments.append((segment.digest, segment.digest, bytes(segment)))
                        keys.append(segment.digest)
                    if not watch.moved_since(scan):
                        break
                    scan = pack.fold(watch=watch)
                while (segment := pack.next()) is not None:
                    segments.append((segment.digest, segment.digest, bytes(segment)))
                    keys.append(segment.digest)
                index.stage(pack, keys, b"")
                index.confirm(b"")
                watch.settle(scan)
        finally:
            stop.set()
            thread.join()
        scan = sh.scan(fd, index, watch=watch, whole=False)
        pack = sh.Pack(fd, index, scan)
        keys = []
        while (segment := pack.next()) is not None:
            segments.append((segment.digest, segment.digest, bytes(segment)))
            keys.append(segment.digest)
        index.stage(pack, keys, b"")
        index.confirm(b"")
        assert sh.differences(fd, index) == []
    assert machine.entries(machine.restore(tmp_path / "restored", segments)) == machine.entries(index)
