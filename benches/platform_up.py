"""`runtime up`: from a deploy to the bot's first line, memory with many bots, and what an idle platform costs.

A deploy is timed from the change of the bot store (code is there already) to the first byte in the bot's log; bare is the same
bot started by hand with `runtime execute` on the same folder store, to the same first byte. Needs root, as our processes hide their memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import platform_due  # noqa: E402
from orchestrate.platform_place import Platform  # noqa: E402
from report import ROOT, Figure, keep, show, wait_for_quiet  # noqa: E402

ABOVE_MS = 150.0
UP_MB = 60.0
BOTS = 50
IDLE_BOTS = 20
IDLE_S = 20.0
IDLE_PERCENT = 1.0
STORED = 10_000
PASS_MS = 100.0
CHANGE_MS = 20.0


@contextmanager
def platform() -> Iterator[Platform]:
    root = Path(tempfile.mkdtemp(prefix="the0-bench-"))
    made = Platform(root)
    try:
        yield made
    finally:
        for up in made.ups:
            if up.process.poll() is None:
                up.process.terminate()
                up.process.wait(120)
        made.close()
        shutil.rmtree(root, ignore_errors=True)


def deploys(runs: int) -> Figure:
    with platform() as place:
        place.up()
        took, alone = [], []
        for number in range(runs):
            wait_for_quiet()
            began = time.monotonic()
            place.put(f"b{number}")
            until_written(Path(place.data.bot(f"b{number}").logs))
            took.append((time.monotonic() - began) * 1e3)
            alone.append(by_hand(place, f"x{number}", code_file=f"u/b{number}/1"))
    return Figure(name="deploy to first line", unit="ms", runs=took, bare=alone, over_bare=ABOVE_MS)


def by_hand(place: Platform, bot_id: str, *, code_file: str) -> float:
    folder = place.root / bot_id
    env = {
        "PATH": os.environ["PATH"],
        "BOT_ID": bot_id,
        "RUNTIME": "python3.11",
        "ENTRYPOINT": "main.py",
        "CODE_FILE": code_file,
        "OBJECT_STORE_DIR": place.data.objects,
        "CODE_PATH": str(folder / "bot"),
        "STATE_PATH": str(folder / "state"),
        "LOGS_PATH": str(folder / "logs"),
        "THE0_RUN_DIR": str(folder / "run"),
    }
    began = time.monotonic()
    command = [sys.executable, "-I", "-m", "the0.cli", "execute"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until_written(folder / "logs")
    took_ms = (time.monotonic() - began) * 1e3
    process.terminate()
    process.wait(60)
    return took_ms


def until_written(logs: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if (logs / "bot.log").stat().st_size:
                return
        except FileNotFoundError:
            pass  # not yet
        time.sleep(0.001)
    raise TimeoutError(f"nothing in {logs}")


def fill(place: Platform, count: int) -> None:
    """So many bots, each of which has begun."""
    for number in range(count):
        place.put(f"b{number}")
    for number in range(count):
        place.until_printed(f"b{number}", "is here")


def memory() -> Figure:
    with platform() as place:
        up = place.up()
        fill(place, BOTS)
        rollup = Path(f"/proc/{up.process.pid}/smaps_rollup").read_text().splitlines()
        pss_mb = sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
    return Figure(name=f"PSS of up with {BOTS} bots", unit="MB", runs=[pss_mb], target=UP_MB)


def idle() -> Figure:
    """Of all processes that are ours; bots sleep."""
    with platform() as place:
        up = place.up()
        fill(place, IDLE_BOTS)
        time.sleep(5)
        ours = [up.process.pid, *place.supervisors()]
        ours += [pid for each in place.supervisors() for pid in children(each)]
        before = sum(map(cpu_s, ours))
        began = time.monotonic()
        time.sleep(IDLE_S)
        used_s = sum(map(cpu_s, ours)) - before
        percent = 100 * used_s / (time.monotonic() - began)
    return Figure(
        name=f"idle, {IDLE_BOTS} bots, all processes", unit="% of a core", runs=[percent], target=IDLE_PERCENT
    )


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def stored() -> list[Figure]:
    """What `up` uses when it is woken and nothing has changed, and when one bot of many has."""
    with platform() as place:
        place.put("model", kind="scheduled", schedule="0 0 1 1 *")
        with sqlite3.connect(place.data.bots_db) as db:
            body = db.execute("SELECT body FROM bots").fetchone()[0]
            rows = [(f"s{number}", "scheduled", body.replace("model", f"s{number}"), None) for number in range(STORED)]
            db.executemany("INSERT INTO bots (id, kind, body, next_s) VALUES (?, ?, ?, ?)", rows)
            db.execute("UPDATE revision SET number = number + 1")
        pid = place.up().process.pid
        time.sleep(5)
        same, changed = [], []
        for number in range(5):
            same.append(cpu_of(pid, place.tell))
            place.bots.set_enabled(f"s{number}", False)
            changed.append(cpu_of(pid, place.tell))
    return [
        Figure(name=f"a pass without change, {STORED} bots stored (CPU)", unit="ms", runs=same, target=PASS_MS),
        Figure(name=f"a pass with one change, {STORED} bots stored (CPU)", unit="ms", runs=changed, target=CHANGE_MS),
    ]


def cpu_of(pid: int, act: Callable[[], object]) -> float:
    """What the process uses (ms) within half a second from `act` on."""
    before = cpu_s(pid)
    act()
    time.sleep(0.5)
    return (cpu_s(pid) - before) * 1e3


def due() -> list[Figure]:
    with platform() as place:
        return platform_due.due(place)


PARTS: dict[str, Callable[[int], list[Figure]]] = {
    "deploy": lambda runs: [deploys(runs)],
    "memory": lambda _: [memory()],
    "idle": lambda _: [idle()],
    "stored": lambda _: stored(),
    "due": lambda _: due(),
}


def run(*, runs: int = 9, parts: Sequence[str] = ()) -> bool:
    """Measures, prints and keeps. Whether all reach their targets."""
    figures = [figure for name in parts or PARTS for figure in PARTS[name](runs)]
    show(f"runtime up; load {os.getloadavg()[0]:.1f}", figures)
    path = keep("platform_up", figures)
    print(f"Raw results: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return all(figure.verdict != "MISSED" for figure in figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures `runtime up`; keeps raw results in .cache/bench.")
    parser.add_argument("--part", action="append", default=[], choices=list(PARTS), help="default: all")
    sys.exit(0 if run(parts=parser.parse_args().part) else 1)
