"""The HTTP service by itself: what arrives late, large, slowly, in thousands or not at all."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from rig.waiting import eventually
from the0.orchestrate.service import Limits, Reply, Request, Service

LIMITS = Limits(body_bytes=1000, connections=400, request_s=1.0, idle_s=2.0, answer_s=5.0, concurrency=4)


class Told:
    """What the service under test answers, and what it waits for."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.at_once = 0
        self.most = 0
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        if request.path == "/bug":
            raise RuntimeError("a bug")
        if request.path == "/slow":
            with self._lock:
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            assert self.go_on.wait(20)
            with self._lock:
                self.at_once -= 1
        told = {
            "method": request.method,
            "path": request.path,
            "body": request.body.decode(),
            "x": request.headers.get("x-y"),
        }
        return Reply(200, json.dumps(told).encode())


def failed(status: int, sentence: str) -> Reply:
    return Reply(status, json.dumps({"error": sentence}).encode())


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def service(told: Told) -> Iterator[Service]:
    made = Service(
        name="tested",
        host="127.0.0.1",
        port=0,
        answer=told.answer,
        failed=failed,
        quick=frozenset(["/health"]),
        limits=LIMITS,
    )
    made.start()
    yield made
    told.go_on.set()
    made.close()


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=15)


def to_the_end(connection: socket.socket) -> bytes:
    said = bytearray()
    while piece := connection.recv(1 << 20):
        said += piece
    return bytes(said)


def ask(service: Service, path: str = "/", body: bytes = b"") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=15)
    connection.request("POST", path, body, {"X-Y": "z"})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


def test_a_request_is_answered(service: Service) -> None:
    assert ask(service, "/a?b=c", b"hello") == (200, {"method": "POST", "path": "/a?b=c", "body": "hello", "x": "z"})


def test_one_connection_serves_many_and_whole_ones_may_come_at_once(service: Service) -> None:
    with connected(service) as connection:
        for n in range(3):
            connection.sendall(f"GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert f'"path": "/{n}"'.encode() in connection.recv(65536)
        connection.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET /q HTTP/1.1\r\nConnection: close\r\n\r\n")
        said = to_the_end(connection)
    assert said.count(b'"path": "/p"') == 2
    assert said.count(b'"path": "/q"') == 1


def test_a_request_may_come_byte_by_byte(service: Service) -> None:
    with connected(service) as connection:
        for byte in b"POST /slowly HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab":
            connection.sendall(bytes([byte]))
        assert b'"body": "ab"' in to_the_end(connection)


def test_the_other_side_is_told_to_send_a_body_that_it_waits_with(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert b'"body": "ab"' in to_the_end(connection)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(3000)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(150)) + b"\r\n", 431),
        (b"GET /" + b"x" * 70000, 431),
        (b"\x16\x03\x01 nothing of HTTP\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nunfinished", 408),
        (b"GET /bug HTTP/1.1\r\nConnection: close\r\n\r\n", 500),
    ],
)
def test_what_cannot_be_answered_gets_a_status_and_a_sentence(service: Service, sent: bytes, status: int) -> None:
    with connected(service) as connection:
        connection.sendall(sent)
        said = to_the_end(connection)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert len(json.loads(body)["error"]) > 5


def test_a_connection_that_says_nothing_is_hung_up(service: Service) -> None:
    with connected(service) as connection:
        assert to_the_end(connection) == b""


def test_no_more_than_the_stated_number_is_answered_at_once_and_health_waits_for_none(
    service: Service, told: Told
) -> None:
    threads = [threading.Thread(target=ask, args=(service, "/slow")) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while told.at_once < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert ask(service, "/health")[0] == 200
    told.go_on.set()
    for thread in threads:
        thread.join()
    assert told.most == 4


def test_when_too_many_wait_more_are_refused(service: Service, told: Told) -> None:
    waiting = [connected(service) for _ in range(40)]
    for connection in waiting:
        connection.sendall(b"GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n")
    # Four are answered, as many wait.
    for connection in waiting[8:]:
        assert connection.recv(65536).split()[1] == b"503"
    told.go_on.set()
    assert {to_the_end(connection).split()[1] for connection in waiting[:8]} == {b"200"}
    for connection in waiting:
        connection.close()


def test_ten_thousand_silent_connections_keep_nobody_out(service: Service) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard != resource.RLIM_INFINITY and hard < wanted + 2000:
        wanted = hard - 2000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 1500), hard))
    silent: list[socket.socket] = []
    try:
        for n in range(wanted):
            silent.append(connected(service))
            if n % 1000 == 0:
                assert ask(service, "/still")[0] == 200
        assert ask(service, "/still")[0] == 200
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_heads_sent_one_line_at_a_time_by_many_keep_nobody_out(service: Service) -> None:
    slow = [connected(service) for _ in range(300)]
    for _ in range(3):
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"X: y\r\n")
        assert ask(service, "/still")[0] == 200
    said = [to_the_end(connection).split()[1] for connection in slow]
    assert set(said) <= {b"408", b"503"}
    for connection in slow:
        connection.close()


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    large = Reply(200, b"x" * (64 << 20))
    limits = Limits(answer_s=1.0, concurrency=1)
    service = Service(name="large", host="127.0.0.1", port=0, answer=lambda _: large, failed=failed, limits=limits)
    service.start()
    try:
        with connected(service) as deaf:
            deaf.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with connected(service) as other:
                other.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                assert len(to_the_end(other)) > 64 << 20
    finally:
        service.close()


def test_closing_ends_what_is_under_way_and_frees_the_port(service: Service, told: Told) -> None:
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask(service, "/slow")[0]))
    thread.start()
    deadline = time.monotonic() + 10
    while not told.at_once and time.monotonic() < deadline:
        time.sleep(0.005)
    closing = threading.Thread(target=lambda: service.close(grace_s=10))
    port = service.port
    closing.start()
    told.go_on.set()
    closing.join()
    thread.join()
    assert answers == [200]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_one_that_says_nothing_after_its_answer_is_hung_up_and_one_that_goes_on_is_answered(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive\r\n" in connection.recv(65536)
        connection.sendall(b"\r\nHEAD /2 HTTP/1.1\r\n\r\n")
        said = connection.recv(65536)
        assert said.endswith(b"\r\n\r\n")
        assert b"Content-Length: 0" not in said
        assert to_the_end(connection) == b""


def test_an_answer_is_whole_although_more_came_than_was_asked(service: Service) -> None:
    for more in (b"\r\n", b"x" * 100_000):
        with connected(service) as connection:
            connection.sendall(b"POST /1 HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\na" + more)
            assert to_the_end(connection).count(b'"body": "a"') == 1


def test_one_that_leaves_before_its_answer_takes_nothing_with_it(service: Service, told: Told) -> None:
    def is_at(count: int) -> bool:
        return told.at_once == count

    for n in range(4):
        with connected(service) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets when closed
            connection.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            eventually(partial(is_at, n + 1), "it is being answered", within_s=60)
    told.go_on.set()
    assert ask(service, "/still")[0] == 200
