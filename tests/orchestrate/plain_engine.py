"""An engine of real child processes in one folder, small enough to be trusted: several schedulers may share the folder, see each
other's children, and be killed without them. A child holds a lock for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from the0.documents import Bot
from the0.errors import ExitCode, Permanent
from the0.orchestrate.engine import Exit, Instance, QueryAnswer, Start, Usage

CHILD = Path(__file__).with_name("plain_child.py")


class PlainEngine:
    """`config` of a bot says what its child does: `seconds` to run, `code` to end with, `stubborn` to ignore SIGTERM,
    `unchecked` to begin without a look at the claim."""

    def __init__(self, root: Path, *, store: Path) -> None:
        self._root = root
        self._store = store
        self._wakes: list[Callable[[], None]] = []
        self._closed = threading.Event()
        root.mkdir(parents=True, exist_ok=True)
        self.refuse: str | None = None
        """Why nothing can be started."""

    # --- of the protocol, what a scheduler uses -----------------------------------------------------

    def actual(self) -> Sequence[Instance]:
        return [found for place in sorted(self._root.iterdir()) if (found := self._look(place)) is not None]

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def start(self, wanted: Start) -> str:
        if self.refuse is not None:
            raise Permanent(self.refuse, code=ExitCode.ENTRYPOINT)
        assert wanted.slot is not None
        name = f"{wanted.bot.id}.{wanted.slot}.{secrets.token_hex(3)}"
        place = self._root / f".{name}"
        place.mkdir()
        about = {
            "bot_id": wanted.bot.id,
            "slot": wanted.slot,
            "token": wanted.token,
            "hash": wanted.bot.config_hash,
            "config": dict(wanted.bot.config),
            "started_s": time.time(),
            "store": str(self._store),
        }
        (place / "about.json").write_text(json.dumps(about))
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.rename(self._root / name)
        place = self._root / name
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(place)],
            pass_fds=[lock],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        os.close(lock)
        (place / "pid").write_text(str(process.pid))
        threading.Thread(target=self._wait, args=(process,), daemon=True).start()
        return name

    def stop(self, name: str, *, grace_s: float, reason: str) -> None:
        self._say(name, "stop.json", json.dumps({"at_s": time.time(), "reason": reason}))
        self._send(name, signal.SIGTERM)
        timer = threading.Timer(grace_s, self.kill, (name,))
        timer.daemon = True
        timer.start()

    def kill(self, name: str) -> None:
        self._send(name, signal.SIGKILL)

    def remove(self, name: str) -> None:
        place = self._root / name
        if place.exists() and not _held(place):
            gone = self._root / f".gone-{name}-{secrets.token_hex(3)}"
            try:
                place.rename(gone)
            except FileNotFoundError:
                return  # another one removes it

    def close(self) -> None:
        self._closed.set()

    # --- the rest -----------------------------------------------------------------------------------

    def discard(self, bot_id: str) -> None:
        raise NotImplementedError

    def usage(self, name: str) -> Usage | None:
        raise NotImplementedError

    def query_address(self, bot_id: str) -> tuple[str, int] | None:
        raise NotImplementedError

    def query(self, bot: Bot, *, path: str, params: Mapping[str, Any], timeout_s: float) -> QueryAnswer:
        raise NotImplementedError

    # --- its own ------------------------------------------------------------------------------------

    def ran(self) -> list[tuple[str, str]]:
        """Bot and slot of every run that really began, in the order of their beginnings."""
        ledger = self._root / ".ledger"
        if not ledger.exists():
            return []
        lines = ledger.read_text().splitlines()
        return [(line.split(" ")[0], line.split(" ")[1]) for line in lines]

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if not self._closed.is_set():
            for wake in self._wakes:
                wake()

    def _look(self, place: Path) -> Instance | None:
        if place.name.startswith("."):
            return None
        held = _held(place)
        about = _read(place / "about.json")
        if about is None:
            return None  # removed meanwhile
        ended = None if held else _read(place / "exit.json") or {"code": 137, "at_s": time.time(), "by": "bot"}
        stop = _read(place / "stop.json") or {}
        return Instance(
            bot_id=about["bot_id"],
            kind="scheduled",
            name=place.name,
            config_hash=about["hash"],
            restart=0,
            failures=0,
            state="ended" if ended is not None else "stopping" if stop else "running",
            started_s=about["started_s"],
            stop_asked_s=stop.get("at_s"),
            stop_reason=stop.get("reason"),
            exit=None
            if ended is None
            else Exit(code=ended["code"], by=ended["by"], reason=f"It ended with {ended['code']}.", at_s=ended["at_s"]),
            slot=about["slot"],
            token=about["token"],
        )

    def _say(self, name: str, file: str, text: str) -> None:
        place = self._root / name
        if place.exists():
            (place / f".{file}").write_text(text)
            (place / f".{file}").rename(place / file)

    def _send(self, name: str, number: int) -> None:
        place = self._root / name
        if _held(place):
            os.kill(int((place / "pid").read_text()), number)


def _held(place: Path) -> bool:
    try:
        fd = os.open(place / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return told
