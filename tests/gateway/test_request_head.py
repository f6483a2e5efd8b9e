"""Heads of requests: what they say, and all that is refused because it could be read in two ways."""

from __future__ import annotations

import pytest

from the0.orchestrate.request_head import BadHead, Head, read


def test_what_a_head_says() -> None:
    head = read(b"POST /query?a=b HTTP/1.1\r\nHost: x:1\r\nX-Y:  two words \r\ncontent-LENGTH: 12\r\nEmpty:")
    assert head == Head(
        method="POST",
        path="/query?a=b",
        headers={"host": "x:1", "x-y": "two words", "content-length": "12", "empty": ""},
        length=12,
        newest=True,
        keep=True,
    )


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Upgrade, Close", False),
        (b"1.2", None, True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_who_wants_to_ask_again(version: bytes, connection: bytes | None, keep: bool) -> None:
    line = b"" if connection is None else b"\r\nConnection: " + connection
    assert read(b"GET / HTTP/" + version + line).keep is keep


def test_slashes_at_the_beginning_of_a_path_are_one() -> None:
    assert read(b"GET ///query HTTP/1.1").path == "/query"


def test_a_length_that_comes_twice_the_same_is_one() -> None:
    assert read(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5").length == 5


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"G\x01T / HTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.1\r\nno header", 400),
        (b"GET / HTTP/1.1\r\n: nameless", 400),
        (b"GET / HTTP/1.1\r\nName : space", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nA: b\nContent-Length: 5", 400),
        (b"GET / HTTP/1.1\r\nA: b\rContent-Length: 5", 400),
        (b"GET / HTTP/1.1\r\nA: b\n\rC: d", 400),
        (b"GET / HTTP/1.1\r\nA: \0", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5, 5", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +5", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: \xb2", 400),
        (b"GET / HTTP/1.1\r\nContent-Length:", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 411),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: identity", 411),
        (b"GET / HTTP/1.1" + b"\r\nA: b" * 101, 431),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadHead) as refused:
        read(head)
    assert refused.value.status == status
    assert len(refused.value.sentence) > 5
