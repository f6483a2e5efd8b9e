"""An HTTP proxy in front of a store that fails as a test tells it to.

`proxy.fail(lambda request: Answer(503))` looks at every request and says what becomes of it; the hook may also kill a
process just there, before the request reaches the store. Requests are recorded in `proxy.requests`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    """From 1, over all connections."""
    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The connection ends before the store hears of the request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the proxy's own; the store does not hear of the request."""

    status: int
    code: str = "SlowDown"


@dataclass(frozen=True, slots=True)
class DropReply:
    """The store carries the request out, and the client never learns of it."""


@dataclass(frozen=True, slots=True)
class LateReply:
    """The store carries the request out, and its reply is held back for so long, or until the client gives up."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CutReply:
    """The reply ends after so many bytes of its body."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class Delay:
    """The request is carried out after a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing ever comes back, until the client gives up or the proxy ends."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The request goes on without these headers (names in lower case)."""

    headers: tuple[str, ...]


Fate = Refuse | Answer | DropReply | LateReply | CutReply | Delay | Hang | Strip | None
Rule = Callable[[Request], Fate]


@dataclass(slots=True)
class Sent:
    """A request's body that reached the proxy whole, and how it ended for the client."""

    request: Request
    body: bytes
    status: int | None = None
    """What the client was told; None as long as it was told nothing."""


def _pass(_: Request) -> Fate:
    return None


class Proxy:
    """Listens on a port of its own as soon as it is made, until `close`. `endpoint` is what clients are given."""

    def __init__(self, target: str, *, bytes_per_s: float | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.bytes_per_s = bytes_per_s
        """Of each connection, in each direction."""
        self.requests: list[Request] = []
        self.bytes_in = 0
        """Bodies that clients sent, and below those that the store sent."""
        self.bytes_out = 0
        self.keep: Callable[[Request], bool] = lambda _: False
        """Which requests are kept in `sent`, with their bodies."""
        self.sent: list[Sent] = []
        self._rule: Rule = _pass
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port: int = self._listener.getsockname()[1]
        self._serve()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def fail(self, rule: Rule) -> None:
        """Replaces the rule."""
        self._rule = rule

    def heal(self) -> None:
        self._rule = _pass

    def reset(self) -> None:
        """Forgets what was counted."""
        with self._lock:
            self.requests = []
            self.bytes_in = self.bytes_out = 0

    def down(self) -> None:
        """Connections are refused and open ones cut, until `up`."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def up(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._serve()

    def close(self) -> None:
        self._closed.set()
        self.down()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, reason: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._converse, args=(client,), name="proxy connection", daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with self._kept(client), suppress(OSError, EOFError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._kept(socket.create_connection(self._target, timeout=30)) as store:
                store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                from_client, from_store = _Stream(client), _Stream(store)
                while self._exchange(client, from_client, store, from_store):
                    pass

    def _exchange(self, client: socket.socket, from_client: _Stream, store: socket.socket, from_store: _Stream) -> bool:
        """One request and its reply; False where the connection ends with it."""
        first, headers = from_client.head()
        method, path, _ = first.split(" ", 2)
        with self._lock:
            request = Request(len(self.requests) + 1, method, path, headers)
            self.requests.append(request)
        fate = self._rule(request)
        if isinstance(fate, Refuse):
            return False
        if isinstance(fate, Hang):
            self._closed.wait()
            return False
        if headers.get("expect", "").lower() == "100-continue":
            # What the store says to it is passed over below; without an answer a client waits for a while before it sends.
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(fate, Answer):
            for _ in from_client.body(headers):
                pass
            body = f"<Error><Code>{fate.code}</Code><Message>by the proxy</Message></Error>".encode()
            head = f"HTTP/1.1 {fate.status} By the proxy\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            client.sendall(head if method == "HEAD" else head + body)
            return True
        if isinstance(fate, Delay):
            self._closed.wait(fate.seconds)
        dropped = fate.headers if isinstance(fate, Strip) else ()
        sent = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name not in dropped)
        store.sendall(f"{first}\r\n{sent}\r\n".encode("latin-1"))
        kept: Sent | None = None
        pieces = self._paced(from_client.body(headers))
        if self.keep(request):
            kept = Sent(request, b"".join(pieces))
            with self._lock:
                self.sent.append(kept)
            pieces = iter([kept.body])
        for piece in pieces:
            self.bytes_in += len(piece)
            store.sendall(piece)
        status_line, answered = from_store.head()
        status = int(status_line.split(" ", 2)[1])
        while status == 100:
            status_line, answered = from_store.head()
            status = int(status_line.split(" ", 2)[1])
        has_body = method != "HEAD" and status not in (204, 304)
        body_pieces = from_store.body(answered, to_the_end=True) if has_body else iter(())
        if isinstance(fate, DropReply):
            for _ in body_pieces:
                pass
            return False
        if isinstance(fate, LateReply):
            self._closed.wait(fate.seconds)
        if kept is not None:
            kept.status = status
        given = "".join(f"{name}: {value}\r\n" for name, value in answered.items())
        client.sendall(f"{status_line}\r\n{given}\r\n".encode("latin-1"))
        left = fate.after_bytes if isinstance(fate, CutReply) else None
        for piece in self._paced(body_pieces):
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            self.bytes_out += len(piece)
            client.sendall(piece)
            if left == 0:
                return False
        return answered.get("connection", "").lower() != "close" and headers.get("connection", "").lower() != "close"

    def _paced(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self.bytes_per_s:
                time.sleep(len(piece) / self.bytes_per_s)
            yield piece

    @contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[socket.socket]:
        with self._lock:
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Stream:
    """Heads and bodies off a socket, one after the other. EOFError where it ends before."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def head(self) -> tuple[str, dict[str, str]]:
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._receive()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return first, headers

    def body(self, headers: dict[str, str], *, to_the_end: bool = False) -> Iterator[bytes]:
        """As it is on the wire: chunked ones with their lengths."""
        if "chunked" in headers.get("transfer-encoding", ""):
            yield from self._chunks()
            return
        length = headers.get("content-length")
        if length is None and to_the_end:
            with suppress(EOFError):
                while True:
                    yield self._take(_CHUNK_BYTES)
        left = int(length or 0)
        while left:
            piece = self._take(min(left, _CHUNK_BYTES))
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._rest:
                self._rest += self._receive()
            line, _, self._rest = self._rest.partition(b"\r\n")
            yield line + b"\r\n"
            left = int(line.split(b";")[0], 16) + 2
            last = left == 2
            while left:
                piece = self._take(min(left, _CHUNK_BYTES))
                left -= len(piece)
                yield piece
            if last:
                return

    def _take(self, most: int) -> bytes:
        data = self._rest or self._receive()
        piece, self._rest = data[:most], data[most:]
        return piece

    def _receive(self) -> bytes:
        data = self._connection.recv(_CHUNK_BYTES)
        if not data:
            raise EOFError
        return data
