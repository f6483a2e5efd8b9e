"""Asking a query process: what goes over the wire, and servers as simple, old and broken as there are."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from the0 import asking
from the0.answers import Answer, AnswerTooLarge, NoAnswer, parsed

OK = b'{"status": "ok", "data": 1}'
Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """Takes one connection and hands it to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):  # the asker may have left
                serve(connection)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)
        assert not thread.is_alive()


def ask(port: int, *, path: str = "/x", within_s: float = 5.0, limit_bytes: int = 1 << 20, **params: Any) -> Answer:
    deadline = time.monotonic() + within_s
    return asking.ask("127.0.0.1", port, path=path, params=params, deadline=deadline, limit_bytes=limit_bytes)


def answering(*pieces: bytes, read: int = 4096, pause_s: float = 0.0) -> Serve:
    """Reads once, as the simplest servers do, and writes the pieces."""

    def serve(connection: socket.socket) -> None:
        if read:
            connection.recv(read)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)

    return serve


def test_one_write_with_head_and_body() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + OK)

    with server(serve) as port:
        assert ask(port, path="/seen", symbol="AAPL", size=5.0).value == {"status": "ok", "data": 1}
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /seen?symbol=AAPL&size=5 HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines
    assert "Connection: close" in lines
    assert f"Content-Length: {len(body)}" in lines
    assert json.loads(body) == {"symbol": "AAPL", "size": 5}


@pytest.mark.parametrize(
    ("path", "params", "target"),
    [
        ("seen", {}, "/seen"),
        ("/a b", {}, "/a%20b"),
        ("/seen?x=1", {"y": "2"}, "/seen?x=1&y=2"),
        ("/seen", {"q": "a b+c&d=e"}, "/seen?q=a%20b%2Bc%26d%3De"),
        ("/seen", {"at": "2024-01-01T10:00:00,x@y._~/z"}, "/seen?at=2024-01-01T10:00:00,x@y._~/z"),
        ("/seen", {"n": 5.0, "t": True, "l": [1, {"b": None}]}, "/seen?n=5&t=true&l=%5B1,%7B%22b%22:null%7D%5D"),
        ("/é", {"ü": "ß"}, "/%C3%A9?%C3%BC=%C3%9F"),
        ("/x\r\nHost: evil", {"a": "\r\n"}, "/x%0D%0AHost:%20evil?a=%0D%0A"),
        ("/half", {"\ud800": "\udfff"}, "/half?%3F=%3F"),
    ],
)
def test_target(path: str, params: dict[str, Any], target: str) -> None:
    assert asking.target(path, params) == target


def test_a_question_that_one_read_may_not_take_goes_without_its_body() -> None:
    short = asking.request("h", 1, path="/x", params={"a": "y" * 1800})
    assert short.endswith(b'"}')
    assert len(short) <= 4000
    long = asking.request("h", 1, path="/x", params={"a": "y" * 3000})
    assert long.endswith(b"Content-Length: 0\r\n\r\n")
    assert b"y" * 3000 in long


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "serve",
    [
        answering(b"HTTP/1.0 200 OK\n\n" + OK),
        answering(b"HTTP/1.1 200\nContent-Length: 27\n\r\n" + OK),
        answering(HEAD + b"Content-Length: 3\r\n\r\n", OK),
        answering(HEAD + b"Content-Length: 9999\r\n\r\n" + OK),
        answering(HEAD + b"Content-Length: many\r\n\r\n  \r\n" + OK + b"\r\n\n"),
        answering(HEAD + b"\r\n\xef\xbb\xbf" + OK),
        answering(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + OK[:5] + b"\r\n16;x=y\r\n" + OK[5:] + b"\r\n0\r\n\r\n"
        ),
        answering(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + OK),
        answering(*(bytes([byte]) for byte in HEAD + b"\r\n" + OK)),
        answering(HEAD + b"\r\n" + OK, read=0),
        answering(HEAD + b"\r\n" + OK, read=1),
    ],
    ids=[
        "bare-lf",
        "mixed-ends",
        "length-too-small",
        "length-too-large",
        "length-no-number",
        "byte-order-mark",
        "chunked",
        "continue",
        "byte-by-byte",
        "hangs-up-unread",
        "reads-one-byte",
    ],
)
def test_answers_of_simple_servers(serve: Serve) -> None:
    with server(serve) as port:
        answer = ask(port, a="y" * 500)
    assert answer.value == {"status": "ok", "data": 1}
    assert answer.text == OK.decode()
    assert answer.status == 200


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: %d\r\n\r\n" % len(OK), b"Content-Length: 5\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"],
)
def test_a_server_that_does_not_hang_up(head: bytes) -> None:
    body = b"1b\r\n" + OK + b"\r\n0\r\n\r\n" if b"chunked" in head else OK
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(HEAD + head + body)
        done.wait(10)

    with server(serve) as port:
        began = time.monotonic()
        assert ask(port, within_s=8).value == {"status": "ok", "data": 1}
        assert time.monotonic() - began < 4
        done.set()


