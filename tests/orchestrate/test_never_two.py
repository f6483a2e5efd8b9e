"""Never two copies of a bot: platforms killed at any instant of starts and stops, many on one folder, copied and moved folders.

Every bot takes a name that only one process at a time can have, and tells us by a datagram when it begins, and when somebody else has it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrate.platform_place import COMMAND, Platform, eventually
from the0.documents import Kind
from the0.errors import ExitCode, Fault
from the0.orchestrate import control_client

WITNESS = """
import os, random, socket, time

def main(bot_id, config):
    tell = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind("\\0" + config["name"])
    except OSError:
        tell.sendto(f"two {bot_id}".encode(), ("127.0.0.1", config["port"]))
        return
    tell.sendto(f"one {bot_id}".encode(), ("127.0.0.1", config["port"]))
    with open("/state/count" if os.path.isdir("/state") else os.environ["STATE_DIR"] + "/count", "a") as file:
        file.write("x")
    time.sleep(random.random() * 1.5 if config.get("schedule") else 3600)
"""
KINDS: tuple[Kind, Kind] = ("realtime", "scheduled")


class Witness:
    """Hears what bots tell."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while said := self._socket.recv(1000):
            self.heard[said.decode()] += 1

    def config(self, bot_id: str) -> dict[str, object]:
        """`name`: of an abstract socket, which one process at a time can have, in whatever view of the files it lives."""
        port = self._socket.getsockname()[1]
        return {"name": f"the0-witness-{port}-{bot_id}", "port": port}

    @property
    def doubled(self) -> list[str]:
        return [said for said in self.heard if said.startswith("two ")]

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    yield made
    made.close()


def put(platform: Platform, witness: Witness, bot_id: str, kind: Kind = "realtime", version: str = "1") -> None:
    schedule = {"schedule": "* * * * * *"} if kind == "scheduled" else {}
    platform.put(bot_id, WITNESS, kind=kind, version=version, **witness.config(bot_id), **schedule)


def begin(platform: Platform, number: int) -> subprocess.Popen[bytes]:
    """An `up` that nobody waits for."""
    with open(platform.root / f"begun-{number}.out", "wb") as out:
        return subprocess.Popen(
            [*COMMAND, "--data", platform.data.path, "--port", "0"],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "STOP_GRACE_S": "5"},
        )


def supervised(platform: Platform) -> Counter[str]:
    """How many supervisors there are of each bot."""
    found: Counter[str] = Counter()
    for pid in platform.supervisors():
        with contextlib.suppress(OSError):
            found[Path(os.readlink(f"/proc/{pid}/fd/2")).parent.name] += 1
    return found


