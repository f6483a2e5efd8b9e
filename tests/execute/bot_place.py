"""A bot, its folders and its store on this machine; `runtime execute` is started there as a user would start it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rig.waiting import SOON_S, eventually

COMMAND = [sys.executable, "-I", "-m", "the0.cli", "execute"]
CODE_KEY = "u1/sma/1.0.0"


def archive(entries: Mapping[str, str | bytes], *, modes: Mapping[str, int] | None = None) -> bytes:
    """A zip of these files; text is dedented."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((modes or {}).get(name, 0o644) | 0o100000) << 16
            target.writestr(info, textwrap.dedent(content) if isinstance(content, str) else content)
    return written.getvalue()


@dataclass(frozen=True)
class Ended:
    """A finished run."""

    code: int
    out: str
    """What the bot printed, echoed on stdout."""
    err: str
    """What the runtime itself said on stderr."""
    record: dict[str, Any] | None
    """exit.json"""
    log: str
    """bot.log"""


@dataclass
class Running:
    place: Place
    process: subprocess.Popen[str]

    def log(self) -> str:
        return self.place.log()

    def wait_for(self, text: str) -> None:
        """Until the bot's log holds the text."""
        eventually(lambda: text in self.log() or self.process.poll() is not None, f"{text!r} in the bot's log")
        assert text in self.log(), self.end().err

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def children(self) -> dict[str, int]:
        """Our forked children by name (`the0-sync`), a bot that a wrapper runs as `bot`."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                wrapped = "/wrappers/" in Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue  # it has just ended
            found["bot" if wrapped else name] = int(pid)
        return found

    def child(self, name: str) -> int:
        return int(eventually(lambda: self.children().get(name), f"a child {name}"))

    def end(self, *, within_s: float = SOON_S) -> Ended:
        out, err = self.process.communicate(timeout=within_s)
        return Ended(code=self.process.returncode, out=out, err=err, record=self.place.record(), log=self.log())

    def stop(self, number: int = signal.SIGTERM) -> Ended:
        self.send(number)
        return self.end()


@dataclass
class Place:
    root: Path
    command: list[str] = field(default_factory=lambda: list(COMMAND))
    env: dict[str, str | None] = field(default_factory=dict)
    """More variables; None takes one away."""
    popen: dict[str, Any] = field(default_factory=dict)
    """More arguments of Popen, for every start."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for bucket in ("custom-bots", "bot-state", "bot-logs"):
            (self.store / bucket).mkdir(parents=True)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def code(self) -> Path:
        return self.root / "bot"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    def put(self, data: bytes, key: str = CODE_KEY) -> None:
        target = self.store / "custom-bots" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def put_bot(self, main: str, **others: str | bytes) -> None:
        """`main.py`, and other files with `/` written as `__`, `.` as their last `_`."""
        self.put(archive({"main.py": main, **{_path(name): content for name, content in others.items()}}))

    def environment(self) -> dict[str, str]:
        known: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "BOT_ID": "bot-1",
            "RUNTIME": "python3.11",
            "ENTRYPOINT": "main.py",
            "CODE_FILE": CODE_KEY,
            "CODE_PATH": str(self.code),
            "STATE_PATH": str(self.state),
            "LOGS_PATH": str(self.logs),
            "THE0_RUN_DIR": str(self.run_dir),
            "OBJECT_STORE_DIR": str(self.store),
            "STOP_GRACE_S": "10",
            **self.env,
        }
        return {name: value for name, value in known.items() if value is not None}

    def start(self, *flags: str, **popen: Any) -> Running:
        popen.setdefault("stdout", subprocess.PIPE)
        process = subprocess.Popen(
            [*self.command, *flags],
            env=self.environment(),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd="/",
            text=True,
            errors="replace",
            **self.popen,
            **popen,
        )
        self.started.append(process)
        return Running(self, process)

    def run(self, *flags: str) -> Ended:
        return self.start(*flags).end()

    def log(self) -> str:
        try:
            return (self.logs / "bot.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def record(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads((self.run_dir / "exit.json").read_text())
        except FileNotFoundError:
            return None
        return told

    def result(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.code / "result.json").read_text())
        return told

    def close(self) -> None:
        """Nothing that was started here stays: the supervisor's death ends all that it started."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def memory_group() -> Path:
    """A control group of 128 MiB below our own, where this machine lets us make one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent, limit = Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
        elif controllers == "" and Path(f"/sys/fs/cgroup{path}/memory.max").exists():
            parent, limit = Path("/sys/fs/cgroup" + path).parent, "memory.max"
        else:
            continue
        group = parent / f"the0-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(128 << 20))
        except OSError:
            break
        return group
    pytest.skip("control groups cannot be made here")


def _path(name: str) -> str:
    stem, _, suffix = name.rpartition("_")
    return f"{stem.replace('__', '/')}.{suffix}"
