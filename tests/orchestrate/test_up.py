"""`runtime up` as a person runs it: real bots as real processes, ended in every way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrate.platform_place import COMMAND, Platform, eventually
from the0 import view
from the0.errors import ExitCode
from the0.orchestrate import data, groups, processes

COUNTING = """
import time
from the0 import state
def main(bot_id, config):
    state.set("count", state.get("count", 0) + 1)
    print("count", state.get("count"), flush=True)
    while True:
        time.sleep(3600)
"""


def is_gone(pid: int) -> bool:
    found = processes.stat(pid)
    return found is None or found.state == "Z"  # whoever inherited it may take its time


def test_deployed_bots_run_until_the_platform_ends(platform: Platform) -> None:
    platform.put("early")
    up = platform.up()
    platform.put("late", word="äöü")
    platform.put("odd id/ß")
    for bot_id in ("early", "late", "odd id/ß"):
        platform.until_printed(bot_id, f"{bot_id} is here")
        assert platform.until(bot_id, "running")["restarts"] == 0
    assert "äöü" in platform.printed("late")
    assert up.stop() == 0
    assert platform.supervisors() == []
    record = json.loads(Path(platform.data.bot("early").run, "exit.json").read_text())
    assert (record["stop_asked"], record["by"]) == (True, "bot")
    head = json.loads(Path(platform.data.objects, "bot-state/early/HEAD").read_text())
    assert head["claim"]["released"] is True


def test_stopped_started_changed_and_removed(platform: Platform) -> None:
    platform.put("b", word="one")
    platform.up()
    platform.until_printed("b", "one")
    first = platform.pid("b")
    platform.bots.set_enabled("b", False)
    platform.tell()
    platform.until("b", "stopped")
    assert is_gone(first)
    platform.bots.set_enabled("b", True)
    platform.tell()
    platform.until("b", "running")
    platform.put("b", word="two")
    platform.until_printed("b", "two")
    assert platform.until("b", "running")["restarts"] == 0
    platform.control.restart("b")
    eventually(lambda: platform.row("b")["restarts"] == 1, "a restart")
    platform.bots.remove("b")
    platform.tell()
    eventually(lambda: platform.row("b") is None, "the bot's removal")
    eventually(lambda: not Path(platform.data.bot("b").path).exists(), "the folder's removal")
    assert Path(platform.data.objects, "bot-state/b/HEAD").exists()
    assert platform.supervisors() == []


def test_a_bot_that_is_killed_comes_back_with_its_state(platform: Platform) -> None:
    platform.put("b", COUNTING)
    up = platform.up()
    platform.until_printed("b", "count 1")
    os.kill(platform.bot_pid("b"), signal.SIGKILL)
    platform.until_printed("b", "count 2")
    row = platform.until("b", "running")
    assert row["restarts"] == 1
    assert (row["last_exit"]["code"], row["last_exit"]["by"]) == (137, "bot")
    assert up.news("ended", "b")[0]["code"] == 137


def test_a_supervisor_that_is_killed_leaves_nothing_behind(platform: Platform) -> None:
    platform.put("b", COUNTING)
    platform.up()
    platform.until_printed("b", "count 1")
    bot = platform.bot_pid("b")
    os.kill(platform.pid("b"), signal.SIGKILL)
    platform.until_printed("b", "count 2")
    assert is_gone(bot)
    row = platform.until("b", "running")
    assert (row["restarts"], row["last_exit"]["by"]) == (1, "runtime")
    assert len(platform.supervisors()) == 1


def test_a_killed_platform_is_followed_by_one_that_takes_its_bots_over(platform: Platform) -> None:
    for bot_id in ("a", "b", "c"):
        platform.put(bot_id, COUNTING)
    first = platform.up()
    for bot_id in ("a", "b", "c"):
        platform.until_printed(bot_id, "count 1")
    pids = {bot_id: platform.pid(bot_id) for bot_id in ("a", "b", "c")}
    first.kill()
    os.kill(platform.bot_pid("b"), signal.SIGKILL)
    eventually(lambda: is_gone(pids["b"]), "the end of b")
    platform.bots.set_enabled("c", False)
    second = platform.up()
    assert eventually(lambda: second.news("up"), "its first line")[0]["adopted"] == 2
    assert "2 bots ran on" in second.news("up")[0]["message"]
    eventually(lambda: {each["bot"] for each in second.news("adopted")} == {"a", "c"}, "the news of both")
    platform.until_printed("b", "count 2")
    platform.until("c", "stopped")
    assert platform.until("a", "running")["restarts"] == 0
    assert platform.pid("a") == pids["a"]
    assert platform.until("b", "running")["restarts"] == 1
    eventually(lambda: second.news("started", "b"), "the news of its start")
    assert {each["bot"] for each in second.news("started")} == {"b"}, "what was taken over was not started"
    # Its end is seen although it is no child of this one.
    os.kill(platform.bot_pid("a"), signal.SIGKILL)
    platform.until_printed("a", "count 2")
    assert second.stop() == 0
    assert platform.supervisors() == []


def test_bots_can_be_left_running_for_the_next_platform(platform: Platform) -> None:
    platform.put("b")
    first = platform.up("--detach-bots")
    platform.until_printed("b", "is here")
    pid = platform.pid("b")
    assert first.stop() == 0
    assert platform.supervisors() == [pid]
    platform.up()
    assert platform.until("b", "running")["restarts"] == 0
    assert platform.supervisors() == [pid]


def test_a_platform_that_is_killed_again_and_again_never_runs_two_copies(platform: Platform) -> None:
    for number in range(4):
        platform.put(f"b{number}", COUNTING)
    began = time.monotonic()
    for turn in range(8):
        up = platform.up()
        deadline = time.monotonic() + 0.02 * turn
        while time.monotonic() < deadline:
            assert len(platform.supervisors()) <= 4
        up.kill()
        assert len(platform.supervisors()) <= 4
    platform.up()
    for number in range(4):
        platform.until(f"b{number}", "running")
        platform.until_printed(f"b{number}", "count")
    assert len(platform.supervisors()) == 4
    assert not any("another" in platform.printed(f"b{number}") for number in range(4))
    assert time.monotonic() - began < 30


def test_a_failing_bot_waits_longer_and_harms_no_other(platform: Platform) -> None:
    platform.put("bad", "raise SystemExit(3)")
    platform.put("good")
    up = platform.up()
    platform.until_printed("good", "is here")
    row = eventually(
        lambda: (row := platform.row("bad")) and row["restarts"] >= 1 and row["status"] == "waiting" and row, "wait"
    )
    assert (row["last_exit"]["code"], row["last_exit"]["by"]) == (3, "bot")
    assert "exit code 3" in row["reason"]
    assert row["next_s"] - row["since"] == pytest.approx(2.0, abs=0.1)
    assert up.news("ended", "bad")[0]["message"] == "The bot ended with exit code 3. It starts again in 1 s."


def test_what_needs_a_person_is_not_started_again_until_it_changes(platform: Platform) -> None:
    platform.put("b")
    Path(platform.data.objects, "custom-bots/u/b/1").unlink()
    up = platform.up()
    row = platform.until("b", "error")
    assert "u/b/1" in row["reason"]
    news = eventually(lambda: up.news("ended", "b"), "the news of it")
    assert "not started again by itself" in news[0]["message"]
    assert row["last_exit"]["code"] == ExitCode.CODE
    platform.put("b", version="2")
    platform.until("b", "running")


def test_one_bad_document_is_an_error_on_that_bot_alone(platform: Platform) -> None:
    platform.bots.update("bad", "realtime", config={}, custom={"config": {}})
    platform.put("good")
    platform.up()
    platform.until("good", "running")
    assert "entrypoints" in platform.until("bad", "error")["reason"]


def test_a_config_of_any_size_reaches_its_bot(platform: Platform) -> None:
    platform.put("b", "def main(i, c):\n    print('size', len(c['text']), flush=True)\n", text="x" * 100_000)
    platform.up()
    platform.until_printed("b", "size 100000")


VIEW = """
import os
def attempt(path):
    try:
        with open(path, "w") as file:
            file.write("x")
        return "written"
    except OSError as reason:
        return type(reason).__name__
