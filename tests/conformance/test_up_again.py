"""`runtime up` killed, ended and started again: what runs is adopted, or cleaned up; never two copies, never a lost state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.bots import count, realtime
from conformance.platform_under_test import WITHIN_S, Platform, Up, chosen
from rig.waiting import eventually

pytestmark = pytest.mark.skipif(chosen() is not None, reason="of `runtime up` itself")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    made.close()


def bots() -> list[int]:
    """The pids of bot processes of these tests, from /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"BOT_ID=kept" in environ and b"ENTRYPOINT_TYPE=bot" in environ and b"SCRIPT_PATH=main.py" in environ:
            found.append(int(folder.name))
    return found


def state(platform: Platform) -> dict[str, int]:
    seen: dict[str, int] = platform.answers("kept", "/all", source="live").body["data"]
    return seen


def test_after_a_kill_of_the_platform_the_bot_is_adopted(up: Up, folder: Callable[..., Path]) -> None:
    platform = up.platform()
    platform.deploy(realtime(folder), "--id", "kept")
    before = count(platform, "kept")
    (pid,) = bots()
    up.kill()
    platform = up.again()
    platform.is_at("kept", "running")
    assert bots() == [pid]
    assert state(platform)["starts"] == 1
    eventually(lambda: count(platform, "kept") > before, "it goes on", within_s=WITHIN_S)


def test_a_bot_killed_while_nobody_looks_is_started_again_with_its_state(up: Up, folder: Callable[..., Path]) -> None:
    platform = up.platform()
    platform.deploy(realtime(folder), "--id", "kept")
    before = count(platform, "kept")
    (pid,) = bots()
    up.kill()
    os.kill(pid, signal.SIGKILL)
    platform = up.again()
    eventually(
        lambda: platform.query("kept", "/all").body.get("data", {}).get("starts") == 2,
        "it was started again",
        within_s=WITHIN_S,
    )
    assert count(platform, "kept") >= before
    assert len(bots()) == 1


def test_a_killed_bot_is_started_again_with_its_state(up: Up, folder: Callable[..., Path]) -> None:
    platform = up.platform()
    platform.deploy(realtime(folder), "--id", "kept")
    before = count(platform, "kept")
    (pid,) = bots()
    os.kill(pid, signal.SIGKILL)
    row = platform.has("kept", lambda row: row["restarts"] == 1 and row["status"] == "running", what="started again")
    assert row["last_exit"]["code"] == 137
    assert count(platform, "kept") >= before
    assert len(bots()) == 1


def test_an_end_stops_the_bots_with_their_state_stored_and_a_start_brings_them_back(
    up: Up, folder: Callable[..., Path]
) -> None:
    platform = up.platform()
    platform.deploy(realtime(folder), "--id", "kept")
    before = count(platform, "kept")
    assert up.close() == 0
    assert bots() == []
    platform = up.again()
    platform.is_at("kept", "running")
    assert count(platform, "kept") >= before


def test_a_second_platform_on_the_same_folder_is_refused(up: Up) -> None:
    platform = up.platform()
    said = platform.run("up", "--port", "0", ok=False)
    assert 200 <= said.code <= 219
    assert len(said.err.strip().splitlines()) == 1
    assert str(up.data) in said.err
