from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from the0.sync.botlog_reader import Position
from the0.sync.spool import Piece, Spool

DAY = "20231115"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / ".the0" / "spool"


@pytest.fixture
def spool(path: Path) -> Spool:
    path.parent.parent.mkdir()
    return Spool(str(path))


def at(offset: int) -> Position:
    return Position(stream="s", inode=7, offset=offset)


def lines_of(spool: Spool) -> bytes:
    """All that it holds, in order; `open` is sealed for it."""
    if spool.open_bytes:
        spool.seal(epoch=9, seq=spool.next_seq(9) or 1)
    return b"".join(spool.read(piece) for piece in spool.pieces())


def test_what_was_appended_is_there_after_a_kill(spool: Spool, path: Path) -> None:
    spool.load()
    assert spool.position == Position()
    assert spool.append(b"one\n", position=at(4), day=DAY)
    assert spool.append(b"two\n", position=at(8), day=DAY)
    piece = spool.seal(epoch=3, seq=100)
    assert piece == Piece(epoch=3, seq=100, day=DAY)
    assert spool.append(b"three\n", position=at(14), day="20231116")
    successor = Spool(str(path))
    successor.load()
    assert (successor.position, successor.day, successor.open_bytes) == (at(14), "20231116", 6)
    assert (successor.next_seq(3), successor.next_seq(4)) == (101, None)
    assert successor.read(piece) == b"one\ntwo\n"
    assert lines_of(successor) == b"one\ntwo\nthree\n"
    for piece in successor.pieces():
        successor.remove(piece)
        successor.remove(piece)
    assert (successor.pieces(), successor.position) == ([], at(14))
    assert not successor.problems


def test_a_kill_in_the_midst_of_an_append_leaves_whole_records(spool: Spool, path: Path, tmp_path: Path) -> None:
    spool.load()
    sizes = []
    for number in range(4):
        sizes.append((path / "open").stat().st_size)
        spool.append(b"line %d\n" % number, position=at(7 * number + 7), day=DAY)
    whole = (path / "open").read_bytes()
    for cut in range(sizes[0], len(whole) + 1):
        base = tmp_path / f"cut-{cut}" / ".the0" / "spool"
        base.mkdir(parents=True)
        (base / "open").write_bytes(whole[:cut])
        found = Spool(str(base))
        found.load()
        count = found.position.offset // 7
        assert count == sum(size <= cut for size in [*sizes[1:], len(whole)])
        # The lines that are not in it are read again from where it says.
        for number in range(count, 4):
            found.append(b"line %d\n" % number, position=at(7 * number + 7), day=DAY)
        assert lines_of(found) == b"line 0\nline 1\nline 2\nline 3\n"
        assert not found.problems


