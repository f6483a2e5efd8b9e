"""What is repeated, how long, and what a repeat may meet: against MinIO behind a proxy that fails as told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rig.buckets import Buckets
from rig.minio_server import Running
from rig.proxy import Answer, CutReply, DropReply, Fate, Proxy, Refuse, Request
from the0.objects import store as protocol
from the0.objects.folder import Folder
from the0.objects.retry import Retrying
from the0.objects.s3 import S3
from the0.objects.store import ObjectInfo


@pytest.fixture
def direct(minio_server: Running) -> S3:
    return S3(minio_server.settings)


@pytest.fixture
def bucket(direct: S3, buckets: Buckets) -> str:
    return buckets.make(direct)


@pytest.fixture
def proxy(minio_server: Running) -> Iterator[Proxy]:
    with Proxy(minio_server.settings.endpoint) as found:
        yield found


@pytest.fixture
def behind(minio_server: Running, proxy: Proxy) -> S3:
    return S3(replace(minio_server.settings, endpoint=proxy.endpoint))


@pytest.fixture
def store(behind: S3) -> Retrying:
    return Retrying(behind, deadline_s=10, first_pause_s=0.01)


class Failing:
    """A rule: the first `times` requests meet that fate."""

    def __init__(self, fate: Fate, times: int) -> None:
        self._fate = fate
        self._left = times

    def __call__(self, request: Request) -> Fate:
        del request
        self._left -= 1
        return self._fate if self._left >= 0 else None


@pytest.mark.parametrize(
    "fate", [Answer(503), Answer(500, "InternalError"), Answer(429), Refuse(), DropReply()], ids=repr
)
def test_every_call_is_repeated(fate: Fate, store: Retrying, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    def failing_twice() -> None:
        proxy.fail(Failing(fate, 2))
        proxy.reset()

    (tmp_path / "file").write_bytes(b"from a file")
    failing_twice()
    store.put(bucket, "k", b"bytes")
    assert len(proxy.requests) == 3
    failing_twice()
    with open(tmp_path / "file", "r+b") as file:
        store.put_file(bucket, "f", file.fileno())
        failing_twice()
        file.seek(5)
        store.get_to_file(bucket, "k", file.fileno(), limit_bytes=5)
    assert (tmp_path / "file").read_bytes() == b"from bytese"
    failing_twice()
    assert store.get(bucket, "k", limit_bytes=5).data == b"bytes"
    failing_twice()
    assert store.head(bucket, "k") is not None
    failing_twice()
    assert [info.key for info in store.list(bucket, "")] == ["f", "k"]
    failing_twice()
    assert store.list_folders(bucket, "") == []
    failing_twice()
    store.delete(bucket, "k")
    failing_twice()
    assert store.head(bucket, "k") is None
    failing_twice()
    store.ensure_bucket(bucket)
    failing_twice()
    store.check_conditional_put(bucket, "probe")


def test_a_refused_connection_is_tried_until_it_is_there(store: Retrying, proxy: Proxy, bucket: str) -> None:
    proxy.down()
    back = threading.Timer(0.4, proxy.up)
    back.start()
    began = time.monotonic()
    store.put(bucket, "k", b"bytes")
    assert time.monotonic() - began >= 0.35
    back.join()


def test_a_conditional_put_may_meet_its_own_former_attempt(
    store: Retrying, proxy: Proxy, direct: S3, bucket: str
) -> None:
    proxy.fail(Failing(DropReply(), 1))
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "HEAD", b"nonce 1", etag=None)
    found = direct.get(bucket, "HEAD", limit_bytes=100)
    assert found.data == b"nonce 1"
    proxy.fail(Failing(Refuse(), 1))
    etag = store.put_if(bucket, "HEAD", b"nonce 2", etag=found.info.etag)
    assert direct.get(bucket, "HEAD", limit_bytes=100).info.etag == etag


@pytest.mark.parametrize("size", [10, 6 << 20])
def test_a_repeated_append_never_adds_twice(size: int, store: Retrying, proxy: Proxy, direct: S3, bucket: str) -> None:
    direct.put(bucket, "log", bytes(size))

    def last(request: Request) -> Fate:
        """The request that makes the new object; the last one of several where the store composes."""
        if request.method == "POST" and "uploads" not in request.path:
            return DropReply()
        return DropReply() if request.method == "PUT" and "partNumber" not in request.path else None

    once = Failing(None, 0)
    dropped = threading.Event()

    def rule(request: Request) -> Fate:
        fate = None if dropped.is_set() else last(request)
        if fate is not None:
            dropped.set()
        return fate or once(request)

    proxy.fail(rule)
    with pytest.raises(protocol.PreconditionFailed):
        store.append(bucket, "log", b"line\n", etag=None, metadata={"last": "1"})
    assert dropped.is_set()
    found = direct.get(bucket, "log", limit_bytes=size + 100)
    assert (found.data, found.info.metadata) == (bytes(size) + b"line\n", {"last": "1"})


def test_a_reply_cut_in_a_file_is_taken_back(
    store: Retrying, proxy: Proxy, direct: S3, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(3 << 20)
    direct.put(bucket, "k", content)
    proxy.fail(Failing(CutReply(2 << 20), 2))
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before")
        file.flush()
        info = store.get_to_file(bucket, "k", file.fileno(), limit_bytes=4 << 20)
    assert info.size == len(content)
    assert (tmp_path / "file").read_bytes() == b"before" + content
    assert len(proxy.requests) == 3


def test_what_is_permanent_is_not_repeated(store: Retrying, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Answer(403, "AccessDenied"))
    with pytest.raises(protocol.Denied):
        store.put(bucket, "k", b"")
    with pytest.raises(protocol.Denied):
        list(store.list(bucket, ""))
    proxy.fail(lambda _: Answer(412, "PreconditionFailed"))
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "k", b"", etag=None)
    assert len(proxy.requests) == 3


def test_the_deadline_holds(behind: S3, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Answer(503))
    for deadline_s in (0.0, 0.7):
        proxy.reset()
        began = time.monotonic()
        with pytest.raises(protocol.Unavailable, match="status 503 SlowDown"):
            Retrying(behind, deadline_s=deadline_s, first_pause_s=0.05).put(bucket, "k", b"")
        assert time.monotonic() - began < deadline_s + 0.5
        assert (len(proxy.requests) == 1) == (deadline_s == 0)


def test_another_deadline_for_the_same_store(behind: S3, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Answer(503))
    long = Retrying(behind, deadline_s=1000)
    began = time.monotonic()
    with pytest.raises(protocol.Unavailable):
        long.within(deadline_s=0.1).put(bucket, "k", b"")
    assert time.monotonic() - began < 2


def test_a_stop_ends_a_pause_at_once_and_allows_one_attempt(behind: S3, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Answer(503))
    stop = threading.Event()
    store = Retrying(behind, deadline_s=1000, stop=stop, first_pause_s=100, longest_pause_s=100)
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(protocol.Unavailable):
        store.put(bucket, "k", b"")
    assert time.monotonic() - began < 5
    timer.join()
    proxy.reset()
    with pytest.raises(protocol.Unavailable):
        store.put(bucket, "k", b"")
    assert len(proxy.requests) == 1
    proxy.heal()
    assert store.put(bucket, "k", b"a final sync")


class _Pauses(threading.Event):
    """Notes how long it would have been waited for, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.append(timeout)
        return len(self.asked) >= 400