def test_a_bots_own_error_is_an_answer() -> None:
    with server(answering(b'HTTP/1.1 500 Oh\n\n{"status": "error", "error": "no"}')) as port:
        answer = ask(port)
    assert (answer.status, answer.value["error"]) == (500, "no")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"", "without an answer"),
        (b"hello\n\n", "no HTTP"),
        (HEAD, "no HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n" + OK, "no HTTP"),
        (b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n" + OK, "no HTTP"),
        (HEAD + b"\r\n", "no JSON"),
        (HEAD + b"\r\n" + OK[:-1], "no JSON"),
        (HEAD + b"\r\n" + OK + b"x", "no JSON"),
        (HEAD + b'\r\n{"data": NaN}', "NaN"),
        (HEAD + b"\r\n[1]", "no object"),
        (HEAD + b"\r\n" + b"[" * 100_000, "no JSON"),
        (HEAD + b"\r\n\xff\xfe", "no JSON"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", "chunks"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}", "chunks"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}", "chunks"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", "chunks"),
    ],
)
def test_rubbish(said: bytes, word: str) -> None:
    with server(answering(said)) as port, pytest.raises(NoAnswer) as reason:
        ask(port)
    assert word in reason.value.sentence


def test_more_than_is_taken() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(HEAD + b'\r\n{"data": "')
        while True:
            connection.sendall(b"x" * 65536)

    with server(serve) as port, pytest.raises(AnswerTooLarge):
        ask(port, limit_bytes=1 << 20)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b'{"data": "' + b"[,{" * 1_000_000 + b'"}', True),
        (b'{"data": "' + b'\\",' * 1_000_000 + b'"}', True),
        (b'{"data": [' + b"10," * 900_000 + b"1]}", True),
        (b'{"data": [' + b"[]," * 900_000 + b"1]}", False),
        (b'{"data": ' + b"[" * 1_200_000, False),
    ],
    ids=["text", "escapes", "many", "too-many", "nested"],
)
def test_many_values(body: bytes, good: bool) -> None:
    """Few bytes may stand for much memory."""
    if good:
        assert parsed(body).text == body.decode()
    else:
        with pytest.raises(AnswerTooLarge):
            parsed(body)


@pytest.mark.parametrize("body", [b'{"data": "' + b'\\"' * 4_000_000, b'"' * 8_000_000, b"\\" * 8_000_000])
def test_rubbish_is_quickly_seen(body: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        parsed(body)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + b"\r\n" + OK[:9]])
def test_too_late(said: bytes) -> None:
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        done.wait(10)

    with server(serve) as port:
        began = time.monotonic()
        with pytest.raises(asking.TooLate):
            ask(port, within_s=0.3)
        assert time.monotonic() - began < 2
        done.set()


def test_a_drip_does_not_move_the_deadline() -> None:
    with server(answering(*[b"x"] * 100, pause_s=0.05)) as port:
        began = time.monotonic()
        with pytest.raises(asking.TooLate):
            ask(port, within_s=0.4)
        assert time.monotonic() - began < 2


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(asking.NotListening):
        ask(port)
