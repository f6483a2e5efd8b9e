"""The folder store: people beside it, crashes amid it, several processes in it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from the0.errors import ExitCode
from the0.objects import store as protocol
from the0.objects.folder import Folder
from the0.objects.place import RESERVED
from the0.objects.retry import Retrying

BUCKET = "bucket"


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the machine can: what is killed here are processes, and thousands of fsyncs take their time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as path:
        yield Path(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    store = Folder(str(tmp_path / "objects"))
    store.ensure_bucket(BUCKET)
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "objects" / BUCKET


# --- A person's files ------------------------------------------------------------------------------


def test_a_file_that_a_person_drops_is_an_object(folder: Folder, path: Path) -> None:
    (path / "user" / "bot").mkdir(parents=True)
    (path / "user" / "bot" / "1.0.0").write_bytes(b"archive")
    found = folder.get(BUCKET, "user/bot/1.0.0", limit_bytes=100)
    assert (found.data, found.info.metadata) == (b"archive", {})
    assert [(info.key, info.etag) for info in folder.list(BUCKET, "")] == [("user/bot/1.0.0", found.info.etag)]
    with pytest.raises(protocol.NotModified):
        folder.get(BUCKET, "user/bot/1.0.0", limit_bytes=100, if_none_match=found.info.etag)
    assert folder.put_if(BUCKET, "user/bot/1.0.0", b"ours", etag=found.info.etag, metadata={"name": "value"})
    assert folder.get(BUCKET, "user/bot/1.0.0", limit_bytes=100).info.metadata == {"name": "value"}


def test_an_object_that_a_person_changes_loses_metadata_and_etag(folder: Folder, path: Path) -> None:
    etags = {folder.put(BUCKET, "k", b"ours", metadata={"name": "value"})}
    (path / "k").write_bytes(b"edit")  # in place, of the same size
    edited = folder.get(BUCKET, "k", limit_bytes=100)
    assert (edited.data, edited.info.metadata) == (b"edit", {})
    etags.add(edited.info.etag)
    shutil.copy2(path / "k", path / "kept")
    (path / "k").write_bytes(b"more")
    etags.add(folder.get(BUCKET, "k", limit_bytes=100).info.etag)
    shutil.copy2(path / "kept", path / "k")  # the old bytes with the old times
    etags.add(folder.get(BUCKET, "k", limit_bytes=100).info.etag)
    assert len(etags) == 4, "an ETag came back"


def test_objects_can_be_looked_at(folder: Folder, path: Path) -> None:
    folder.put(BUCKET, "a/b/c", b"bytes", metadata={"name": "value"})
    assert (path / "a" / "b" / "c").read_bytes() == b"bytes"


def test_what_a_person_appends_to_or_drops_can_be_appended_to(folder: Folder, path: Path) -> None:
    (path / "log").write_bytes(b"one\n")
    folder.append(BUCKET, "log", b"two\n", etag=None, metadata={"last": "2"})
    with open(path / "log", "ab") as file:
        file.write(b"three\n")
    assert folder.get(BUCKET, "log", limit_bytes=100).info.metadata == {}
    folder.append(BUCKET, "log", b"four\n", etag=None, metadata={"last": "4"})
    found = folder.get(BUCKET, "log", limit_bytes=100)
    assert (found.data, found.info.metadata) == (b"one\ntwo\nthree\nfour\n", {"last": "4"})


def test_links_and_special_files_are_no_objects(folder: Folder, path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (path / "link").symlink_to(outside / "secret")
    (path / "folder").symlink_to(outside)
    os.mkfifo(path / "fifo")
    (path / b"not utf-8 \xff".decode(errors="surrogateescape")).write_bytes(b"")
    (path / "new\nline").write_bytes(b"")
    assert list(folder.list(BUCKET, "")) == []
    assert folder.list_folders(BUCKET, "") == []
    for key in ("link", "folder/secret", "fifo"):
        for attempt in (
            lambda key=key: folder.get(BUCKET, key, limit_bytes=100),
            lambda key=key: folder.head(BUCKET, key),
        ):
            with pytest.raises(protocol.Denied, match="a link or special file is in its place; put a regular file"):
                attempt()
    with pytest.raises(protocol.Denied):
        folder.put(BUCKET, "folder/new", b"")
    folder.put(BUCKET, "link", b"ours")
    folder.put(BUCKET, "fifo", b"ours")
    assert folder.get(BUCKET, "link", limit_bytes=100).data == b"ours"
    assert [entry.name for entry in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    folder.delete(BUCKET, "link")
    (path.parent / "linked").symlink_to(outside)
    with pytest.raises(protocol.Denied):
        folder.get("linked", "secret", limit_bytes=100)


def test_keys_that_cannot_be_files_are_refused_by_name(folder: Folder, path: Path) -> None:
    folder.put(BUCKET, "key", b"")
    folder.put(BUCKET, "folder/key", b"")
    for key in ("key/below", "key/far/below", "folder", f"{RESERVED}/x", RESERVED, "x" * 256, f"a/{'é' * 128}"):
        with pytest.raises(protocol.Refused, match="; choose "):
            folder.put(BUCKET, key, b"")
        with pytest.raises(protocol.Refused):
            folder.put_if(BUCKET, key, b"", etag=None)
    assert folder.head(BUCKET, "folder") is None
    assert folder.head(BUCKET, "key/below") is None
    assert [info.key for info in folder.list(BUCKET, "")] == ["folder/key", "key"]
    (path / "empty" / "inner").mkdir(parents=True)
    (path / "empty" / "inner").rmdir()
    folder.put(BUCKET, "empty", b"a folder without objects is in nobody's way")
    assert folder.head(BUCKET, "x" * 255) is None


def test_a_deleted_object_leaves_no_folders_and_no_record(folder: Folder, path: Path) -> None:
    folder.put(BUCKET, "a/b/c/d", b"")
    folder.put(BUCKET, "a/e", b"")
    folder.delete(BUCKET, "a/b/c/d")
    assert [entry.name for entry in (path / "a").iterdir()] == ["e"]
    folder.delete(BUCKET, "a/e")
    folder.delete(BUCKET, "a")
    assert [entry.name for entry in path.iterdir()] == [RESERVED]
    assert [found for found in (path / RESERVED / "side").rglob("*") if found.is_file()] == []


def test_records_of_another_format(folder: Folder, path: Path) -> None:
    folder.put(BUCKET, "k", b"bytes", metadata={"name": "value"})
    (record,) = [found for found in (path / RESERVED / "side").rglob("*") if found.is_file()]
    content = json.loads(record.read_bytes())
    for unreadable in (b"", b"{", b"[]", b'{"format": 1}', json.dumps({**content, "key": "other"}).encode()):
        record.write_bytes(unreadable)
        assert folder.get(BUCKET, "k", limit_bytes=5).info.metadata == {}
    record.write_bytes(json.dumps({**content, "format": 2}).encode())
    with pytest.raises(protocol.Refused, match=r"of a newer version \(format 2\); update"):
        folder.get(BUCKET, "k", limit_bytes=5)


# --- Crashes ---------------------------------------------------------------------------------------

_STEPS = ("open", "write", "fsync", "rename", "mkdir", "rmdir", "unlink", "ftruncate")


def _killed_at(step: int, operation: Callable[[], object]) -> bool:
    """Carries the operation out in a child that is killed just before its `step`th call that the disk notices;
    False where it ended before. Half of a write is written."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(name: str) -> Callable[..., Any]:
            call = getattr(os, name)

            def instead(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    if name == "write":
                        call(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return instead

        for name in _STEPS:
            setattr(os, name, counted(name))
        try:
            operation()
        except BaseException:  # noqa: BLE001  (a forked test process must not go on)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


Found = tuple[bytes, dict[str, str]] | None


def _found(folder: Folder) -> Found:
    info = folder.head(BUCKET, "a/k")
    if info is None:
        return None
    found = folder.get(BUCKET, "a/k", limit_bytes=1000)
    assert found.info == info
    return found.data, dict(found.info.metadata)


OLD: Found = (b"old bytes", {"name": "old"})


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (lambda store, _: store.put(BUCKET, "a/k", b"new", metadata={"name": "new"}), OLD, (b"new", {"name": "new"})),
        (lambda store, _: store.put(BUCKET, "a/k", b"new", metadata={"name": "new"}), None, (b"new", {"name": "new"})),
        (lambda store, etag: store.put_if(BUCKET, "a/k", b"new", etag=etag), OLD, (b"new", {})),
        (lambda store, _: store.put_if(BUCKET, "a/k", b"new", etag=None), None, (b"new", {})),
        (
            lambda store, etag: store.append(BUCKET, "a/k", b" and new", etag=etag, metadata={"name": "new"}),
            OLD,
            (b"old bytes and new", {"name": "new"}),
        ),
        (lambda store, _: store.delete(BUCKET, "a/k"), OLD, None),
    ],
    ids=["put", "first put", "put_if", "first put_if", "append", "delete"],
)
def test_killed_at_every_step_the_object_is_the_old_or_the_new_one(
    operation: Callable[[Folder, str | None], object], before: Found, after: Found, tmp_path: Path
) -> None:
    seen: list[Found] = []
    for step in range(1, 200):
        folder = Folder(str(tmp_path / str(step)))
        folder.ensure_bucket(BUCKET)
        etag = None
        if before is not None:
            etag = folder.put(BUCKET, "a/k", before[0], metadata=before[1])
        killed = _killed_at(step, lambda folder=folder, etag=etag: operation(folder, etag))
        found = _found(folder)
        assert found in (before, after), f"killed at step {step}"
        info = folder.head(BUCKET, "a/k")
        if found == before and before != after:
            assert (info.etag if info else None) == etag, f"the former ETag is lost at step {step}"
        seen.append(found)
        assert [listed.key for listed in folder.list(BUCKET, "")] == (["a/k"] if found else [])
        # Whatever was left behind is in nobody's way: what follows works, on what was seen.
        if found is None:
            folder.put_if(BUCKET, "a/k", b"next", etag=None)
            found = b"next", {}
        elif step % 2:
            folder.put_if(BUCKET, "a/k", b"next", etag=info.etag if info else None)
            found = b"next", {}
        folder.append(BUCKET, "a/k", b" more", etag=None, metadata={"name": "last"})
        assert _found(folder) == (found[0] + b" more", {"name": "last"})
        shutil.rmtree(tmp_path / str(step))
        if not killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert before in seen[:-1]
    assert seen[-1] == after
    assert seen == sorted(seen, key=lambda found: found == after), "from some step on it is the new one"


