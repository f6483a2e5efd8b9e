"""Odd keys are the same key for every client, or refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from rig.minio_server import Running
from the0.objects import admin
from the0.objects import store as protocol
from the0.objects.keys import check_bucket, check_key, check_prefix, folded, listing_start
from the0.objects.retry import Retrying

ODD = [
    "a b",
    " leading and trailing ",
    "a%20b",
    "%",
    "%2F/%",
    "a+b",
    "é/ü",
    "日本/語",
    "😀",
    "~0123/HEAD",
    "q?x=1&y=2",
    "hash#hash",
    "[br]{ace}(paren)",
    "*",
    "a\"b'c`d",
    "<a>&amp;",
    "=eq;,:@$!|^",
    "dot.",
    "dots./x",
    "..hidden",
    ".../...",
    "\u0085\u00a0\u200b",
    "e\u0301 is not \u00e9",
    "/".join(["x" * 199] * 5),
]
WRONG = [
    "",
    "/",
    "/leading",
    "trailing/",
    "two//slashes",
    ".",
    "./a",
    "a/.",
    "a/../b",
    "tab\tin",
    "line\nin",
    "nul\0in",
    "del\x7fin",
    "\ud800",
    "\uffff",
    "x" * 1025,
    "é" * 513,
]


def test_odd_keys_come_back_as_they_are(store: Retrying, bucket: str) -> None:
    for number, key in enumerate(ODD):
        store.put_if(bucket, key, str(number).encode(), etag=None)
    assert [info.key for info in store.list(bucket, "")] == sorted(ODD)
    for number, key in enumerate(ODD):
        found = store.get(bucket, key, limit_bytes=2)
        assert (found.info.key, found.data) == (key, str(number).encode())
        folder = key.rpartition("/")[0]
        if folder:
            assert key in [info.key for info in store.list(bucket, f"{folder}/")]
            assert f"{key.split('/')[0]}/" in store.list_folders(bucket, "")
    for key in ODD:
        store.delete(bucket, key)
    assert list(store.list(bucket, "")) == []


@pytest.mark.parametrize("kind", ["minio", "seaweed"])
def test_odd_keys_are_the_same_for_another_client(kind: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(f"{kind}_server")
    from the0.objects.s3 import S3

    ours, theirs = S3(running.settings), admin.connect(running.settings)
    bucket = f"odd-{id(ours):x}"
    ours.ensure_bucket(bucket)
    for key in ODD:
        ours.put(bucket, key, key.encode(), metadata={"name": "value"})
        reply = theirs.get_object(bucket, key)
        assert reply.data == key.encode()
        assert reply.headers["x-amz-meta-name"] == "value"
        reply.close()
    assert {found.object_name for found in theirs.list_objects(bucket, recursive=True)} == set(ODD)
    for key in ODD:
        theirs.put_object(bucket, key, io.BytesIO(b"theirs"), 6, metadata={"Name": "other"})
        found = ours.get(bucket, key, limit_bytes=6)
        assert (found.data, found.info.metadata) == (b"theirs", {"name": "other"})


@pytest.mark.parametrize("key", WRONG, ids=ascii)
def test_keys_that_some_store_would_alter_are_refused_by_name(key: str) -> None:
    with pytest.raises(protocol.Refused, match=r"The object key .* choose another key\.$"):
        check_key(key)


def test_every_operation_refuses_them(store: Retrying, bucket: str) -> None:
    refused: list[Callable[[], object]] = [
        lambda: store.get(bucket, "a//b", limit_bytes=1),
        lambda: store.get_to_file(bucket, "/a", 0, limit_bytes=1),
        lambda: store.head(bucket, "a/"),
        lambda: store.put(bucket, "a/../b", b""),
        lambda: store.put_file(bucket, "..", 0),
        lambda: store.put_if(bucket, "a\n", b"", etag=None),
        lambda: store.delete(bucket, ""),
        lambda: store.append(bucket, "./a", b"", etag=None, metadata={}),
        lambda: list(store.list(bucket, "a//")),
        lambda: list(store.list(bucket, "../")),
        lambda: store.list_folders(bucket, "a"),
        lambda: store.put("Bucket", "a", b""),
        lambda: store.put("a/b", "a", b""),
        lambda: store.put(bucket, "a", b"", metadata={"name": ""}),
        lambda: store.put_if(bucket, "a", b"", etag=None, metadata={"näme": "x"}),
    ]
    for attempt in refused:
        with pytest.raises(protocol.Refused):
            attempt()
    assert list(store.list(bucket, "")) == []


@pytest.mark.parametrize("bucket", ["", "ab", "a_b", "UPPER", "-ab", "a..b", "x" * 64, ".the0-meta", "a/b"])
def test_bucket_names(bucket: str) -> None:
    with pytest.raises(protocol.Refused, match="bucket name"):
        check_bucket(bucket)


def test_prefixes() -> None:
    for prefix in ("", "a", "a/", "a/.", "a/b"):
        check_prefix(prefix)
    for prefix in ("/", "a//", "//", "../", "a\n"):
        with pytest.raises(protocol.Refused):
            check_prefix(prefix)


def test_metadata_is_folded_or_refused() -> None:
    assert folded(None) == {}
    assert folded({"The0-Name": "a b", "x_1": "~"}) == {"the0-name": "a b", "x_1": "~"}
    wrong = [
        {"a": ""},
        {"a": " b"},
        {"a": "b "},
        {"a": "é"},
        {"a": "b\n"},
        {"a b": "c"},
        {"": "c"},
        {"A": "1", "a": "2"},
        {"a": "x" * 2048},
    ]
    for metadata in wrong:
        with pytest.raises(protocol.Refused, match="etadata"):
            folded(metadata)


@pytest.mark.parametrize(
    ("prefix", "after", "start"),
    [
        ("", None, None),
        ("p/", None, None),
        ("p/ab", None, "p/a"),
        ("p/a", None, None),
        ("p/", "o", None),
        ("p/", "p/0012-digest", "p/001"),
        ("p/", "p/0012/x/-", "p/001"),
        ("p/", "p/a", None),
        ("p/", "p/a/b", None),
        ("p/", "p/a/bc", "p/a/b"),
        ("", "a/-", None),
        ("", "ab/-", "a"),
    ],
)
def test_where_a_listing_begins(prefix: str, after: str | None, start: str | None) -> None:
    assert listing_start(prefix, after) == start
