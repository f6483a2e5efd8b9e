"""Bots as real processes: a file, an environment, and nothing else of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PYTHON_SOURCE = str(Path(__file__).resolve().parents[2] / "python")


def eventually(condition: Callable[[], bool], *, within_s: float = 10.0, what: str = "it") -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s"
        time.sleep(0.01)


@dataclass
class BotFolder:
    """A bot's folders; `run` runs a script to its end, `start` leaves it running."""

    root: Path
    started: list[subprocess.Popen[str]]

    @property
    def code(self) -> Path:
        return self.root / "bot"

    @property
    def state(self) -> Path:
        return self.root / "state" / ".the0-state"

    def environ(self, **more: str | None) -> dict[str, str]:
        known: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": PYTHON_SOURCE,
            "BOT_ID": "bot-1",
            "BOT_CONFIG": '{"symbol":"AAPL","size":5}',
            "BOT_TYPE": "realtime",
            "CODE_MOUNT_DIR": str(self.code).lstrip("/"),
            "STATE_DIR": str(self.state),
            **more,
        }
        return {name: value for name, value in known.items() if value is not None}

    def script(self, source: str) -> str:
        path = self.code / f"script{len(list(self.code.iterdir()))}.py"
        path.write_text(textwrap.dedent(source))
        return str(path)

    def start(self, source: str, **more: str | None) -> subprocess.Popen[str]:
        # -S: no site-packages, so that only the standard library and our folder can be what is imported.
        process = subprocess.Popen(
            [sys.executable, "-S", self.script(source)],
            env=self.environ(**more),
            cwd=self.code,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, source: str, **more: str | None) -> subprocess.CompletedProcess[str]:
        process = self.start(source, **more)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