def test_a_kill_in_the_midst_of_sealing_is_one_or_the_other(
    spool: Spool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def watched(act: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            shutil.copytree(path, tmp_path / f"state-{len(list(tmp_path.iterdir()))}" / ".the0" / "spool")
            return act(*args, **kwargs)  # type: ignore[operator]

        return call

    spool.append(b"one\n", position=at(4), day=DAY)
    for name in ("open", "rename", "ftruncate", "write", "close"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    spool.seal(epoch=3, seq=100)
    monkeypatch.undo()
    states = [entry for entry in tmp_path.iterdir() if entry.name.startswith("state-")]
    assert len(states) >= 5
    for state in states:
        found = Spool(str(state / ".the0" / "spool"))
        found.load()
        assert found.position == at(4)
        assert lines_of(found) == b"one\n"
        assert not found.problems


def test_it_is_bounded_and_keeps_a_reserve(path: Path) -> None:
    path.parent.parent.mkdir()
    spool = Spool(str(path), limit_bytes=10_000)
    count = 0
    while spool.append(b"x" * 999 + b"\n", position=at(count), day=DAY):
        count += 1
        if count % 3 == 0:
            spool.seal(epoch=1, seq=count)
    assert 7 <= count <= 9
    assert sum(entry.stat().st_size for entry in path.iterdir()) <= 10_000
    assert spool.append(b"it is full\n", position=at(count), day=DAY, reserve_bytes=1000)
    spool.remove(spool.pieces()[0])
    assert spool.append(b"x" * 999 + b"\n", position=at(count), day=DAY)


def test_an_error_of_the_disk_leaves_nothing_half_done(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    spool.append(b"one\n", position=at(4), day=DAY)

    def short(fd: int, data: memoryview, offset: int) -> int:
        if len(data) < 40:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(OSError, match="No space"):
        spool.append(b"two, which does not fit\n", position=at(9), day=DAY)
    assert spool.position == at(4)
    monkeypatch.undo()
    assert spool.append(b"2\n", position=at(6), day=DAY)
    assert lines_of(spool) == b"one\n2\n"
    assert not spool.problems


@pytest.mark.parametrize("planted", ["garbage", "link", "fifo", "folder", "terabyte", "empty"])
@pytest.mark.parametrize("name", ["open", "next", "0000000003-000000000100-20231115"])
def test_what_a_bot_plants_is_said_and_dropped(
    spool: Spool, path: Path, tmp_path: Path, planted: str, name: str
) -> None:
    spool.append(b"one\n", position=at(4), day=DAY)
    spool.seal(epoch=3, seq=100)
    spool.append(b"two\n", position=at(8), day=DAY)
    spool.close()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    target = path / name
    target.unlink(missing_ok=True)
    if planted == "garbage":
        target.write_bytes(os.urandom(5000))
    elif planted == "link":
        target.symlink_to(victim)
    elif planted == "fifo":
        os.mkfifo(target)
    elif planted == "folder":
        (target / "deep").mkdir(parents=True)
    elif planted == "terabyte":
        target.write_bytes(b"")
        os.truncate(target, 1 << 40)
    else:
        target.write_bytes(b"")
    spool = Spool(str(path))
    spool.load()
    assert spool.append(b"three\n", position=at(14), day=DAY)
    found = lines_of(spool)
    kept = {"open": b"one\nthree\n", "next": b"one\ntwo\nthree\n"}.get(name, b"two\nthree\n")
    assert found == kept
    assert victim.read_bytes() == b"precious"
    for piece in spool.pieces():
        spool.remove(piece)
    assert sorted(entry.name for entry in path.iterdir()) == ["open"]
    if name != "next":
        assert len(spool.problems) == 1, spool.problems
        assert name in spool.problems[0]


def test_a_damaged_end_of_a_piece_costs_that_end(spool: Spool, path: Path) -> None:
    for number in range(3):
        spool.append(b"line %d\n" % number, position=at(number), day=DAY)
    piece = spool.seal(epoch=3, seq=100)
    data = bytearray((path / piece.name).read_bytes())
    data[-3] ^= 1
    (path / piece.name).write_bytes(data)
    assert spool.read(piece) == b"line 0\nline 1\n"
    assert "are damaged and lost in part" in spool.problems[0]


def test_a_removed_folder_is_made_again_and_said(spool: Spool, path: Path) -> None:
    spool.append(b"one\n", position=at(4), day=DAY)
    spool.seal(epoch=3, seq=100)
    spool.append(b"two\n", position=at(8), day=DAY)
    shutil.rmtree(path)
    piece = spool.seal(epoch=3, seq=101)
    assert spool.read(piece) == b"two\n"
    assert spool.problems == ["the log spool was removed: 1 pieces in it are lost"]
    assert spool.append(b"three\n", position=at(14), day=DAY)
    successor = Spool(str(path))
    successor.load()
    assert successor.position == at(14)
    assert lines_of(successor) == b"two\nthree\n"


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_what_is_in_place_of_the_folder_is_replaced_and_never_followed(path: Path, tmp_path: Path, kind: str) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "theirs").write_text("kept")
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "file":
        path.write_text("x")
    else:
        os.mkfifo(path)
    found = Spool(str(path))
    found.load()
    found.close()
    assert path.is_dir()
    assert not path.is_symlink()
    assert any("replaced" in problem for problem in found.problems)
    assert [(each.name, each.read_text()) for each in elsewhere.iterdir()] == [("theirs", "kept")]


def test_a_link_in_place_of_the_reserved_folder_is_refused(path: Path, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / path.name).write_text("kept")
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.symlink_to(elsewhere)
    with pytest.raises(OSError):
        Spool(str(path)).load()
    assert (elsewhere / path.name).read_text() == "kept"


def test_records_of_nonsense_are_no_records(spool: Spool, path: Path) -> None:
    spool.load()
    spool.close()
    for told in (["x"], [["s", 1, 2, 3, 4], -1, 0, ""], [["s", 1, 2, 3, 4], 1, 0, "../../x"], [[], 1, 2, DAY], "x", 5):
        text = json.dumps(told).encode()
        crc = zlib.crc32(b"", zlib.crc32(text))
        (path / "open").write_bytes(b"the0-spool-1 %08x 0 %b\n" % (crc, text))
        found = Spool(str(path))
        found.load()
        assert len(found.problems) == 1
        assert found.position == Position()
        found.close()
