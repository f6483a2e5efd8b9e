"""The demo: a bot runs, remembers, is killed in three ways, and comes back with its state. Needs no server.

Run it by `make demo`. Exits with 0 only if the bot remembered each time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
BOT_ID = "demo-bot"
RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]
DEADLINE_S = 30.0
COLOUR = sys.stdout.isatty()


class DemoFailed(Exception):
    """The runtime did not do what the demo shows."""


def tell(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if COLOUR else f"\n== {text}", flush=True)


class Run:
    """One `runtime execute`, its lines shown as they come."""

    def __init__(self, base: Path) -> None:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "BOT_ID": BOT_ID,
            "RUNTIME": "python3.11",
            "ENTRYPOINT": "main.py",
            "CODE_FILE": "demo/counter/1.0.0",
            "BOT_CONFIG": '{"step": 1}',
            "OBJECT_STORE_DIR": str(base / "store"),
            "CODE_PATH": str(base / "machine/bot"),
            "STATE_PATH": str(base / "machine/state"),
            "LOGS_PATH": str(base / "machine/logs"),
            "THE0_RUN_DIR": str(base / "machine/run"),
        }
        for name in ("bot", "state", "logs", "run"):
            (base / "machine" / name).mkdir(parents=True, exist_ok=True)
        self.environment = environment
        self.counts: list[int] = []
        self.remembered: int | None = None
        self.process = subprocess.Popen(
            [*RUNTIME, "execute"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, name="lines", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print("   ", line, end="", flush=True)
            if found := re.search(r"counted to (\d+)", line):
                self.counts.append(int(found[1]))
            elif found := re.search(r"remembers (\d+)", line):
                self.remembered = int(found[1])

    def until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            if time.monotonic() > deadline or (self.process.poll() is not None and not self._reader.is_alive()):
                raise DemoFailed(f"{what} did not happen (exit code {self.process.poll()})")
            time.sleep(0.02)

    def ended(self) -> int:
        code = self.process.wait(timeout=DEADLINE_S)
        self._reader.join(timeout=DEADLINE_S)
        return code

    def bot_pid(self) -> int:
        """The bot's own process, a child of the supervisor."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                command = (status.parent / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if f"\nPPid:\t{self.process.pid}\n" in text and b"wrappers" in command:
                return int(status.parent.name)
        raise DemoFailed("the bot's process is not there")


def pack(base: Path) -> None:
    target = base / "store/custom-bots/demo/counter/1.0.0"
    target.parent.mkdir(parents=True)
    for bucket in ("bot-state", "bot-logs", "query-results"):
        (base / "store" / bucket).mkdir()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((HERE / "bot").rglob("*.py")):
            archive.write(path, path.relative_to(HERE / "bot"))


def ask(run: Run, *words: str) -> str:
    return subprocess.run([*RUNTIME, *words], env=run.environment, capture_output=True, text=True, check=True).stdout


def demo(base: Path) -> None:
    pack(base)
    tell("A bot runs for the first time. Its store is a plain folder.")
    run = Run(base)
    run.until("counting to 3", lambda: 3 in run.counts)
    tell("The bot is killed (kill -9).")
    os.kill(run.bot_pid(), signal.SIGKILL)
    code = run.ended()
    if code != 137:
        raise DemoFailed(f"the runtime ended with {code}, not with 137 for a bot killed by signal 9")

    tell("It starts again.")
    last = run.counts[-1]
    run = Run(base)
    run.until("counting on", lambda: len(run.counts) >= 3)
    remembers(run, last)
    tell("Now the whole runtime is killed (kill -9 of its supervisor).")
    run.process.kill()
    run.ended()

    tell("It starts again on the same machine: the state is still on its disk.")
    last = run.counts[-1]
    run = Run(base)
    run.until("counting on", lambda: len(run.counts) >= 3)
    remembers(run, last)
    tell("The bot is asked to stop (SIGTERM): its last state and logs are stored.")
    run.process.terminate()
    code = run.ended()
    if code != 0:
        raise DemoFailed(f"the runtime ended with {code}, not with 0 after SIGTERM")

    tell("The machine's disk is lost. Another machine starts the bot from the store.")
    last = run.counts[-1]
    shutil.rmtree(base / "machine")
    run = Run(base)
    run.until("counting on", lambda: len(run.counts) >= 3)
    remembers(run, last)
    run.process.terminate()
    run.ended()

    tell("runtime state verify")
    print(ask(run, "state", "verify", BOT_ID), end="")
    tell("runtime logs, the last five lines")
    print(ask(run, "logs", BOT_ID, "--tail", "5"), end="")


def remembers(run: Run, last: int) -> None:
    # A kill may come between a line and the state it speaks of, so one count less is right as well.
    if run.remembered is None or run.remembered not in (last, last + 1):
        raise DemoFailed(f"the bot had counted to {last} and remembers {run.remembered}")


def main() -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="the0-demo-") as base:
        try:
            demo(Path(base))
        except (DemoFailed, subprocess.SubprocessError) as reason:
            print(f"\nThe demo failed: {reason}", file=sys.stderr)
            return 1
    tell(f"The bot remembered each time. ({time.monotonic() - begun:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
