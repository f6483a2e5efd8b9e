"""What every store promises, over all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from the0.objects import store as protocol
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.retry import Retrying

MIB = 1024 * 1024


def test_reads_what_was_written(store: Retrying, bucket: str) -> None:
    etag = store.put(bucket, "a/b", b"bytes", metadata={"The0-Name": "value 1;=/"})
    found = store.get(bucket, "a/b", limit_bytes=5)
    assert found.data == b"bytes"
    assert found.info.etag == etag
    assert found.info.size == 5
    assert found.info.metadata == {"the0-name": "value 1;=/"}
    assert store.head(bucket, "a/b") == found.info


def test_an_overwritten_object_has_nothing_of_the_former(store: Retrying, bucket: str) -> None:
    first = store.put(bucket, "k", b"former and longer", metadata={"name": "value"})
    second = store.put(bucket, "k", memoryview(bytearray(b"new"))[:2])
    found = store.get(bucket, "k", limit_bytes=100)
    assert (found.data, found.info.etag, dict(found.info.metadata)) == (b"ne", second, {})
    assert first != second


def test_a_known_object_is_not_sent_again(store: Retrying, bucket: str) -> None:
    etag = store.put(bucket, "k", b"bytes")
    with pytest.raises(protocol.NotModified):
        store.get(bucket, "k", limit_bytes=5, if_none_match=etag)
    store.put(bucket, "k", b"other")
    assert store.get(bucket, "k", limit_bytes=5, if_none_match=etag).data == b"other"


def test_a_missing_object(store: Retrying, bucket: str, tmp_path: Path) -> None:
    assert store.head(bucket, "k") is None
    with pytest.raises(protocol.Missing, match=rf"Reading {bucket}/k in the .* failed: there is no such object"):
        store.get(bucket, "k", limit_bytes=1)
    with open(tmp_path / "file", "wb") as file, pytest.raises(protocol.Missing):
        store.get_to_file(bucket, "k", file.fileno(), limit_bytes=1)
    with pytest.raises(protocol.Missing):
        store.append(bucket, "k", b"x", etag=None, metadata={})
    store.delete(bucket, "k")
    assert list(store.list(bucket, "")) == []


def test_deleting_twice_is_no_error(store: Retrying, bucket: str) -> None:
    store.put(bucket, "folder/k", b"")
    store.delete(bucket, "folder/k")
    store.delete(bucket, "folder/k")
    assert store.head(bucket, "folder/k") is None
    assert list(store.list(bucket, "")) == []
    if "seaweed" not in bucket:  # which names emptied folders for minutes
        assert store.list_folders(bucket, "") == []


def test_an_object_larger_than_allowed_is_not_read(store: Retrying, bucket: str, tmp_path: Path) -> None:
    store.put(bucket, "k", b"12345")
    with pytest.raises(protocol.TooLarge, match="5 bytes, more than the 4 allowed"):
        store.get(bucket, "k", limit_bytes=4)
    with open(tmp_path / "file", "wb") as file, pytest.raises(protocol.TooLarge):
        store.get_to_file(bucket, "k", file.fileno(), limit_bytes=4)
    assert (tmp_path / "file").read_bytes() == b""


def test_empty_objects(store: Retrying, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as empty:
        store.put_file(bucket, "file", empty.fileno(), metadata={"name": "value"})
    store.put(bucket, "bytes", b"")
    store.put_if(bucket, "new", b"", etag=None)
    for key in ("file", "bytes", "new"):
        assert store.get(bucket, key, limit_bytes=0).data == b""
    with open(tmp_path / "out", "w+b") as out:
        info = store.get_to_file(bucket, "file", out.fileno(), limit_bytes=0)
        assert (info.size, info.metadata, out.read()) == (0, {"name": "value"}, b"")
    assert [(info.key, info.size) for info in store.list(bucket, "")] == [("bytes", 0), ("file", 0), ("new", 0)]


def test_a_file_is_written_from_its_start_and_read_to_the_offset(store: Retrying, bucket: str, tmp_path: Path) -> None:
    content = os.urandom(9 * MIB + 1)  # more than one part
    (tmp_path / "source").write_bytes(content)
    with open(tmp_path / "source", "rb") as source:
        source.seek(100)
        etag = store.put_file(bucket, "k", source.fileno(), metadata={"name": "value"})
    with open(tmp_path / "target", "w+b") as target:
        os.write(target.fileno(), b"before ")
        info = store.get_to_file(bucket, "k", target.fileno(), limit_bytes=len(content))
    assert (tmp_path / "target").read_bytes() == b"before " + content
    assert (info.etag, info.size, info.metadata) == (etag, len(content), {"name": "value"})


def test_a_large_put_in_memory(store: Retrying, bucket: str) -> None:
    content = os.urandom(9 * MIB)
    etag = store.put(bucket, "k", content, metadata={"name": "value"})
    found = store.get(bucket, "k", limit_bytes=len(content))
    assert (found.data == content, found.info.etag, found.info.metadata) == (True, etag, {"name": "value"})


_LARGE = """
import sys
from pathlib import Path
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store

