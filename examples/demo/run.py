"""The demo: a platform on this machine, three bots, and three misfortunes. Needs no server.

Run it by `make demo`. Exits with 0 only if the bots remembered each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]
DEADLINE_S = 30.0
COLOUR = sys.stdout.isatty()
Seen = TypeVar("Seen")


class DemoFailed(Exception):
    """The platform did not do what the demo shows."""


def tell(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if COLOUR else f"\n== {text}", flush=True)


def until(what: str, look: Callable[[], Seen]) -> Seen:
    """What `look` sees, as soon as it is something."""
    deadline = time.monotonic() + DEADLINE_S
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what} did not happen")
        time.sleep(0.05)
    return seen


class Platform:
    """`runtime up`, its lines shown as they come."""

    def __init__(self, base: Path) -> None:
        self.data = base / "platform"
        self.environ = {**os.environ, "THE0_DATA": str(self.data)}
        self._start()

    def _start(self) -> None:
        show("up")
        self.process = subprocess.Popen(
            [*RUNTIME, "up", "--port", "0"],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, name="lines", daemon=True)
        self._reader.start()
        if not self._is_up.wait(DEADLINE_S):
            raise DemoFailed("`runtime up` did not come up")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line) if line.startswith("{") else {"message": line.strip()}
            said = " ".join(str(told[name]) for name in ("bot", "event", "message") if told.get(name))
            print(f"    [up] {said}", flush=True)
            if told.get("event") == "up":
                self._is_up.set()

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def stop(self) -> None:
        self.process.terminate()
        if (code := self._ended()) != 0:
            raise DemoFailed(f"`runtime up` ended with {code}, not with 0 after SIGTERM")

    def _ended(self) -> int:
        code = self.process.wait(timeout=DEADLINE_S)
        self._reader.join(timeout=DEADLINE_S)
        return code

    def again(self) -> None:
        self._start()

    def run(self, *words: str, shown: bool = True) -> str:
        if shown:
            show(*words)
        done = subprocess.run([*RUNTIME, *words], env=self.environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoFailed(f"`runtime {shlex.join(words)}` ended with {done.returncode}: {done.stderr.strip()}")
        if shown:
            print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        return done.stdout

    def row(self, bot_id: str) -> dict[str, Any]:
        rows = json.loads(self.run("ps", "--json", shown=False))
        return next((row for row in rows if row["id"] == bot_id), {})

    def count(self, *, above: int) -> int:
        """The counter's answer, once it is over that."""

        def look() -> int:
            with contextlib.suppress(DemoFailed):  # it may just be coming up
                said = json.loads(self.run("query", "counter", "/count", "--json", shown=False))
                if said["source"] == "live" and said["data"]["count"] > above:
                    return int(said["data"]["count"])
            return 0

        return until(f"the counter counting above {above}", look)

    def counter_pid(self) -> int:
        """The bot's own process."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
                environ = (folder / "environ").read_bytes()
                mine = b"BOT_ID=counter\0" in environ and b"ENTRYPOINT_TYPE=bot\0" in environ
                # Its folders are named in its environment, or mounted where it expects them.
                if mine and str(self.data).encode() in environ + (folder / "mountinfo").read_bytes():
                    return int(folder.name)
        raise DemoFailed("the counter's process is not there")


def show(*words: str) -> None:
    line = f"runtime {shlex.join(words)}".replace(f"{EXAMPLES}/", "examples/")
    print(f"\033[36m$ {line}\033[0m" if COLOUR else f"$ {line}", flush=True)


def third(base: Path) -> Path:
    """A bot in another language, as this machine has it; else another Python one."""
    if shutil.which("node"):
        return EXAMPLES / "watcher"
    folder = base / "primes"
    if shutil.which("g++"):
        (folder / "build").mkdir(parents=True)
        shutil.copy(EXAMPLES / "native/bot-config.yaml", folder)
        source = str(EXAMPLES / "native/main.cpp")
        subprocess.run(["g++", "-std=c++20", "-O2", "-o", str(folder / "build/primes"), source], check=True)
        return folder
    print("    (neither node nor g++ is here: a second counter instead of a bot in another language)")
    shutil.copytree(HERE / "bot", folder)
    config = folder / "bot-config.yaml"
    config.write_text(config.read_text().replace("name: counter", "name: second"))
    return folder


def remembers(platform: Platform, last: int, *, starts: int) -> int:
    """Waits until the counter, started for that many times, counts on, and checks that it did not begin anew."""
    now = platform.count(above=last)

    def said() -> list[int]:
        lines = platform.run("logs", "counter", "--tail", "1000", shown=False)
        numbers = [int(number) for number in re.findall(r"remembers (\d+)", lines)]
        return numbers if len(numbers) == starts - 1 else []

    back = until("its word that it is back", said)
    # A kill may come between a count and the look at it, so a little more is right as well.
    if not last - 1 <= back[-1] <= now:
        raise DemoFailed(f"the counter was at {last} and remembers {back[-1]}")
    return now


def demo(base: Path) -> None:
    tell("A platform on this machine: one command, no server.")
    platform = Platform(base)
    try:
        play(platform, base)
    finally:
        if platform.process.poll() is None:
            platform.process.terminate()
            platform.process.wait(DEADLINE_S)


def play(platform: Platform, base: Path) -> None:
    tell("Three bots: one that counts, one that runs on a schedule, one in another language.")
    platform.run("deploy", str(HERE / "bot"))
    platform.run("deploy", str(EXAMPLES / "history"))
    platform.run("deploy", str(third(base)))
    platform.count(above=2)
    platform.run("ps")

    tell("They are asked, and run outside their schedule.")
    platform.run("query", "counter", "/count")
    platform.run("run", "history")
    until("the run's end", lambda: json.loads(platform.run("runs", "history", "--json", shown=False))[0]["result"])
    platform.run("runs", "history")
    platform.run("query", "history", "/summary")

    tell("The counter is killed (kill -9): it is started again and remembers.")
    last = platform.count(above=0)
    os.kill(platform.counter_pid(), signal.SIGKILL)
    until("its restart", lambda: platform.row("counter").get("restarts", 0) >= 1)
    last = remembers(platform, last, starts=2)
    platform.run("logs", "counter", "--tail", "4")

    tell("The whole platform is killed (kill -9): the bots go on, and the next one adopts them.")
    pid = platform.counter_pid()
    platform.kill()
    platform.again()
    last = platform.count(above=last)
    if platform.counter_pid() != pid:
        raise DemoFailed("the counter was started again although it ran")
    platform.run("ps")

    tell("The platform ends, and what the bots had on the disk is lost. Only the store is left.")
    platform.stop()
    for folder in (platform.data / "bots").iterdir():
        shutil.rmtree(folder)
    platform.again()
    remembers(platform, last, starts=3)
    platform.run("ps")
    platform.run("state", "verify", "counter")
    platform.run("stop", "--all")
    platform.stop()


def main() -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="the0-demo-") as base:
        try:
            demo(Path(base))
        except (DemoFailed, subprocess.SubprocessError) as reason:
            print(f"\nThe demo failed: {reason}", file=sys.stderr)
            return 1
    tell(f"The bots remembered each time. ({time.monotonic() - begun:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