def change(platform: Platform, witness: Witness, bot_id: str, chosen: random.Random) -> None:
    """One thing that happens to one bot."""
    act = chosen.randrange(8)
    if act <= 1:
        put(platform, witness, bot_id, chosen.choice(KINDS), version=str(chosen.randrange(3)))
    elif act <= 3:
        platform.bots.set_enabled(bot_id, chosen.random() < 0.7)
        platform.tell()
    elif act == 4:
        platform.bots.remove(bot_id)
        if chosen.random() < 0.7:
            put(platform, witness, bot_id, chosen.choice(KINDS))
        platform.tell()
    elif act == 5:
        control = control_client.connect(platform.data)
        if control is not None:
            control.restart(bot_id)
    elif act == 6 and (found := platform.supervisors()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(chosen.choice(found), signal.SIGKILL)


def shaken(platform: Platform, witness: Witness, *, seed: int, rounds: int) -> None:
    """Rounds of changes and kills, then rest."""
    chosen = random.Random(seed)
    ids = [f"b{number}" for number in range(4)]
    for bot_id in ids:
        put(platform, witness, bot_id)
    for turn in range(rounds):
        up = begin(platform, turn)
        deadline = time.monotonic() + 0.2 + chosen.choice((0.2, 0.6, 1.5)) * chosen.random()
        while time.monotonic() < deadline:
            with contextlib.suppress(Fault):  # no `up` to tell: it is not there yet, or is just being killed
                change(platform, witness, chosen.choice(ids), chosen)
            time.sleep(chosen.random() * 0.05)
        up.send_signal(signal.SIGKILL)
        up.wait()
        assert not witness.doubled, f"seed {seed}, turn {turn}: {witness.doubled}"
    for bot_id in ids:
        put(platform, witness, bot_id, version="last")
        platform.bots.set_enabled(bot_id, True)


@pytest.mark.parametrize("seed", [int(os.environ.get("SEED", "1"))])
def test_platforms_killed_at_any_instant_never_run_a_bot_twice(platform: Platform, witness: Witness, seed: int) -> None:
    shaken(platform, witness, seed=seed, rounds=int(os.environ.get("ROUNDS", "12")))
    platform.up()
    for number in range(4):
        platform.until(f"b{number}", "running", within_s=120)
    eventually(lambda: supervised(platform) == {f"b{number}": 1 for number in range(4)}, "one of each", within_s=60)
    assert not witness.doubled
    assert sum(witness.heard.values()) >= 4
    print(f"seed {seed}: {sum(witness.heard.values())} starts")


def test_of_many_platforms_on_one_folder_one_runs(platform: Platform, witness: Witness, tmp_path: Path) -> None:
    """Started at the same time, under different names of the folder."""
    put(platform, witness, "b")
    other = tmp_path / "other"
    other.symlink_to(platform.data.path)
    outs = [tmp_path / f"many-{number}.out" for number in range(6)]
    begun = []
    for number, out in enumerate(outs):
        with open(out, "w") as file:
            path = str(other) if number % 2 else platform.data.path
            command = [*COMMAND, "--data", path, "--port", "0"]
            env = {"PATH": os.environ["PATH"], "STOP_GRACE_S": "5"}
            begun.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env))
    try:
        eventually(lambda: sum(each.poll() is None for each in begun) == 1, "one of them", within_s=60)
        eventually(lambda: witness.heard["one b"], "the bot's start", within_s=60)
        for each, out in zip(begun, outs, strict=True):
            if each.poll() is not None:
                assert each.returncode == ExitCode.RUNNING_HERE
                assert "in use by another" in out.read_text()
    finally:
        for each in begun:
            each.terminate()
            each.wait(60)
    assert witness.heard["one b"] == 1
    assert not witness.doubled


def test_a_copy_of_the_folder_leaves_the_originals_bots_alone(platform: Platform, tmp_path: Path) -> None:
    """It has records of processes that run, but not for it."""
    platform.put("b")
    platform.up()
    platform.until_printed("b", "is here")
    pid = platform.pid("b")
    shutil.copytree(platform.data.path, tmp_path / "copied/data", symlinks=True)
    copied = Platform(tmp_path / "copied")
    try:
        up = copied.up()
        assert eventually(lambda: up.news("up"), "its first line")[0]["adopted"] == 0
        copied.until("b", "running", within_s=60)
        assert copied.pid("b") != pid
        assert up.stop() == 0
        assert platform.supervisors() == [pid]
        row = platform.row("b")
        assert (row["status"], row["restarts"]) == ("running", 0)
    finally:
        copied.close()


def test_a_folder_that_was_moved_keeps_its_bots(platform: Platform, tmp_path: Path) -> None:
    platform.put("b")
    first = platform.up()
    platform.until_printed("b", "is here")
    pid = platform.pid("b")
    first.kill()
    (tmp_path / "moved").mkdir()
    os.rename(platform.data.path, tmp_path / "moved/data")
    moved = Platform(tmp_path / "moved")
    try:
        up = moved.up()
        assert eventually(lambda: up.news("up"), "its first line")[0]["adopted"] == 1
        assert moved.pid("b") == pid
        assert up.stop() == 0
    finally:
        moved.close()