def memory(kind):
    # Not getrusage: its peak begins with that of the process that started this one.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1])

def peak_above(before):
    peak = memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return peak - before

folder, endpoint, access_key, secret_key, bucket, path = sys.argv[1:]
store = open_store(
    StoreSettings(folder=folder or None, endpoint=endpoint, access_key=access_key, secret_key=secret_key), deadline_s=60
)
store.put(bucket, "warm", b"")
store.get(bucket, "warm", limit_bytes=0)
peak_above(0)
before = memory("VmRSS")
with open(path, "rb") as source:
    store.put_file(bucket, "large", source.fileno())
sent = peak_above(before)
with open(path + ".back", "wb") as target:
    store.get_to_file(bucket, "large", target.fileno(), limit_bytes=400 << 20)
print(sent, peak_above(before))
"""


def test_300_mb_in_bounded_memory(store_settings: StoreSettings, store: Retrying, bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "large"
    block = os.urandom(MIB)
    with open(path, "wb") as file:
        for number in range(300):
            file.write(number.to_bytes(8, "big") + block[8:])
    settings = store_settings
    where = [settings.folder or "", settings.endpoint, settings.access_key, settings.secret_key]
    argv = [sys.executable, "-c", _LARGE, *where, bucket, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    sending_kib, getting_kib = map(int, done.stdout.split())
    assert 0 < sending_kib < 64 * 1024
    assert 0 < getting_kib < 64 * 1024
    subprocess.run(["cmp", path, f"{path}.back"], check=True)
    store.delete(bucket, "large")
    for left in tmp_path.glob("large*"):
        left.unlink()


def test_lists_2500_keys_in_pages(store: Retrying, bucket: str) -> None:
    keys = sorted([f"p/{number:05d}" for number in range(2000)] + [f"p/{number:03d}/x" for number in range(500)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(bucket, key, key.encode()), [*keys, "o", "q/1"]))
    listed = list(store.list(bucket, "p/"))
    assert [info.key for info in listed] == keys
    assert all(info.size == len(info.key) and info.etag and not info.metadata for info in listed)
    for after in ("p/", "o", "p/00999", "p/00999/", "p/0", keys[-1], "q"):
        assert [info.key for info in store.list(bucket, "p/", after=after)] == [key for key in keys if key > after]
    assert [info.key for info in store.list(bucket, "p/012")] == [key for key in keys if key.startswith("p/012")]
    assert [info.key for info in store.list(bucket, "")] == ["o", *keys, "q/1"]
    assert store.list_folders(bucket, "") == ["p/", "q/"]
    assert store.list_folders(bucket, "p/") == [f"p/{number:03d}/" for number in range(500)]


def test_lists_in_byte_order_of_whole_keys(store: Retrying, bucket: str) -> None:
    # `-` and `.` sort before `/`: by folders, `a/x` would come before `a-b`.
    keys = ["a-b", "a.b", "a/x", "a/y/z", "a0", "b!/1", "b/1", "b/~", "é", "😀", "\ufffd"]
    for key in reversed(keys):
        store.put(bucket, key, b"")
    assert [info.key for info in store.list(bucket, "")] == sorted(keys, key=str.encode)
    for after in keys:
        assert [info.key for info in store.list(bucket, "", after=after)] == [
            key for key in sorted(keys, key=str.encode) if key.encode() > after.encode()
        ]
    assert [info.key for info in store.list(bucket, "a", after="a.b")] == ["a/x", "a/y/z", "a0"]
    assert store.list_folders(bucket, "") == ["a/", "b!/", "b/"]
    assert store.list_folders(bucket, "a/") == ["a/y/"]
    assert store.list_folders(bucket, "c/") == []


def test_a_conditional_put(store: Retrying, bucket: str) -> None:
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "k", b"0", etag='"0123456789abcdef0123456789abcdef"')
    first = store.put_if(bucket, "k", b"1", etag=None, metadata={"name": "value"})
    with pytest.raises(protocol.PreconditionFailed, match=f"Writing {bucket}/k"):
        store.put_if(bucket, "k", b"2", etag=None)
    second = store.put_if(bucket, "k", b"3", etag=first)
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "k", b"4", etag=first)
    store.delete(bucket, "k")
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "k", b"5", etag=second)
    assert store.head(bucket, "k") is None
    assert store.put_if(bucket, "k", b"6", etag=None)


def test_200_rounds_of_16_conditional_puts_have_one_winner_each(store: Retrying, bucket: str) -> None:
    # SeaweedFS lets the losers of a round wait for whole seconds, so there many keys are fought for at the same time.
    lanes, rounds = (100, 2) if "seaweed" in bucket else (4, 50)

    def lane(key: str) -> int:
        etag = None
        start = threading.Barrier(16, timeout=60)

        def attempt(who: int, known: str | None) -> str | None:
            start.wait()
            try:
                return store.put_if(bucket, key, f"{known} {who}".encode(), etag=known)
            except protocol.PreconditionFailed:
                return None

        with ThreadPoolExecutor(16) as pool:
            for _ in range(rounds):
                known = etag
                results = list(pool.map(lambda who, known=known: attempt(who, known), range(16)))
                winners = [who for who, made in enumerate(results) if made is not None]
                assert len(winners) == 1
                etag = results[winners[0]]
                found = store.get(bucket, key, limit_bytes=1000)
                assert (found.data, found.info.etag) == (f"{known} {winners[0]}".encode(), etag)
        return rounds

    with ThreadPoolExecutor(lanes) as pool:
        assert sum(pool.map(lane, [f"lane-{number}/HEAD" for number in range(lanes)])) == 200


def test_appends(store: Retrying, bucket: str) -> None:
    etag = store.put(bucket, "log", b"one\n", metadata={"last": "1"})
    added = store.append(bucket, "log", b"two\n", etag=etag, metadata={"last": "2"})
    with pytest.raises(protocol.PreconditionFailed):
        store.append(bucket, "log", b"three\n", etag=etag, metadata={"last": "3"})
    again = store.append(bucket, "log", b"four\n", etag=None, metadata={"last": "4"})
    found = store.get(bucket, "log", limit_bytes=100)
    assert (found.data, found.info.etag, found.info.metadata) == (b"one\ntwo\nfour\n", again, {"last": "4"})
    assert len({etag, added, again}) == 3


def test_appends_to_what_is_too_large_to_move(store: Retrying, bucket: str) -> None:
    content = os.urandom(6 * MIB)
    etag = store.put(bucket, "day/é +%.log", content, metadata={"last": "1"})
    added = store.append(bucket, "day/é +%.log", b"two\n", etag=etag, metadata={"last": "2"})
    with pytest.raises(protocol.PreconditionFailed):
        store.append(bucket, "day/é +%.log", b"three\n", etag=etag, metadata={"last": "3"})
    again = store.append(bucket, "day/é +%.log", b"four\n", etag=added, metadata={"last": "4"})
    found = store.get(bucket, "day/é +%.log", limit_bytes=7 * MIB)
    assert found.data == content + b"two\nfour\n"
    assert (found.info.etag, found.info.metadata) == (again, {"last": "4"})


def test_the_probe_of_conditional_put(store: Retrying, bucket: str) -> None:
    store.check_conditional_put(bucket, "probe")
    assert store.head(bucket, "probe") is not None
    store.check_conditional_put(bucket, "probe")


def test_a_bucket_made_twice_is_no_error(store: Retrying, bucket: str) -> None:
    store.put(bucket, "k", b"kept")
    store.ensure_bucket(bucket)
    assert store.get(bucket, "k", limit_bytes=4).data == b"kept"


def test_a_missing_bucket_is_named_and_never_passes_for_a_missing_object(store: Retrying, tmp_path: Path) -> None:
    missing = "no-such-bucket"
    (tmp_path / "file").write_bytes(b"x")
    with open(tmp_path / "file", "r+b") as file:
        attempts = [
            lambda: store.get(missing, "k", limit_bytes=1),
            lambda: store.get_to_file(missing, "k", file.fileno(), limit_bytes=1),
            lambda: store.head(missing, "k"),
            lambda: store.put(missing, "k", b"x"),
            lambda: store.put_file(missing, "k", file.fileno()),
            lambda: store.put_if(missing, "k", b"x", etag=None),
            lambda: store.append(missing, "k", b"x", etag=None, metadata={}),
            lambda: list(store.list(missing, "")),
            lambda: store.list_folders(missing, "a/"),
            lambda: store.check_conditional_put(missing, "k"),
        ]
        for attempt in attempts:
            with pytest.raises(protocol.Denied, match=f"there is no bucket {missing}; create"):
                attempt()
        # SeaweedFS looks for the object before the bucket; whoever then reads it again, as told, meets Denied.
        with pytest.raises((protocol.Denied, protocol.PreconditionFailed)):
            store.put_if(missing, "k", b"x", etag='"0123"')


def test_settings_and_stores_show_no_secret(store_settings: StoreSettings) -> None:
    opened = open_store(store_settings, deadline_s=1)
    for shown in (repr(store_settings), str(store_settings), opened.name):
        assert not store_settings.secret_key or store_settings.secret_key not in shown
        assert not store_settings.access_key or store_settings.access_key not in shown
