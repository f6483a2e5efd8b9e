from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from the0.errors import ExitCode, Fatal
from the0.sync.botlog import BotLogWriter
from the0.sync.botlog_reader import BotLogReader, Position


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def drain(reader: BotLogReader) -> tuple[bytes, list[int | None]]:
    """All that it gives now, and what it says was lost."""
    data, losses = b"", []
    while True:
        chunk = reader.read(1 << 16)
        if chunk.gap:
            losses.append(chunk.lost_bytes)
        if not chunk.data:
            return data, losses
        data += chunk.data


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read_in_order_over_rotation_and_restarts_of_both(logs: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=1000)
    reader = BotLogReader(str(logs), Position())
    written, read = b"", b""
    for number in range(500):
        line = b"line %d\n" % number
        writer.write(line)
        written += line
        if number % 7 == 0:
            data, losses = drain(reader)
            assert not losses
            read += data
        if number % 60 == 0:
            position = Position.decode(json.loads(json.dumps(reader.position.encode())))
            reader.close()
            reader = BotLogReader(str(logs), position)
        if number % 90 == 0:
            writer.close()
            writer = BotLogWriter(str(logs), limit_bytes=1000)
    data, losses = drain(reader)
    assert not losses
    assert (read + data).replace(b"\n\n", b"\n").lstrip(b"\n") == written
    assert sorted(path.name for path in logs.iterdir()) == ["bot.log", "bot.log.1", "bot.log.starts"]
    assert sum(path.stat().st_size for path in logs.iterdir()) < 3000


def test_a_reader_that_was_outrun_counts_what_it_missed(logs: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=1000)
    writer.write(b"first\n")
    reader = BotLogReader(str(logs), Position())
    assert drain(reader) == (b"first\n", [])
    position = reader.position
    for number in range(1000):
        writer.write(b"%09d\n" % number)
    data, losses = drain(reader)
    # The file that it holds open is read to its end, then what rotation left.
    assert losses == [10_000 - len(data)]
    assert data.endswith(b"000000999\n")
    successor = BotLogReader(str(logs), position)
    data, losses = drain(successor)
    assert losses == [10_000 - len(data)]
    assert data.startswith(b"0000")


def test_what_is_written_just_before_a_rotation_is_not_skipped(logs: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=100)

    written = [b"%059d\n" % number for number in (3, 2, 1)]

    class Slow(BotLogReader):
        def _ended(self) -> bool:
            # Two into the file that it has just read to its end, one into the next.
            while written:
                writer.write(written.pop())
            return super()._ended()

    reader = Slow(str(logs), Position())
    chunks = [reader.read(1000) for _ in range(3)]
    assert not any(chunk.gap for chunk in chunks)
    assert [int(line) for line in b"".join(chunk.data for chunk in chunks).split()] == [1, 2, 3]


def test_a_new_stream_is_read_from_its_beginning(logs: Path, tmp_path: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=1000)
    writer.write(b"a container that is gone\n")
    reader = BotLogReader(str(logs), Position())
    drain(reader)
    logs.rename(tmp_path / "gone")
    writer = BotLogWriter(str(logs), limit_bytes=1000)
    writer.write(b"the next one\n")
    assert drain(BotLogReader(str(logs), reader.position)) == (b"the next one\n", [])


def test_our_line_is_never_spliced(logs: Path) -> None:
    writer = BotLogWriter(str(logs), clock=lambda: 0.0)
    writer.say("before")
    writer.write(b"half a li")
    writer.say("between", level="info")
    writer.write(b"ne\n")
    found = (logs / "bot.log").read_bytes().splitlines()
    assert [json.loads(found[at])["message"] for at in (0, 2)] == ["before", "between"]
    assert json.loads(found[2]) == {"timestamp": "1970-01-01T00:00:00.000Z", "level": "info", "message": "between"}
    assert (found[1], found[3]) == (b"half a li", b"ne")


def test_an_unfinished_line_of_a_former_writer_is_ended(logs: Path) -> None:
    BotLogWriter(str(logs)).write(b"killed in the mid")
    BotLogWriter(str(logs)).write(b"next\n")
    assert (logs / "bot.log").read_bytes() == b"killed in the mid\nnext\n"


@pytest.mark.parametrize("planted", ["link", "dangling link", "fifo", "folder", "hard link", "nothing", "socket"])
def test_what_a_bot_plants_is_replaced_and_never_followed(logs: Path, tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    writer = BotLogWriter(str(logs), limit_bytes=100)
    writer.write(b"one\n")
    for name in ("bot.log", "bot.log.1", "bot.log.starts", "bot.log.new", "bot.log.starts.new"):
        path = logs / name
        path.unlink(missing_ok=True)
        if planted == "link":
            path.symlink_to(victim)
        elif planted == "dangling link":
            path.symlink_to(tmp_path / "made")
        elif planted == "fifo":
            os.mkfifo(path)
        elif planted == "folder":
            (path / "deep").mkdir(parents=True)
        elif planted == "hard link":
            path.hardlink_to(victim)
        elif planted == "socket":
            os.mknod(path, 0o140644)
    for number in range(60):
        writer.write(b"line %d\n" % number)
    writer.close()
    BotLogWriter(str(logs), limit_bytes=100).write(b"last\n")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "made").exists()
    data, _ = drain(BotLogReader(str(logs), Position()))
    assert data.replace(b"\n\n", b"\n").endswith(b"line 59\nlast\n")