def main(bot_id, config):
    print("cwd", os.getcwd(), "state", os.environ["STATE_DIR"], flush=True)
    for path in ("/state/a", config["temporary"], "/var/the0/c", "/query/d", "/bot/e", "/etc/the0-f", config["data"] + "/objects/g"):
        print("write", path, attempt(path), flush=True)
    print("data", os.path.exists(config["data"]) and os.listdir(config["data"]), "store", os.listdir("/.the0"), flush=True)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if "objects" in os.listdir(f"/proc/{pid}/root{config['data']}"):
                print("seen through", open(f"/proc/{pid}/cmdline").read().replace(chr(0), " "), flush=True)
        except OSError:
            continue
    print("done", flush=True)
"""


def test_a_bot_sees_its_own_folders_and_not_the_platforms(platform: Platform) -> None:
    if view.why_not(str(platform.root)) is not None:
        pytest.skip("this machine gives no views")
    temporary = f"/tmp/the0-test-{os.getpid()}"
    platform.put("b", VIEW, data=platform.data.path, temporary=temporary)
    platform.up()
    platform.until_printed("b", "done")
    said = platform.printed("b").split("done")[0].splitlines()
    assert "cwd /bot state /state/.the0-state" in said
    written = {line.split()[1]: line.split()[2] for line in said if line.startswith("write ")}
    assert {path for path, how in written.items() if how == "written"} == {
        "/state/a",
        temporary,
        "/var/the0/c",
        "/query/d",
        "/bot/e",
    }
    assert next(line for line in said if line.startswith("data ")) in ("data False store []", "data [] store []")
    assert not any(platform.data.path in line for line in said if "execute" in line or " up " in line)
    assert Path(platform.data.bot("b").state, "a").read_text() == "x"
    if sys.prefix.startswith("/tmp/"):  # programs below it stay in sight, so that it is the machine's
        os.unlink(temporary)
    else:
        assert not Path(temporary).exists()


def test_programs_below_tmp_stay_in_sight(platform: Platform, tmp_path: Path) -> None:
    """Then `/tmp` is the machine's, and a bot's own temporary files are elsewhere."""
    if view.why_not(str(platform.root)) is not None or not str(tmp_path).startswith("/tmp/"):
        pytest.skip("this machine gives no views, or tests are elsewhere")
    platform.put("b", "import tempfile\nprint('in', tempfile.mkdtemp(), flush=True)")
    platform.up(PATH=f"{tmp_path}:{os.environ['PATH']}")
    platform.until_printed("b", "in /var/the0/tmp/")


def test_a_bot_over_its_memory_limit_is_ended_and_says_so(platform: Platform) -> None:
    found = groups.find("test")
    groups.remove(found.parents)
    if found.version == 0:
        pytest.skip("this machine gives no control groups")
    platform.put(
        "hungry",
        "def main(i, c):\n    print('eats', flush=True)\n    taken = b'x' * (400 << 20)\n    print('ate', flush=True)\n",
        memory_limit="96Mi",
    )
    platform.put("modest")
    platform.up()
    platform.until("modest", "running")
    row = eventually(lambda: (row := platform.row("hungry")) and row["last_exit"] and row, "its end")
    assert "memory" in row["last_exit"]["reason"]
    assert "ate" not in platform.printed("hungry").replace("eats", "")


def test_scheduled_bots_run_at_their_slots(platform: Platform) -> None:
    platform.put("tick", "def main(i, c):\n    print('ticked', flush=True)\n", kind="scheduled", schedule="* * * * * *")
    platform.put("rare", "def main(i, c):\n    print('asked', flush=True)\n", kind="scheduled", schedule="0 0 1 1 *")
    up = platform.up()
    eventually(lambda: platform.printed("tick").count("ticked") >= 2, "two runs")
    assert platform.row("rare")["status"] == "scheduled"
    assert platform.row("rare")["next_s"] > time.time()
    assert platform.control.run("rare")["slot"]
    platform.until_printed("rare", "asked")
    assert len(up.news("started", "tick")) >= 2
    assert up.news("ended", "tick")[0]["code"] == 0
    assert up.stop() == 0
    records = [
        json.loads(path.read_text()) for path in Path(platform.data.objects, "bot-state/tick/runs").glob("*.json")
    ]
    assert len(records) >= 2
    assert all(record["end"] for record in records if record["result"] not in ("missed", "skipped"))


def test_a_bot_is_asked_from_its_stored_state_through_the_gateway(platform: Platform) -> None:
    query = """
    from the0 import query, state

    @query.handler("/count")
    def count(request):
        return {"count": state.get("count", 0), "by": request.get("by")}

    query.run()
    """
    platform.put("b", COUNTING, files={"query.py": query})
    platform.up()
    platform.until_printed("b", "count 1")
    live = platform.ask("b", "/count", by=3)
    assert (live["data"], live["source"]) == ({"count": 1, "by": 3}, "live")
    platform.bots.set_enabled("b", False)
    platform.tell()
    platform.until("b", "stopped")
    stored = platform.ask("b", "/count", by=3)
    assert (stored["data"]["count"], stored["source"]) == (1, "stored")
    assert stored["generation"] >= 1


def run(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
    )


def refused(ended: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    assert (ended.returncode, ended.stdout) == (code, "")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(platform: Platform, tmp_path: Path) -> None:
    platform.up()
    refused(run("--data", platform.data.path), ExitCode.RUNNING_HERE, "in use by another")
    newer = tmp_path / "newer"
    data.open_data(str(newer), create=True)
    (newer / "format").write_text("7\n")
    refused(run("--data", str(newer)), ExitCode.STATE_DAMAGED, "has format 7")
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter").write_text("dear")
    refused(run(THE0_DATA=str(other)), ExitCode.USAGE, "'letter', which is not ours")
    broken = tmp_path / "broken"
    data.open_data(str(broken), create=True)
    (broken / "bots.db").write_bytes(b"rubbish" * 1000)
    refused(run("--data", str(broken)), ExitCode.STATE_DAMAGED, "cannot be read")
    file = tmp_path / "file"
    file.write_text("")
    refused(run("--data", str(file / "below")), ExitCode.LOCAL_DISK, "disk failed")


def test_a_port_that_is_taken_is_refused_and_nothing_begun(platform: Platform) -> None:
    platform.put("b")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run("--data", platform.data.path, "--port", port), ExitCode.USAGE, f"127.0.0.1:{port}")
    assert platform.supervisors() == []
    assert not Path(platform.data.control).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user mounts nothing")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"x" * 512)
    os.close(fd)


def test_a_full_disk_is_said_and_passes(small_disk: Path) -> None:
    fill(small_disk / "filler")
    ended = run("--data", str(small_disk / "data"), "--port", "0")
    refused(ended, ExitCode.LOCAL_DISK, "No space left")
    (small_disk / "filler").unlink()
    platform = Platform(small_disk)
    try:
        platform.put("b")
        up = platform.up()
        platform.until_printed("b", "is here")
        fill(small_disk / "filler")
        os.kill(platform.pid("b"), signal.SIGKILL)
        # It comes back or it does not, as the disk permits; the platform goes on. Where its last state was not stored yet,
        # the stop first tries to store it for as long as a stop does (about 20 s).
        eventually(
            lambda: (row := platform.row("b"))["restarts"] or row["status"] in ("waiting", "error"),
            "what follows",
            within_s=60,
        )
        assert up.process.poll() is None
        (small_disk / "filler").unlink()
        platform.control.restart("b")
        platform.until("b", "running")
        assert up.stop() == 0
    finally:
        platform.close()


def damaged(path: Path) -> None:
    path.write_bytes(os.urandom(20480))


def one_page(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    other = path.with_name("bots.db-other")
    other.write_bytes(b"of another program " * 500)
    other.replace(path)


@pytest.mark.parametrize("damage", [damaged, one_page, emptied, replaced, os.unlink])
def test_a_damaged_store_of_bots_is_said_once_and_changes_nothing(
    platform: Platform, damage: Callable[[Path], None]
) -> None:
    platform.put("b")
    platform.put("s", "print('run')", kind="scheduled", schedule="* * * * * *")
    up = platform.up()
    platform.until_printed("b", "is here")
    pid = platform.pid("b")
    path = Path(platform.data.bots_db)
    platform.bots.close()
    # Nobody writes it while it is copied: a slot is noted every second.
    os.kill(up.process.pid, signal.SIGSTOP)
    good = path.read_bytes()
    damage(path)
    bad = path.read_bytes() if path.exists() else None
    os.kill(up.process.pid, signal.SIGCONT)
    platform.tell()
    (said,) = eventually(lambda: up.news("store"), "a word about it")
    assert str(path) in said["message"]
    assert "restore it from a copy" in said["message"]
    for _ in range(20):
        platform.tell()
    for words in (["ps"], ["stop", "b"], ["pause", "s"], ["rm", "s"]):
        ended = command(platform, *words)
        assert ended.returncode == ExitCode.STATE_DAMAGED, ended.stdout + ended.stderr
        assert ended.stderr.count("\n") == 1
        assert ended.stdout == ""
    assert (path.read_bytes() if path.exists() else None) == bad, "nothing was written there"
    slots = len(up.news("ended", "s"))
    eventually(lambda: len(up.news("ended", "s")) >= slots + 2, "runs of what was known")
    assert (platform.row("b")["status"], platform.pid("b")) == ("running", pid)
    assert "the0_ready 0" in platform.control.call("metrics")
    assert len(up.news("store")) == 1
    assert len(up.news("slots")) <= 1, "not said again and again"
    path.write_bytes(good)
    platform.tell()
    eventually(lambda: len(up.news("store")) == 2, "that it can be read again")
    assert "the0_ready 1" in platform.control.call("metrics")
    assert command(platform, "stop", "b").returncode == 0
    platform.until("b", "stopped")
    assert up.stop() == 0


def command(platform: Platform, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND[:-1], *words, "--data", platform.data.path], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_second_signal_does_not_wait(platform: Platform) -> None:
    platform.put(
        "stubborn",
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
        while True:
            time.sleep(3600)
        """,
    )
    up = platform.up(STOP_GRACE_S="60")
    platform.until_printed("stubborn", "deaf")
    up.process.send_signal(signal.SIGTERM)
    eventually(lambda: up.news("stopping"), "the stop")
    assert up.stop(signal.SIGINT) == 0
    eventually(lambda: platform.supervisors() == [], "the end")
