"""A bounded HTTP service: one thread collects requests from all connections, a few answer them.

Whoever connects and says little, slowly or nothing costs a descriptor and no thread: a request reaches a thread only once
it is whole. Requests are parsed by the standard library's `http.server`; sizes, times and counts are bounded here.
"""

from __future__ import annotations

import hmac
import io
import queue
import re
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

HEAD_BYTES: Final = 16 << 10
DRAIN_S: Final = 1.0
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$")
_CHUNKED: Final = re.compile(rb"(?im)^transfer-encoding[ \t]*:")
_EXPECTS: Final = re.compile(rb"(?im)^expect[ \t]*:[ \t]*100-continue[ \t]*\r?$")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one service."""

    body_bytes: int = 1 << 20
    connections: int = 1024
    """Open ones. When all are taken, the one that has been silent for longest makes room."""
    request_s: float = 10.0
    """From a request's first byte (or the connection) to its last."""
    idle_s: float = 30.0
    """Between two requests on one connection."""
    answer_s: float = 60.0
    """For the other side to take an answer."""
    concurrency: int = 128
    """Requests that are answered at the same time; others wait, at most as many again."""
    thread_idle_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """As sent, the query string included."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def bears(request: Request, token: str) -> bool:
    """Whether it carries that bearer token; takes as long whatever it carries."""
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode())


Answer = Callable[[Request], Reply]
Failed = Callable[[int, str], Reply]
"""Status and sentence to a reply in the service's own form."""