@pytest.mark.parametrize("planted", ["link", "fifo", "folder"])
def test_a_reader_follows_nothing_and_goes_on_when_the_file_is_back(logs: Path, tmp_path: Path, planted: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret\n")
    writer = BotLogWriter(str(logs))
    writer.write(b"one\n")
    reader = BotLogReader(str(logs), Position())
    assert drain(reader) == (b"one\n", [])
    (logs / "bot.log").unlink()
    if planted == "link":
        (logs / "bot.log").symlink_to(secret)
    elif planted == "fifo":
        os.mkfifo(logs / "bot.log")
    else:
        (logs / "bot.log").mkdir()
    assert drain(reader) == (b"", [])
    assert drain(BotLogReader(str(logs), Position())) == (b"", [])
    writer.write(b"two\n")
    assert drain(reader) == (b"two\n", [])


def test_a_removed_folder_is_made_again(logs: Path) -> None:
    writer = BotLogWriter(str(logs))
    reader = BotLogReader(str(logs), Position())
    writer.write(b"one\n")
    assert drain(reader) == (b"one\n", [])
    for path in logs.iterdir():
        path.unlink()
    logs.rmdir()
    assert drain(reader) == (b"", [])
    writer.write(b"two\n")
    assert drain(reader) == (b"two\n", [])


def test_a_truncated_file_is_read_on(logs: Path) -> None:
    writer = BotLogWriter(str(logs))
    reader = BotLogReader(str(logs), Position())
    writer.write(b"one, and much more than comes afterwards\n")
    drain(reader)
    os.truncate(logs / "bot.log", 0)
    writer.write(b"two\n")
    assert drain(reader) == (b"two\n", [None])


def test_a_truncated_file_that_rotates_unseen_is_read_on(logs: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=100)
    reader = BotLogReader(str(logs), Position())
    writer.write(b"x" * 98 + b"\n")
    drain(reader)
    os.truncate(logs / "bot.log", 0)
    writer.close()
    (logs / "bot.log").unlink()
    writer = BotLogWriter(str(logs), limit_bytes=100)
    writer.write(b"two\n")
    assert drain(reader)[0] == b"two\n"


def test_a_terabyte_of_nothing_is_jumped_over(logs: Path) -> None:
    writer = BotLogWriter(str(logs))
    reader = BotLogReader(str(logs), Position())
    writer.write(b"one\n")
    drain(reader)
    os.truncate(logs / "bot.log", 1 << 40)
    writer.write(b"two\n")
    chunk = reader.read(1 << 16)
    assert chunk.gap
    assert chunk.lost_bytes is not None
    assert chunk.lost_bytes > 1 << 39
    rest = [chunk.data]
    while chunk := reader.read(1 << 20):
        if not chunk.data:
            break
        rest.append(chunk.data)
    assert b"".join(rest).strip(b"\0") == b"two\n"


def test_a_full_disk_blocks_nothing_and_is_counted(logs: Path) -> None:
    writer = BotLogWriter(str(logs))
    writer.write(b"before\n")
    with full_disk(at_bytes=20):
        for number in range(100):
            writer.write(b"lost %02d\n" % number)
        writer.say("a sentence that must come through")
    writer.write(b"after\n")
    found = (logs / "bot.log").read_bytes().splitlines()
    assert found[0] == b"before"
    assert found[-1] == b"after"
    told = [json.loads(line)["message"] for line in found if line.startswith(b"{")]
    dropped = re.fullmatch(r"(\d+) bytes of the bot's output were dropped: File too large", told[0])
    assert dropped is not None
    kept = sum(len(line) + 1 for line in found if line.startswith(b"lost "))
    # Our own sentence had to wait as well and is counted with them.
    assert 0 < int(dropped[1]) - (800 - kept) < 150
    assert told[1:] == ["a sentence that must come through"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Fatal, match="set LOGS_PATH to a folder") as refused:
        BotLogWriter(str(tmp_path / "file" / "logs"))
    assert refused.value.code == ExitCode.LOCAL_DISK


def test_starts_that_somebody_wrote_do_no_harm(logs: Path) -> None:
    writer = BotLogWriter(str(logs), limit_bytes=100)
    reader = BotLogReader(str(logs), Position())
    for nonsense in (
        b"", b"[]", b'{"stream":1,"starts":{}}', b'{"stream":"x","starts":{"a":1}}', b"[" * 4000,
        b'{"stream":"x","starts":{"1":-5}}', b'{"stream":"x","starts":[1]}', b'{"stream":"x","starts":{"1":1e999}}',
    ):  # fmt: skip
        (logs / "bot.log.starts").write_bytes(nonsense)
        writer.write(b"x" * 60 + b"\n")
        writer.write(b"y" * 60 + b"\n")
        assert drain(reader)[0].endswith(b"y\n")
