"""Asks a bot's query process over HTTP, once, on a connection of its own.

Made for the oldest and simplest of servers, each of which reads once, one connection at a time, and then answers: head and
body go out in one write, nothing is believed of the answer's head but its status and that it is chunked, and the answer ends
where the stream does. Connects only to ask: such a server would wait for ever on a connection that says nothing.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from the0 import canonical, names
from the0.answers import ANSWER_BYTES, Answer, AnswerTooLarge, NoAnswer, parsed
from the0.errors import ExitCode, Permanent, Transient, clip

__all__ = [
    "ANSWER_BYTES",
    "Answer",
    "AnswerTooLarge",
    "Asked",
    "NoAnswer",
    "NotListening",
    "TooLate",
    "ask",
    "begin",
    "request",
    "target",
]

ONE_READ_BYTES = 4000
"""What a server that reads once gets for sure; a larger question goes without its body."""
HEAD_BYTES = 64 << 10
QUIET_S = 0.3
"""How long a stream that stays open after a whole answer is read on: its length may be wrong."""

_PATH_SAFE = "/:,@-._~%?&=!$'()*+;"
_VALUE_SAFE = "/:,@-._~"


class NotListening(Transient):
    """Nobody took the connection, so the question was not asked."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=ExitCode.QUERY_FAILED)


