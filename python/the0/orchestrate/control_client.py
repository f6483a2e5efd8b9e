"""Asks a running `up` (see `control.py`). Standard library's sockets only: a command starts quickly."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict, cast

from the0.errors import ExitCode, Fatal
from the0.orchestrate import address
from the0.orchestrate.data import CONTROL_FILE, Data, is_held

STARTING_S: Final = 5.0
"""How long an `up` that has not said yet where it listens is waited for."""
ANSWER_BYTES: Final = 64 << 20
CALL_S: Final = 60.0


class Row(TypedDict):
    """One bot as a running `up` sees it. Times are Unix seconds."""

    id: str
    type: str
    """"realtime" or "scheduled"."""
    status: str
    """Realtime: "running", "starting", "stopping", "waiting" (for its next try), "stopped", "error".
    Scheduled: "scheduled", "running", "paused", "stopped", "error"."""
    reason: str
    """One sentence or ""."""
    since: float
    restarts: int
    next_s: float | None
    """When a waiting one is started again, or the next slot."""
    last_exit: dict[str, Any] | None
    """`{code, by, reason, at_s}` of the last instance that ended."""
    slot: str | None
    memory_bytes: int | None
    cpu_s: float | None
    """Of the instance that runs; None in `ps(usage=False)`."""
    metrics: dict[str, Any]
    """By the type of the `_metric` line: the newest one."""


@dataclass(frozen=True, slots=True)
class Control:
    """One running `up`. Every call raises Fatal in one sentence where that fails."""

    address: tuple[str, int]
    token: str

    def ps(self, bot_ids: Sequence[str] | None = None, *, usage: bool = True) -> list[Row]:
        """All bots, or those; by id. An id that is not known is left out."""
        return cast("list[Row]", self.call("ps", bot_ids=list(bot_ids) if bot_ids is not None else None, usage=usage))

    def changed(self) -> None:
        """The bot store was changed: look now. Returns at once."""
        self.call("changed")

    def restart(self, bot_id: str) -> None:
        """Stops the bot if it runs and starts it again, without waiting for its backoff, and whatever its last exit was.
        Returns at once."""
        self.call("restart", bot_id=bot_id)

    def run(self, bot_id: str) -> dict[str, Any]:
        """Runs a scheduled bot now, under its overlap policy; `{"slot": …}`. Fault where it is not run."""
        return cast("dict[str, Any]", self.call("run", bot_id=bot_id))

    def confirm(self) -> list[str]:
        """Bots that are missing from the store are really gone: they are stopped. Their ids."""
        return cast("list[str]", self.call("confirm"))

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return str(self.call("metrics"))

    def call(self, verb: str, *, timeout_s: float = CALL_S, **arguments: Any) -> Any:
        body = json.dumps(arguments).encode()
        head = (
            f"POST /{verb} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            with socket.create_connection(self.address, timeout=timeout_s) as connection:
                connection.sendall(head.encode() + body)
                status, told = _read(connection)
        except (OSError, ValueError) as reason:
            raise Fatal(
                f"The running `runtime up` gave no answer ({reason}): look at its output.", code=ExitCode.INTERNAL
            ) from reason
        if status == 200:
            return told.get("answer")
        raise Fatal(str(told.get("sentence", f"status {status}")), code=_code(told.get("code")))


def connect(data: Data) -> Control | None:
    """The `up` that runs on this folder; None where none does. Raises Fatal where one runs that cannot be asked."""
    deadline = time.monotonic() + STARTING_S
    while is_held(data):
        found = address.read(data, CONTROL_FILE)
        if found is not None:
            return Control(address=(found.host, found.port), token=found.token)
        if time.monotonic() > deadline:
            raise Fatal(
                "A `runtime up` runs on this data folder, but has not said where it listens: it is starting or ending, try "
                "again in a moment.",
                code=ExitCode.INTERNAL,
            )
        time.sleep(0.02)
    return None


def _read(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    pieces: list[bytes] = []
    size = 0
    while piece := connection.recv(65536):
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_BYTES:
            raise ValueError("its answer is too large")
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    told = json.loads(body)
    if not isinstance(told, dict):
        raise ValueError("its answer makes no sense")
    return int(head.split()[1]), told


def _code(value: object) -> ExitCode:
    return ExitCode(value) if isinstance(value, int) and value in set(ExitCode) else ExitCode.INTERNAL