def test_an_append_killed_after_an_append_was_killed(folder: Folder) -> None:
    def append(text: str) -> None:
        folder.append(BUCKET, "a/k", f" {text}".encode(), etag=None, metadata={"name": text})

    expected: list[Found] = [
        (data, {"name": name}) for data, name in [(b"old", "old"), (b"old 1", "1"), (b"old 2", "2"), (b"old 1 2", "2")]
    ]
    for first in range(1, 100):
        for second in range(1 + first % 13, 100, 13):
            folder.put(BUCKET, "a/k", b"old", metadata={"name": "old"})
            if not _killed_at(first, lambda: append("1")):
                return
            killed = _killed_at(second, lambda: append("2"))
            assert _found(folder) in expected
            if not killed:
                break
    pytest.fail("it never came to its end")


_WRITER = """
import sys
from the0.objects.folder import Folder
store, number = Folder(sys.argv[1]), int(sys.argv[2])
while True:
    number += 1
    info = store.head("bucket", "HEAD")
    text = str(number) * (number % 50 + 1)
    store.put_if("bucket", "HEAD", text.encode(), etag=info.etag if info else None, metadata={"number": str(number)})
    print(number, flush=True)
"""


def test_a_writer_killed_at_random_moments(folder: Folder, path: Path) -> None:
    chance = random.Random(7)
    last = 0
    for _ in range(12):
        argv = [sys.executable, "-c", _WRITER, str(path.parent), str(last)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            reported = int(writer.stdout.readline())
            time.sleep(chance.uniform(0, 0.03))
            writer.kill()
            lines = writer.stdout.read().split()
        reported = int(lines[-1]) if lines else reported
        found = folder.get(BUCKET, "HEAD", limit_bytes=1000)
        last = int(found.info.metadata["number"])
        assert found.data == (str(last) * (last % 50 + 1)).encode()
        assert last in (reported, reported + 1)
    assert last > 12


def test_what_killed_writers_leave_is_swept(folder: Folder, path: Path) -> None:
    temporaries = path / RESERVED / "tmp"
    step = 1
    while not temporaries.exists() or not any(temporaries.iterdir()):
        assert _killed_at(step, lambda: folder.put(BUCKET, "k", b"bytes"))
        step += 1
    (left,) = temporaries.iterdir()
    folder.put(BUCKET, "k", b"bytes")
    assert left.exists(), "it may be another writer's, still at work"
    os.utime(left, (0, 0))
    Folder(str(path.parent)).put(BUCKET, "k", b"bytes")
    assert not left.exists()


# --- Several at once -------------------------------------------------------------------------------

_COUNTER = """
import sys
from the0.objects.folder import Folder
from the0.objects.store import PreconditionFailed
store, done = Folder(sys.argv[1]), 0
while done < 25:
    found = store.get("bucket", "count", limit_bytes=100)
    try:
        store.put_if("bucket", "count", str(int(found.data) + 1).encode(), etag=found.info.etag)
        done += 1
    except PreconditionFailed:
        pass
"""


def test_processes_never_overwrite_each_other(folder: Folder, path: Path) -> None:
    folder.put(BUCKET, "count", b"0")
    counters = [subprocess.Popen([sys.executable, "-c", _COUNTER, str(path.parent)]) for _ in range(6)]
    assert [counter.wait(60) for counter in counters] == [0] * 6
    assert folder.get(BUCKET, "count", limit_bytes=100).data == b"150"


def test_readers_see_whole_objects_while_they_are_written(folder: Folder, tmp_path: Path) -> None:
    folder.put(BUCKET, "log", b"", metadata={"lines": "0"})
    ended = threading.Event()
    patient = Retrying(folder, deadline_s=10, first_pause_s=0.001)

    def write() -> None:
        try:
            for number in range(1, 61):
                metadata = {"lines": str(number)}
                if number % 10 == 0:
                    folder.put(BUCKET, "log", b"a line\n" * number, metadata=metadata)
                else:
                    folder.append(BUCKET, "log", b"a line\n", etag=None, metadata=metadata)
        finally:
            ended.set()

    def read() -> int:
        looks = 0
        while not ended.is_set():
            found = folder.get(BUCKET, "log", limit_bytes=1000)
            assert found.data == b"a line\n" * int(found.info.metadata["lines"])
            with open(tmp_path / f"{threading.get_ident()}", "wb+") as file:
                # It may be appended to and then replaced in between: repeated, as a single attempt asks for.
                info = patient.get_to_file(BUCKET, "log", file.fileno(), limit_bytes=1000)
                assert os.pread(file.fileno(), 1000, 0) == b"a line\n" * int(info.metadata["lines"])
            looks += 1
        return looks

    with ThreadPoolExecutor(4) as pool:
        writer = pool.submit(write)
        readers = [pool.submit(read) for _ in range(3)]
        writer.result()
        assert all(reader.result() > 0 for reader in readers)


def test_a_folder_that_a_delete_empties_is_there_for_a_put(folder: Folder) -> None:
    def work(who: int) -> None:
        for number in range(30):
            folder.put(BUCKET, f"a/b/{who}", b"")
            if number < 29:
                folder.delete(BUCKET, f"a/b/{who}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert [info.key for info in folder.list(BUCKET, "")] == [f"a/b/{who}" for who in range(6)]


# --- Disks -----------------------------------------------------------------------------------------

_SMALL_DISK = """
import subprocess, sys
from the0.objects.folder import Folder
from the0.errors import Fault
disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
store = Folder(disk)
store.ensure_bucket("bucket")
etag = store.put("bucket", "k", b"old", metadata={"name": "old"})
def attempt(call):
    try:
        call()
    except Fault as fault:
        print(int(fault.code), fault)
    found = store.get("bucket", "k", limit_bytes=100)
    assert (found.data, found.info.metadata, found.info.etag) == (b"old", {"name": "old"}, etag)
attempt(lambda: store.put("bucket", "k", bytes(1 << 20)))
attempt(lambda: store.append("bucket", "k", bytes(1 << 20), etag=None, metadata={}))
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
attempt(lambda: store.put("bucket", "k", b"new"))
attempt(lambda: store.delete("bucket", "k"))
attempt(lambda: store.ensure_bucket("other"))
"""


def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", _SMALL_DISK, disk], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"{int(ExitCode.LOCAL_DISK)} ") for line in lines)
    assert lines[0].endswith("failed: the disk says: No space left on device; free or repair it.")
    assert "Appending to bucket/k" in lines[1]
    assert all("Read-only file system" in line for line in lines[2:])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "missing"))
    expected = f"there is no bucket bucket; create the folder {tmp_path}/missing/bucket, or correct OBJECT_STORE_DIR"
    with pytest.raises(protocol.Denied, match=expected):
        folder.head(BUCKET, "k")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(protocol.Denied, match="there is no bucket"):
        Folder(str(tmp_path / "file")).put(BUCKET, "k", b"")


def test_a_disk_without_room_for_what_is_fetched(folder: Folder) -> None:
    folder.put(BUCKET, "k", b"bytes")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(protocol.LocalDisk, match="No space left"):
        folder.get_to_file(BUCKET, "k", full.fileno(), limit_bytes=5)