class TooLate(Permanent):
    """No whole answer came in time."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=ExitCode.TIMED_OUT)


def target(path: str, params: Mapping[str, Any]) -> str:
    """The request's target: the path with its params as a query string. Space is %20; a `?…` already in the path stays;
    strings go as they are, other values as compact JSON text."""
    asked = quote(names.query_path(path), safe=_PATH_SAFE, errors="replace")
    if not params:
        return asked
    pairs = "&".join(f"{_escaped(name)}={_escaped(canonical.as_text(value))}" for name, value in params.items())
    return f"{asked}{'&' if '?' in asked else '?'}{pairs}"


def request(host: str, port: int, *, path: str, params: Mapping[str, Any]) -> bytes:
    """The whole question, to be written at once."""
    body = canonical.dumps(dict(params)).encode()
    asked = _head(host, port, target(path, params), len(body)) + body
    return asked if len(asked) <= ONE_READ_BYTES else _head(host, port, target(path, params), 0)


def ask(
    host: str,
    port: int,
    *,
    path: str,
    params: Mapping[str, Any],
    deadline: float,
    limit_bytes: int = ANSWER_BYTES,
) -> Answer:
    """Asks and waits until `deadline` (monotonic). Raises NotListening, NoAnswer, AnswerTooLarge, TooLate. Two questions at the
    same time are for the caller to avoid."""
    asked = begin(host, port, path=path, params=params)
    try:
        return asked.answer(deadline=deadline, limit_bytes=limit_bytes)
    finally:
        asked.close()


class Asked:
    """A question that is under way."""

    def __init__(self, connection: socket.socket, *, place: str, unsent: bytes, size_bytes: int) -> None:
        self._connection = connection
        self._place = place
        self._unsent = unsent
        self._size_bytes = size_bytes

    def answer(self, *, deadline: float, limit_bytes: int = ANSWER_BYTES) -> Answer:
        """Once. Raises as `ask` does."""
        if self._unsent:
            self._write(deadline)
        return _read(self._connection, deadline, limit_bytes, size_bytes=self._size_bytes)

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def _write(self, deadline: float) -> None:
        try:
            self._connection.settimeout(_left_s(deadline))
            self._connection.sendall(self._unsent)
        except TimeoutError as reason:
            raise TooLate(f"The query process at {self._place} did not take the question in time.") from reason
        except OSError as reason:
            if not _hung_up(reason):
                raise _nobody(self._place, reason) from reason


def begin(host: str, port: int, *, path: str, params: Mapping[str, Any]) -> Asked:
    """Asks as far as that goes without waiting; `host` is an address rather than a name, which would be looked up. Raises
    NotListening."""
    unsent = request(host, port, path=path, params=params)
    size_bytes = len(unsent)
    place = f"{host}:{port}"
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.connect((host, port))
        except BlockingIOError:
            pass  # on the same machine it is done by now all the same
        if connection.getsockname()[1] == port and _is_itself(connection):
            raise NotListening(f"No query process listens at {place}.")
        try:
            unsent = unsent[connection.send(unsent) :]
        except BlockingIOError:
            pass  # the connection takes its time
        return Asked(connection, place=place, unsent=unsent, size_bytes=size_bytes)
    except OSError as reason:
        if _hung_up(reason):
            return Asked(connection, place=place, unsent=b"", size_bytes=size_bytes)
        connection.close()
        raise _nobody(place, reason) from reason
    except NotListening:
        connection.close()
        raise


def _head(host: str, port: int, asked: str, length: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    return (
        f"POST {asked} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode("ascii")


def _escaped(text: str) -> str:
    return quote(text, safe=_VALUE_SAFE, errors="replace")


def _is_itself(connection: socket.socket) -> bool:
    """Where nobody listens on a port that outgoing connections are given, one may meet itself."""
    try:
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:
        return False  # not connected yet


def _hung_up(reason: OSError) -> bool:
    """It has read what it wanted and left: its answer may be there all the same."""
    return reason.errno in (errno.EPIPE, errno.ECONNRESET)


def _nobody(place: str, reason: OSError) -> NotListening:
    return NotListening(f"No query process listens at {place} ({clip(reason.strerror or str(reason))}).")


def _read(connection: socket.socket, deadline: float, limit_bytes: int, *, size_bytes: int) -> Answer:
    said = bytearray()
    while True:
        wait_s = _left_s(deadline)
        whole = _whole(said) if said[-64:].rstrip().endswith((b"}", b"0")) else None
        try:
            connection.settimeout(wait_s if whole is None else min(wait_s, QUIET_S))
            piece = connection.recv(1 << 18)
        except TimeoutError as reason:
            if whole is not None:
                return whole
            raise TooLate("The query process did not answer in time.") from reason
        except OSError as reason:
            if size_bytes > ONE_READ_BYTES:
                # Torn down means that it left a part of the question unread: what it says is about other params, and may be cut.
                raise NoAnswer(
                    f"The query process read only a part of the question, which has {size_bytes:,} bytes: ask with smaller params."
                ) from reason
            piece = b""  # the stream ends there, too
        if not piece:
            return whole if whole is not None else _answer(bytes(said))
        said += piece
        if len(said) > limit_bytes + HEAD_BYTES:
            raise _too_large(limit_bytes)


def _whole(said: bytearray) -> Answer | None:
    """The answer, if this is one by its own word: long enough and JSON to its end."""
    try:
        _, headers, body = _divided(bytes(said))
        length = headers.get("content-length", "")
        if "chunked" not in headers.get("transfer-encoding", "") and not (
            length.isdigit() and len(body) >= int(length)
        ):
            return None
        return _answer(bytes(said))
    except NoAnswer:
        return None


def _answer(said: bytes) -> Answer:
    if not said:
        raise NoAnswer("The query process hung up without an answer.")
    status, headers, body = _divided(said)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    return parsed(body, status=status)


def _divided(said: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body); interim answers are passed over. Lines may end in a bare LF."""
    while True:
        ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n", b"\n\r\n") if (at := said.find(mark)) >= 0]
        if not ends or min(ends)[0] > HEAD_BYTES:
            raise NoAnswer("The query process answered something that is no HTTP.")
        at, length = min(ends)
        first, *lines = said[:at].decode("latin-1").replace("\r", "").split("\n")
        words = first.split(None, 2)
        if len(words) < 2 or not words[0].upper().startswith("HTTP/") or not _is_status(words[1]):
            raise NoAnswer("The query process answered something that is no HTTP.")
        said = said[at + length :]
        if int(words[1]) >= 200:
            pairs = (line.partition(":") for line in lines)
            return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}, said


def _is_status(word: str) -> bool:
    return len(word) == 3 and word.isascii() and word.isdigit()


def _unchunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\n", at)
        try:
            size = int(body[at : max(end, at)].split(b";")[0].strip(), 16)
        except ValueError as reason:
            raise NoAnswer("The query process answered in chunks that end early.") from reason
        if size == 0:
            return b"".join(pieces)
        at = end + 1 + size
        if size < 0 or at > len(body):
            raise NoAnswer("The query process answered in chunks that end early.")
        pieces.append(body[end + 1 : at])
        at += len(body[at : at + 2]) - len(body[at : at + 2].lstrip(b"\r\n"))


def _too_large(limit_bytes: int) -> AnswerTooLarge:
    return AnswerTooLarge(f"The query process answered more than {limit_bytes >> 20} MiB: ask for less.")


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TooLate("The query process did not answer in time.")
    return left