def test_pauses_are_random_below_a_bound_that_doubles(behind: S3, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Answer(503))
    pauses = _Pauses()
    with pytest.raises(protocol.Unavailable):
        Retrying(behind, deadline_s=1000, stop=pauses, first_pause_s=0.1, longest_pause_s=2.0).head(bucket, "k")
    bounds = [min(0.1 * 2**number, 2.0) for number in range(400)]
    assert all(0 <= pause <= bound for pause, bound in zip(pauses.asked, bounds, strict=True))
    late = sorted(pauses.asked[10:])
    assert late[len(late) // 10] < 0.5
    assert late[-len(late) // 10] > 1.5


class _Halting(Folder):
    """Breaks each listing off after three keys."""

    listings = 0

    def list(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        self.listings += 1
        for number, info in enumerate(super().list(bucket, prefix, after=after)):
            if number == 3:
                raise protocol.Unavailable("broken off")
            yield info


def test_a_listing_goes_on_after_the_last_key(tmp_path: Path) -> None:
    folder = _Halting(str(tmp_path))
    folder.ensure_bucket("bucket")
    for number in range(10):
        (tmp_path / "bucket" / str(number)).touch()
    listed = Retrying(folder, deadline_s=10, first_pause_s=0.001).list("bucket", "")
    assert [info.key for info in listed] == [str(number) for number in range(10)]
    assert folder.listings == 4
