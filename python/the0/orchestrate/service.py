"""A bounded HTTP service: one thread collects requests from all connections, a few answer them.

Whoever connects and says little, slowly or nothing costs a descriptor and no thread: a request reaches a thread only once
it is whole. Sizes, times and counts are bounded here. A connection is watched for one event at a time, so that it belongs either
to the collecting thread or to the one that answers it, which gives it back without waking anybody.
"""

from __future__ import annotations

import hmac
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from the0.orchestrate import request_head
from the0.orchestrate.request_head import BadHead, Head
from the0.orchestrate.worker_threads import WorkerThreads

HEAD_BYTES: Final = 16 << 10
_END: Final = b"\r\n\r\n"
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


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
    return hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode())


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
        self._epoll = select.epoll()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._lock = threading.Lock()
        self._open: dict[int, _Connection] = {}
        """Those that are being read, by their descriptors, the longest silent first. Guarded by the lock, like `_earliest`."""
        self._earliest = float("inf")
        """No connection is late before that."""
        most, idle_s = self._limits.concurrency, self._limits.thread_idle_s
        self._workers = WorkerThreads(f"{name}-answer", most, waiting=most, idle_s=idle_s, work=self._serve)
        self._quick = WorkerThreads(
            f"{name}-quick", 2, waiting=self._limits.connections, idle_s=idle_s, work=self._serve
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_in, select.EPOLLIN)
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
        self._epoll.close()

    # The collecting thread.

    def _run(self) -> None:
        listener, wake = self._listener.fileno(), self._wake_in.fileno()
        while not self._closing.is_set():
            for fd, _ in self._epoll.poll(self._wait_s()):
                if fd == listener:
                    self._accept()
                elif fd == wake:
                    self._drain_wakes()
                elif (connection := self._open.get(fd)) is not None:
                    self._read(connection)
            self._end_late()
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for connection in left:
            connection.socket.close()

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
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(accepted)
            self._watch(connection, for_s=self._limits.request_s)
            self._epoll.register(accepted, _ONCE)

    def _make_room(self) -> None:
        with self._lock:
            silent = next(iter(self._open.values()), None)
        if silent is not None:
            self._drop(silent)

    def _watch(self, connection: _Connection, *, for_s: float) -> None:
        if len(self._open) >= self._limits.connections:
            self._make_room()
        with self._lock:
            connection.deadline = time.monotonic() + for_s
            self._open[connection.fd] = connection
            sooner = connection.deadline < self._earliest
            if sooner:
                self._earliest = connection.deadline
            alone = len(self._open) == 1
        if (sooner or alone) and threading.current_thread() is not self._thread:
            self._wake()  # it would sleep for too long

    def _unwatch(self, connection: _Connection) -> bool:
        """False: it is not watched any more, and somebody else has closed it."""
        with self._lock:
            mine = self._open.get(connection.fd) is connection  # the descriptor may be another one's by now
            if mine:
                del self._open[connection.fd]
            return mine

    def _drop(self, connection: _Connection) -> None:
        if self._unwatch(connection):
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
        except OSError:
            pass  # it has been woken often enough, or has ended

    def _read(self, connection: _Connection) -> None:
        try:
            piece = connection.socket.recv(1 << 16)
        except BlockingIOError:
            self._epoll.modify(connection.fd, _ONCE)
            return
        except OSError:
            piece = b""
        if not piece:
            self._drop(connection)
            return
        if not connection.draining:
            with self._lock:
                if self._open.pop(connection.fd, None) is None:
                    return
                if not connection.buffer:
                    connection.deadline = time.monotonic() + self._limits.request_s
                    self._earliest = min(self._earliest, connection.deadline)
                connection.buffer += piece
                # The longest silent one comes first.
                self._open[connection.fd] = connection
            if connection.state(self._limits):
                if self._unwatch(connection):
                    self._hand_over(connection)
                return
        self._epoll.modify(connection.fd, _ONCE)

    def _hand_over(self, connection: _Connection) -> None:
        """A whole request, or a refusal."""
        path = connection.head.path.split("?", 1)[0] if connection.head is not None else ""
        threads = self._quick if path in self._quick_paths else self._workers
        if not threads.take(connection):
            self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests wait already: ask again later.")

    def _refuse(self, connection: _Connection, status: HTTPStatus, sentence: str) -> None:
        connection.refusal = (status, sentence)
        if not self._quick.take(connection):
            connection.socket.close()

    def _end_late(self) -> None:
        now = time.monotonic()
        if now < self._earliest:
            return
        with self._lock:
            late = [each for each in self._open.values() if each.deadline <= now]
            for connection in late:
                del self._open[connection.fd]
            self._earliest = min((each.deadline for each in self._open.values()), default=float("inf"))
        for connection in late:
            if connection.buffer and not connection.draining:
                self._refuse(connection, HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive whole in time.")
            else:
                connection.socket.close()

    # The answering threads.

    def _serve(self, connection: _Connection) -> None:
        try:
            keep = self._exchange(connection)
        except OSError:
            connection.socket.close()  # the other side is gone; there is nobody to tell
            return
        if keep and connection.buffer and connection.state(self._limits):
            self._hand_over(connection)
        elif not self._closing.is_set() and (keep or self._is_to_drain(connection)):
            self._give_back(connection)
        else:
            connection.socket.close()

    def _exchange(self, connection: _Connection) -> bool:
        """Whether there may be another one."""
        head = connection.head
        if connection.refusal is not None:
            reply, keep = self._failed(*connection.refusal), False
        else:
            assert head is not None
            keep = head.keep
            request = Request(head.method, head.path, head.headers, connection.next_body())
            try:
                reply = self._answer(request)
            except Exception as reason:  # noqa: BLE001 - a bug of ours: the asker gets an answer, stderr the traceback
                sys.excepthook(type(reason), reason, reason.__traceback__)
                said = "The service failed at this: its log has the reason."
                reply = self._failed(HTTPStatus.INTERNAL_SERVER_ERROR, said)
        connection.write(_head(reply, keep=keep), reply.body, head=head, within_s=self._limits.answer_s)
        return keep

    def _is_to_drain(self, connection: _Connection) -> bool:
        """What is still coming is read away: closing over it would reset the connection, and with it the answer."""
        connection.draining = True
        if connection.refusal is None and not connection.buffer:
            try:
                return bool(connection.socket.recv(1 << 16))
            except BlockingIOError:
                return False  # the request was whole, and nothing came after it
            except OSError:
                return False
        return True

    def _give_back(self, connection: _Connection) -> None:
        try:
            if connection.draining:
                connection.socket.shutdown(socket.SHUT_WR)
            self._watch(connection, for_s=self._limits.request_s if connection.buffer else self._limits.idle_s)
            self._epoll.modify(connection.fd, _ONCE)
        except (OSError, ValueError):  # the other side is gone, or the service is closed
            self._drop(connection)
            connection.socket.close()


class _Connection:
    __slots__ = ("_looked", "_whole", "buffer", "deadline", "draining", "fd", "head", "refusal", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.fd = accepted.fileno()
        self.deadline = 0.0
        """Monotonic."""
        self.buffer = bytearray()
        self.head: Head | None = None
        """Of the request that is being read or answered, once it is whole."""
        self.draining = False
        """It has had its last answer."""
        self.refusal: tuple[int, str] | None = None
        self._whole: int | None = None
        """Bytes of head and body, once the head has said so."""
        self._looked = 0

    def state(self, limits: Limits) -> bool:
        """Whether a request is whole, or is to be refused; else more is to come."""
        if self._whole is None:
            try:
                self._look_for_head(limits)
            except BadHead as bad:
                self.refusal = (bad.status, bad.sentence)
                return True
        return self._whole is not None and len(self.buffer) >= self._whole

    def _look_for_head(self, limits: Limits) -> None:
        while self.buffer.startswith(b"\r\n"):
            del self.buffer[:2]  # some end a body with it
        end = self.buffer.find(_END, max(0, self._looked - len(_END)))
        self._looked = len(self.buffer)
        if max(end, self._looked if end < 0 else 0) > HEAD_BYTES:
            raise BadHead(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large.")
        if end < 0:
            return
        head = request_head.read(bytes(self.buffer[:end]))
        if head.length > limits.body_bytes:
            said = f"The body is larger than {limits.body_bytes} bytes."
            raise BadHead(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)
        self.head = head
        self._whole = end + len(_END) + head.length
        if len(self.buffer) < self._whole and head.newest and head.headers.get("expect", "").lower() == "100-continue":
            try:
                self.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                pass  # reading will tell

    def next_body(self) -> bytes:
        """Takes the whole request off the buffer."""
        assert self._whole is not None
        assert self.head is not None
        body = bytes(self.buffer[self._whole - self.head.length : self._whole])
        del self.buffer[: self._whole]
        self._whole = None
        self._looked = 0
        return body

    def write(self, first: bytes, body: bytes, *, head: Head | None, within_s: float) -> None:
        """OSError where the other side is gone or takes nothing for so long."""
        if head is not None and head.method == "HEAD":
            body = b""
        try:
            sent = self.socket.sendmsg((first, body))
        except BlockingIOError:
            sent = 0
        if sent == len(first) + len(body):
            return
        self.socket.settimeout(within_s)
        if sent < len(first):
            self.socket.sendall(first[sent:])
        self.socket.sendall(memoryview(body)[max(0, sent - len(first)) :])
        self.socket.setblocking(False)


def _head(reply: Reply, *, keep: bool) -> bytes:
    now = time.gmtime()
    date = (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year} {time.strftime('%T', now)} GMT"
    )
    more = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    return (
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\nServer: the0\r\nDate: {date}\r\n"
        f"Content-Type: {reply.content_type}\r\nContent-Length: {len(reply.body)}\r\n{more}"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    ).encode("latin-1")