class Service:
    """Serves from `start` until `close`."""

    def __init__(
        self,
        *,
        name: str,
        host: str,
        port: int,
        answer: Answer,
        failed: Failed,
        quick: frozenset[str] = frozenset(),
        limits: Limits | None = None,
    ) -> None:
        """Binds; OSError says why it cannot. `port` 0: any free one. `answer` runs in a thread of ours and may take its time,
        except for the paths in `quick`, which have a thread of their own so that they are answered whatever else goes on."""
        self._name = name
        self._answer = answer
        self._failed = failed
        self._quick_paths = quick
        self._limits = limits or Limits()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._open: dict[socket.socket, _Connection] = {}
        """Those that are being read, the longest silent first."""
        self._returned: deque[_Connection] = deque()
        most, idle_s = self._limits.concurrency, self._limits.thread_idle_s
        self._workers = _Threads(f"{name}-answer", most, waiting=most, idle_s=idle_s, work=self._serve)
        self._quick = _Threads(f"{name}-quick", 2, waiting=self._limits.connections, idle_s=idle_s, work=self._serve)
        self._earliest = float("inf")
        """No connection is late before that."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._thread.start()

    def close(self, *, grace_s: float = 5.0) -> None:
        """Takes no more requests; those under way have `grace_s` to end. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        deadline = time.monotonic() + grace_s
        self._workers.close(deadline)
        self._quick.close(deadline)
        self._listener.close()
        self._wake_in.close()
        self._wake_out.close()
        self._selector.close()

    # The collecting thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_in:
                    self._drain_wakes()
                else:
                    self._read(self._open[key.fileobj])  # type: ignore[index]
            while self._returned:
                self._expect_next(self._returned.popleft())
            self._end_late()
        for connection in list(self._open.values()):
            self._drop(connection)

    def _wait_s(self) -> float | None:
        """None: only an event wakes us."""
        return max(0.0, self._earliest - time.monotonic()) if self._open else None

    def _accept(self) -> None:
        for _ in range(64):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors, or the other side is gone already
                if not self._open:
                    self._closing.wait(0.05)
                self._make_room()
                return
            if len(self._open) >= self._limits.connections:
                self._make_room()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._watch(_Connection(accepted, deadline=time.monotonic() + self._limits.request_s))

    def _make_room(self) -> None:
        if self._open:
            self._drop(next(iter(self._open.values())))

    def _watch(self, connection: _Connection) -> None:
        self._open[connection.socket] = connection
        self._earliest = min(self._earliest, connection.deadline)
        self._selector.register(connection.socket, selectors.EVENT_READ)

    def _unwatch(self, connection: _Connection) -> None:
        del self._open[connection.socket]
        self._selector.unregister(connection.socket)

    def _drop(self, connection: _Connection) -> None:
        self._unwatch(connection)
        connection.socket.close()

    def _drain_wakes(self) -> None:
        try:
            while self._wake_in.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _wake(self) -> None:
        try:
            self._wake_out.send(b"\0", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # it has been woken often enough

    def _read(self, connection: _Connection) -> None:
        try:
            piece = connection.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._drop(connection)
            return
        if connection.draining:
            return
        if not connection.buffer:
            connection.deadline = time.monotonic() + self._limits.request_s
            self._earliest = min(self._earliest, connection.deadline)
        connection.buffer += piece
        # The longest silent one comes first.
        self._open[connection.socket] = self._open.pop(connection.socket)
        self._look(connection)

    def _look(self, connection: _Connection) -> None:
        """Hands a whole request over, or a refusal."""
        state = connection.state(self._limits)
        if state is None:
            return
        self._unwatch(connection)
        first = bytes(connection.buffer[:256]).split(b"\r\n", 1)[0].split(b" ")
        path = first[1].split(b"?", 1)[0].decode("latin-1") if len(first) > 1 else ""
        threads = self._quick if path in self._quick_paths else self._workers
        if not threads.take(connection):
            connection.refusal = (HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests wait already: ask again later.")
            if not self._quick.take(connection):
                connection.socket.close()

    def _expect_next(self, connection: _Connection) -> None:
        connection.socket.setblocking(False)
        connection.deadline = time.monotonic() + (self._limits.request_s if connection.buffer else self._limits.idle_s)
        if len(self._open) >= self._limits.connections:
            self._make_room()
        self._watch(connection)
        if connection.buffer and not connection.draining:
            self._look(connection)

    def _end_late(self) -> None:
        now = time.monotonic()
        if now < self._earliest:
            return
        for connection in [each for each in self._open.values() if each.deadline <= now]:
            if connection.buffer and not connection.draining:
                connection.refusal = (HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive whole in time.")
                self._unwatch(connection)
                if not self._quick.take(connection):
                    connection.socket.close()
            else:
                self._drop(connection)
        self._earliest = min((each.deadline for each in self._open.values()), default=float("inf"))

    # The answering threads.

    def _serve(self, connection: _Connection) -> None:
        connection.socket.settimeout(self._limits.answer_s)
        try:
            _Exchange(connection, self._answer, self._failed)
        except OSError:
            connection.keep = False  # the other side is gone; there is nobody to tell
        if self._closing.is_set():
            connection.socket.close()
            return
        if not connection.keep:
            # What is still coming is read away for a moment: closing over it would reset the connection, and with it the answer.
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is gone: reading tells
            connection.draining = True
        self._returned.append(connection)
        self._wake()


class _Connection:
    __slots__ = ("_looked", "_whole", "buffer", "deadline", "draining", "keep", "refusal", "socket")

    def __init__(self, accepted: socket.socket, *, deadline: float) -> None:
        self.socket = accepted
        self.deadline = deadline
        """Monotonic."""
        self.buffer = bytearray()
        self.keep = False
        self.draining = False
        """It has had its last answer."""
        self.refusal: tuple[int, str] | None = None
        self._whole: int | None = None
        """Bytes of head and body, once the head has said so."""
        self._looked = 0

    def state(self, limits: Limits) -> bool | None:
        """True: a request is whole, or it is to be refused. None: more is to come."""
        if self._whole is None:
            end = self.buffer.find(_END, max(0, self._looked - len(_END)))
            self._looked = len(self.buffer)
            if end < 0 or end > HEAD_BYTES:
                if len(self.buffer) <= HEAD_BYTES:
                    return None
                return self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large.")
            head = bytes(self.buffer[: end + 2])
            lengths = set(_LENGTH.findall(head))
            if _CHUNKED.search(head):
                return self._refuse(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length.")
            if len(lengths) > 1 or not all(_DIGITS.fullmatch(length) for length in lengths):
                return self._refuse(HTTPStatus.BAD_REQUEST, "The Content-Length makes no sense.")
            body = int(lengths.pop()) if lengths else 0
            if body > limits.body_bytes:
                said = f"The body is larger than {limits.body_bytes} bytes."
                return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)
            self._whole = end + len(_END) + body
            if len(self.buffer) < self._whole and _EXPECTS.search(head):
                try:
                    self.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                except OSError:
                    pass  # reading will tell
        return True if len(self.buffer) >= self._whole else None

    def _refuse(self, status: HTTPStatus, sentence: str) -> bool:
        self.refusal = (status, sentence)
        return True

    def next_request(self) -> bytes:
        """Takes the whole request off the buffer."""
        assert self._whole is not None
        taken = bytes(self.buffer[: self._whole])
        del self.buffer[: self._whole]
        self._whole = None
        self._looked = 0
        return taken


class _Exchange(BaseHTTPRequestHandler):
    """One request, already read, and its answer."""

    protocol_version = "HTTP/1.1"
    server_version = "the0"
    sys_version = ""

    def __init__(self, connection: _Connection, answer: Answer, failed: Failed) -> None:
        self._connection = connection
        self._answer = answer
        self._failed = failed
        self.close_connection = True
        self.requestline = ""
        self.request_version = "HTTP/1.1"
        self.command = ""
        self.wfile = io.BytesIO()
        self._run()
        connection.socket.sendall(self.wfile.getbuffer())
        connection.keep = not self.close_connection

    def _run(self) -> None:
        if self._connection.refusal is not None:
            self._send(self._failed(*self._connection.refusal))
            return
        self.rfile = io.BytesIO(self._connection.next_request())
        self.raw_requestline = self.rfile.readline(HEAD_BYTES + 1)
        if not self.parse_request():
            return  # it has answered
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read())
        try:
            reply = self._answer(request)
        except Exception as reason:  # noqa: BLE001 - a bug of ours: the asker gets an answer, stderr the traceback
            sys.excepthook(type(reason), reason, reason.__traceback__)
            reply = self._failed(
                HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed at this: its log has the reason."
            )
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        self.request_version = self.protocol_version  # what could not be read still gets a whole answer
        self._send(self._failed(code, message or explain or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Whoever answers knows what is worth saying."""


class _Threads:
    """Up to `most` threads, made when they are needed and gone when they are not."""

    def __init__(
        self, name: str, most: int, *, waiting: int, idle_s: float, work: Callable[[_Connection], None]
    ) -> None:
        self._name = name
        self._most = most
        self._may_wait = waiting
        self._idle_s = idle_s
        self._work = work
        self._waiting: queue.SimpleQueue[_Connection | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        self._queued = 0
        self._closed = False

    def take(self, connection: _Connection) -> bool:
        """False: as many wait already as may."""
        with self._lock:
            unborn = self._most - len(self._threads)
            if self._closed or self._queued >= self._free + unborn + self._may_wait:
                return False
            self._queued += 1
            if self._queued > self._free and len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.add(thread)
                self._free += 1
                thread.start()
        self._waiting.put(connection)
        return True

    def close(self, deadline: float) -> None:
        """Monotonic. Threads that are not done by then end with the process."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                connection = self._waiting.get(timeout=self._idle_s)
            except queue.Empty:
                with self._lock:
                    if self._queued:
                        continue  # one is just being handed over
                    self._leave()
                    return
            if connection is None:
                with self._lock:
                    self._leave()
                return
            with self._lock:
                self._queued -= 1
                self._free -= 1
            try:
                self._work(connection)
            finally:
                with self._lock:
                    self._free += 1

    def _leave(self) -> None:
        self._free -= 1
        self._threads.discard(threading.current_thread())
