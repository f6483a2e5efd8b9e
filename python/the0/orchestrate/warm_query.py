"""A bot's query process that is kept after its answer, over one generation of its stored state: `runtime execute --serve-stored`.

Used by one thread at a time, but for `let_go`. It ends when we do, however we do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

from the0 import asking, canonical, files, names
from the0.documents import Bot
from the0.errors import ExitCode, Fatal
from the0.orchestrate import process_query
from the0.orchestrate.query_place import QueryPlaces
from the0.ports import free_port

LISTENING_S: Final = 10.0
"""A process that does not listen by then is taken for one that cannot serve."""
CONFIRMED_S: Final = 1.0
"""How long what watches over the process may take to say that it is still the same."""
ENDING_S: Final = 3.0
"""How long it may take to end all and to throw its state away, before it is killed."""
_AGAIN_S: Final = 0.005
_LINE_BYTES: Final = 64 << 10

Standing = Literal["good", "changed", "gone"]


class CannotServe(Exception):
    """Its program ended before it listened, or does not."""


class WarmQuery:
    def __init__(self, bot: Bot, *, places: QueryPlaces) -> None:
        """Starts it. Raises Fault."""
        self._places = places
        self._port = free_port()
        self._place = places.make(bot, {names.THE0_QUERY_PORT: str(self._port)})
        self._said = places.folders(bot).said
        try:
            self._control, theirs = _socketpair()
            try:
                self.child = self._begin(theirs)
            except BaseException:
                self._control.close()
                raise
            finally:
                theirs.close()
        except BaseException:
            places.clear(self._place)
            raise
        self._listens = False

    def _begin(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        try:
            said_fd = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as reason:
            raise files.disk_fault(reason, "preparing a query") from reason
        try:
            begun = process_query.begin(
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=said_fd, flags=("--serve-stored",)
            )
        finally:
            os.close(said_fd)
        begun.tell(self._place)
        return begun.child

    def generation(self, *, deadline: float) -> int:
        """Of the state that it has restored; waits for that until `deadline` (monotonic). Raises Fault."""
        told = b""
        while not told.endswith(b"\n") and len(told) < _LINE_BYTES:
            piece = self._heard(deadline - time.monotonic(), limit_bytes=_LINE_BYTES)
            if piece is None:
                raise Fatal("Fetching code and state took longer than was allowed.", code=ExitCode.TIMED_OUT)
            if not piece:
                break
            told += piece
        try:
            found = canonical.loads_object(told)
        except ValueError as reason:
            raise Fatal(
                "The query process ended before it could be asked: look at the platform's memory and limits, then ask again.",
                code=ExitCode.QUERY_FAILED,
            ) from reason
        if "error" in found:
            raise Fatal(str(found["error"]), code=ExitCode(found["exit_code"]))
        return int(found["generation"])

    def ask(self, *, path: str, params: Mapping[str, Any], deadline: float) -> asking.Answer:
        """Raises CannotServe; NoAnswer, AnswerTooLarge and TooLate as `asking` does, after which it is not to be asked again."""
        listening = deadline if self._listens else min(deadline, time.monotonic() + LISTENING_S)
        while True:
            try:
                answer = asking.ask("127.0.0.1", self._port, path=path, params=params, deadline=deadline)
            except asking.NotListening as reason:
                if self._listens:
                    raise asking.NoAnswer("The query process has just ended.") from reason
                if time.monotonic() >= listening or self.child.poll() is not None:
                    raise CannotServe from reason
                time.sleep(_AGAIN_S)
            else:
                self._listens = True
                return answer

    def standing(self) -> Standing:
        """Whether the process is still the one that was started, and its state as it was restored."""
        try:
            self._control.send(b"?", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return "gone"
        said = self._heard(CONFIRMED_S, limit_bytes=1)
        return "good" if said == names.QUERY_GOOD else "changed" if said == names.QUERY_CHANGED else "gone"

    def let_go(self) -> None:
        """Has it end, without waiting. From any thread; idempotent."""
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is on its way already

    def end(self) -> None:
        """Nothing of it is left afterwards. Idempotent."""
        self.let_go()
        try:
            self.child.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(self.child.pid, signal.SIGKILL)  # a session of its own; what it started dies with it
            self.child.wait()
        self._places.clear(self._place)
        self._control.close()

    def _heard(self, within_s: float, *, limit_bytes: int) -> bytes | None:
        """b"": there will be nothing more; None: nothing in time."""
        try:
            self._control.settimeout(max(within_s, 0.001))
            return self._control.recv(limit_bytes)
        except TimeoutError:
            return None
        except OSError:
            return b""


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as reason:
        raise Fatal(
            f"No process can be started for the query: {reason.strerror}; raise this user's limits.",
            code=ExitCode.INTERNAL,
        ) from reason
