"""The commands of people as real processes, without and beside a running platform."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrate.platform_place import Platform, eventually
from the0 import names
from the0.orchestrate import completion, tables
from the0.runs import Run, Runs

RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]

COUNTER = """\
import time
from the0 import log, state


def main(bot_id, config):
    while True:
        count = state.get("count", 0) + config["step"]
        state.set("count", count)
        log(f"counted to {count}")
        time.sleep(0.2)
"""
QUERY = """\
from the0 import query, state


@query.handler("/count")
def count(request):
    return {"count": state.get("count", 0), "got": request.params}


query.run()
"""
REALTIME = """\
name: counter
version: 1.0.0
type: realtime
runtime: python3.11
entrypoints: {bot: main.py, query: query.py}
schema:
  type: object
  properties: {step: {type: integer, default: 1}}
"""
ONCE = "def main(bot_id, config):\n    print('done', flush=True)\n"
SCHEDULED = """\
name: daily
version: 1.0.0
type: scheduled
runtime: python3.11
schedule: "30 2 * * *"
entrypoints: {bot: main.py}
"""


class Person:
    """With a platform's folder, and two bots to deploy."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.platform = Platform(base)
        self.environ = {"PATH": os.environ["PATH"], "THE0_DATA": self.platform.data.path, "HOME": str(base)}
        for name, files in {
            "counter": {"main.py": COUNTER, "query.py": QUERY, "bot-config.yaml": REALTIME},
            "daily": {"main.py": ONCE, "bot-config.yaml": SCHEDULED},
        }.items():
            (base / name).mkdir()
            for file, text in files.items():
                (base / name / file).write_text(text)

    def does(self, *words: str, code: int = 0, **environ: str) -> str:
        done = subprocess.run(
            [*RUNTIME, *words],
            env={**self.environ, **environ},
            cwd=self.base,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        if code == 0:
            assert done.stderr == ""
            return done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.endswith(".\n")
        return done.stderr

    def json(self, *words: str, **environ: str) -> Any:
        return json.loads(self.does(*words, "--json", code=0, **environ))

    def row(self, bot_id: str) -> dict[str, Any]:
        rows = self.json("ps", bot_id)
        assert [row["id"] for row in rows] == [bot_id]
        return dict(rows[0])

    def until(self, bot_id: str, status: str) -> dict[str, Any]:
        self.platform.until(bot_id, status)
        return self.row(bot_id)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    made = Person(tmp_path)
    yield made
    made.platform.close()


# --- without a running platform -----------------------------------------------------------------------


def test_a_life_without_a_platform(person: Person) -> None:
    assert person.json("ps") == []
    assert "There are no bots" in person.does("ps")
    told = person.json("deploy", "counter", "--config", "step=3")
    assert (told["action"], told["id"], told["platform_running"]) == ("new", "counter", False)
    row = person.row("counter")
    assert {"id", "type", "status", "reason", "restarts", "since", "generation"} <= set(row)
    assert (row["type"], row["status"], row["restarts"], row["since"]) == ("realtime", "stopped", 0, None)
    assert "not running" in row["reason"]
    assert "counter is told to stop." in person.does("stop", "counter")
    assert "counter was stopped already." in person.does("stop", "counter")
    assert person.row("counter")["enabled"] is False
    assert "counter is told to start." in person.does("start", "counter")
    assert person.json("deploy", "counter")["action"] == "nothing changed"
    told = person.json("rm", "counter", "--dry-run")
    assert (told["removed"], told["archives"]) == (False, 1)
    assert "Bot counter is stopped and removed" in person.does("rm", "counter")
    assert person.json("ps") == []


def test_a_dry_run_does_nothing(person: Person) -> None:
    assert "dry run" in person.does("deploy", "counter", "--dry-run")
    assert person.json("ps") == []
    assert list(person.platform.root.glob("data/objects/custom-bots/local/*")) == []


def test_a_folder_for_each_platform(person: Person, tmp_path: Path) -> None:
    """--data wins over THE0_DATA, and both over the user's data folder."""
    person.does("deploy", "counter", "--id", "here")
    person.does("deploy", "counter", "--id", "there", "--data", str(tmp_path / "there"))
    person.does("deploy", "counter", "--id", "home", THE0_DATA="")
    assert [row["id"] for row in person.json("ps")] == ["here"]
    assert [row["id"] for row in person.json("ps", "--data", str(tmp_path / "there"))] == ["there"]
    assert [row["id"] for row in person.json("ps", "--data", str(tmp_path / ".local/share/the0"))] == ["home"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ps", "nobody"], 201, "no bot nobody"),
        (["start", "nobody"], 201, "no bot nobody"),
        (["stop"], 201, "--all"),
        (["stop", "daily", "--all"], 201, "--all"),
        (["pause", "counter"], 201, "realtime bot"),
        (["restart", "counter"], 201, "runtime up"),
        (["restart", "daily"], 201, "runtime run"),
        (["run", "counter"], 201, "realtime bot"),
        (["run", "daily"], 201, "runtime up"),
        (["query", "counter", "/count"], 201, "runtime up"),
        (["query", "counter", "/count", "x"], 201, "'x'"),
        (["query", "nobody", "/count"], 201, "no bot nobody"),
        (["next", "counter"], 201, "realtime bot"),
        (["next", "daily", "-n", "0"], 2, "-n"),
        (["runs", "nobody"], 201, "no bot nobody"),
        (["runs", "counter"], 201, "realtime bot and has no runs"),
        (["rm", "nobody"], 201, "no bot nobody"),
        (["rm", "nobody", "--purge"], 201, "no bot nobody"),
        (["logs", "nobody"], 201, "no bot nobody"),
        (["logs", "counter", "--grep", "("], 201, "--grep"),
        (["logs", "counter", "--since", "long"], 201, "--since"),
        (["state", "show", "nobody"], 201, "no bot nobody"),
        (["deploy", "nowhere"], 201, "nowhere"),
        (["deploy", "counter", "--type", "weekly"], 2, "weekly"),
        (["deploy", "counter", "--runtime", "perl"], 202, "perl"),
        (["deploy", "counter", "--entrypoint", "bot.py"], 204, "bot.py"),
        (["ps", "--data", "/proc/none"], 201, "no platform"),
        (["deploy", "counter", "--data", "/proc/none"], 208, "/proc/none"),
        (["completion", "tcsh"], 2, "tcsh"),
    ],
)
def test_what_a_command_cannot_do_is_one_sentence(person: Person, words: list[str], code: int, said: str) -> None:
    person.does("deploy", "counter")
    person.does("deploy", "daily")
    assert said in person.does(*words, code=code)


def test_a_database_that_cannot_be_read(person: Person) -> None:
    person.does("deploy", "counter")
    person.platform.bots.close()
    for left in Path(person.platform.data.path).glob("bots.db-*"):
        left.unlink()
    Path(person.platform.data.bots_db).write_bytes(b"rubbish" * 1000)
    assert "bots.db" in person.does("ps", code=214)
    assert "bots.db" in person.does("stop", "--all", code=214)


def test_a_folder_of_a_newer_format(person: Person) -> None:
    Path(person.platform.data.path, "format").write_text("2\n")
    assert "update the runtime" in person.does("ps", code=214)


def test_pausing_is_of_schedules(person: Person) -> None:
    person.does("deploy", "counter")
    person.does("deploy", "daily")
    told = person.json("pause", "--all")
    assert told["bots"] == [{"id": "daily", "changed": True}]
    assert told["not_scheduled"] == ["counter"]
    assert "paused" in person.does("next", "daily")
    person.does("start", "daily")
    assert "paused" not in person.does("next", "daily")


def test_the_next_slots_over_both_changes_of_the_clock(person: Person) -> None:
    person.does("deploy", "daily", "--config", "the0.timezone=Europe/Berlin")
    slots = person.json("next", "daily", "-n", "400")
    assert len(slots) == 400
    assert [each["slot"] for each in slots] == sorted(each["slot"] for each in slots)
    for each in slots:
        moment = datetime.fromisoformat(each["local"])
        assert moment.timestamp() == each["unix_s"]
        # Its time does not exist on one night of spring: then it is run at the first moment after.
        assert (moment.hour, moment.minute) == (2, 30) or ("forward" in each["note"] and moment.hour == 3)
    notes = [each["note"] for each in slots if each["note"]]
    assert any("forward 1 h" in note for note in notes)
    assert any("back" in note or "twice" in note for note in notes)
    assert "Europe/Berlin" not in person.does("next", "daily", "-n", "1")
    person.does("deploy", "daily", "--schedule", "30 2 1 1,7 *")
    yearly = person.json("next", "daily", "-n", "4")
    assert not any(each["note"] for each in yearly), "what the clock did in between is no news half a year later"


def test_runs_of_every_kind(person: Person) -> None:
    person.does("deploy", "daily")
    assert person.json("runs", "daily") == []
    assert "has not run yet" in person.does("runs", "daily")
    with_store = person.platform.data.objects
    from the0.objects.folder import Folder

    runs = Runs(Folder(with_store), bucket="bot-state")
    now_s = int(time.time())
    ran = runs.claim("daily", "20260101T000000Z", holder="s", token="t", now_s=1767225600.0, generation_before=3)
    assert ran is not None
    runs.change(ran, start_s=1767225600.5, end_s=1767225602.0, result="ok", code=0, by="bot", generation_after=4)
    runs.note(
        Run(
            bot_id="daily",
            slot="20260102T000000Z",
            holder="s",
            claimed_s=float(now_s),
            result="missed",
            reason="The platform was down.",
            count=3,
            last="20260104T000000Z",
        )
    )
    shown = person.json("runs", "daily")
    assert [(each["slot"], each["result"]) for each in shown] == [
        ("20260101T000000Z", "ok"),
        ("20260102T000000Z", "missed"),
    ]
    table = person.does("runs", "daily")
    assert "3 → 4" in table
    assert "2 more up to 20260104T000000Z" in table
    assert person.row("daily")["last_run"]["result"] == "missed"
    assert [each["slot"] for each in person.json("runs", "daily", "-n", "1")] == ["20260102T000000Z"]


def test_stopping_all_of_many(person: Person) -> None:
    for number in range(300):
        person.platform.bots.update(f"b{number}", "realtime", config={}, custom={})
    began_s = time.monotonic()
    assert "300 bots told to stop, of 300." in person.does("stop", "--all")
    assert time.monotonic() - began_s < 10
    assert not any(row["enabled"] for row in person.json("ps"))
    assert all(row["status"] == "error" for row in person.json("ps")), "and each is bad by itself"


# --- beside a running platform ------------------------------------------------------------------------


def test_a_life_on_a_running_platform(person: Person) -> None:
    up = person.platform.up()
    assert person.json("deploy", "counter")["platform_running"] is True
    row = person.until("counter", "running")
    assert datetime.fromisoformat(row["since"]).timestamp() > time.time() - 60
    assert row["memory_bytes"] > 0
    first = eventually(lambda: person.row("counter")["generation"], "a generation")
    eventually(lambda: "counted to 3" in person.does("logs", "counter"), "three lines in the store")
    assert person.does("logs", "counter", "--grep", "to 2$").endswith("counted to 2\n")
    answer = person.json("query", "counter", "/count", "x=1", "y=text", 'z={"a":2}')
    assert answer["status"] == "ok"
    assert answer["data"]["count"] >= 3
    assert json.loads(person.does("query", "counter", "count"))["count"] >= 3, "a slash is added"
    assert "/none" in person.does("query", "counter", "/none", code=217)
    shown = person.json("state", "show", "counter")
    assert shown["stored"]["generation"] >= first
    assert shown["local"]["path"] == person.platform.data.bot("counter").state

    person.does("restart", "counter")
    eventually(lambda: person.row("counter")["restarts"] == 1, "a restart")
    person.until("counter", "running")
    person.does("stop", "counter")
    row = person.until("counter", "stopped")
    assert row["last_exit"]["code"] == 0
    assert "restart" not in person.does("ps")
    person.does("start", "--all")
    person.until("counter", "running")

    told = person.json("rm", "counter")
    assert told["state_bytes"] > 0
    assert person.json("ps") == []
    eventually(lambda: person.platform.row("counter") is None, "the removal")
    assert "counted to" in person.does("logs", "counter"), "what was kept is still to be read"
    before = max(int(found) for found in re.findall(r"counted to (\d+)", person.does("logs", "counter")))
    person.does("deploy", "counter")
    person.until("counter", "running")
    eventually(lambda: f"counted to {before + 1}" in person.does("logs", "counter"), "going on where it was")

    told = person.json("rm", "counter", "--purge")
    assert told["purged"] is True
    assert not Path(person.platform.data.bot("counter").path).exists()
    left = Path(person.platform.data.objects)
    assert [path.name for path in (left / "bot-state/counter").iterdir()] == ["HEAD"]
    assert list(left.glob("bot-logs/logs/counter/*")) == []
    assert list(left.glob("custom-bots/local/counter/*")) == []
    assert person.json("state", "show", "counter")["stored"]["removed"] is True
    person.does("deploy", "counter")
    person.until("counter", "running")
    eventually(lambda: "counted to 1\n" in person.does("logs", "counter"), "a new beginning")
    assert up.stop() == 0


def test_following_logs(person: Person) -> None:
    person.platform.up()
    person.does("deploy", "counter")
    person.until("counter", "running")
    with subprocess.Popen(
        [*RUNTIME, "logs", "counter", "-f", "--json", "--grep", "counted"],
        env=person.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        counts = [int(json.loads(following.stdout.readline())["message"].split()[-1]) for _ in range(15)]
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0
    assert counts == list(range(1, 16)), "each line once, in order"


def test_a_scheduled_bot_is_run_by_hand(person: Person) -> None:
    person.platform.up()
    person.does("deploy", "daily")
    eventually(lambda: person.platform.row("daily"), "the bot is known")
    told = person.json("run", "daily")
    runs = eventually(lambda: [run for run in person.json("runs", "daily") if run["result"] is not None], "a run's end")
    assert (runs[0]["slot"], runs[0]["result"], runs[0]["code"]) == (told["slot"], "ok", 0)
    assert person.row("daily")["last_run"]["slot"] == told["slot"]
    assert person.row("daily")["next"] is not None


def test_a_stop_while_the_platform_is_down_counts_when_it_is_up(person: Person) -> None:
    up = person.platform.up("--detach-bots")
    person.does("deploy", "counter")
    person.until("counter", "running")
    up.stop()
    row = person.row("counter")
    assert (row["status"], row["generation"] is not None) == ("running", True)
    assert "takes it over" in row["reason"]
    assert "these run on: counter" in person.does("stop", "--all")
    assert person.json("stop", "counter")["running_on"] == ["counter"]
    assert "still runs" in person.does("rm", "counter", "--purge", code=213)
    person.platform.up()
    eventually(lambda: person.platform.supervisors() == [], "the end of what was left running")
    person.does("rm", "counter", "--purge")


# --- doctor, completion, screens ----------------------------------------------------------------------


def test_doctor(person: Person) -> None:
    person.does("deploy", "counter")
    told = person.json("doctor")
    assert told["ok"] is True
    checks = {check["check"]: check for check in told["checks"]}
    assert {"data folder", "disk", "bots", "objects", "platform", "open files", "clock", "Landlock"} <= set(checks)
    assert checks["bots"]["status"] == "good"
    assert {check["status"] for check in told["checks"]} <= {"good", "note", "warning", "bad"}
    person.platform.bots.update("broken", "realtime", config={}, custom={})
    checks = {check["check"]: check for check in person.json("doctor")["checks"]}
    assert checks["bots"]["status"] == "warning"
    person.platform.up()
    assert "running, 2 bots" in person.does("doctor")


def test_doctor_where_there_is_nothing(person: Person, tmp_path: Path) -> None:
    told = person.json("doctor", "--data", str(tmp_path / "none"))
    assert told["ok"] is True
    assert not (tmp_path / "none").exists()


def test_doctor_finds_what_is_bad(person: Person) -> None:
    person.does("deploy", "counter", "--runtime", "scala3", "--entrypoint", "main.py")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", names.GATEWAY_PORT))
            taken.listen()
        except OSError:
            pass  # it is taken already, by another program
        done = subprocess.run(
            [*RUNTIME, "doctor"],
            env={**person.environ, "PATH": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert re.search(r"bad: scala3: no `java` on the PATH; install Java 17", done.stdout)
    assert "is taken by another program" in done.stdout


def test_completion_of_bash(person: Person) -> None:
    person.does("deploy", "counter")
    script = (
        'source <("$PYTHON" -I -m the0.cli completion bash)\n'
        'runtime() { "$PYTHON" -I -m the0.cli "$@"; }\n'
        'COMP_WORDS=(runtime st); COMP_CWORD=1; _runtime; echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(runtime state sh); COMP_CWORD=2; _runtime; echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(runtime state show c); COMP_CWORD=3; _runtime; echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(runtime rm --); COMP_CWORD=2; _runtime; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**person.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["start state stop", "show", "counter", "--data --dry-run --help --json --purge"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_names_every_command(person: Person, shell: str) -> None:
    script = person.does("completion", shell)
    for command in ("deploy", "ps", "query", "doctor", "adopt"):
        assert command in script


def on_terminal(person: Person, *words: str, **environ: str) -> str:
    """What a terminal of 80 columns gets."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*RUNTIME, *words],
        env={**person.environ, "TERM": "xterm", "COLUMNS": "80", **environ},
        stdout=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    read = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break  # the terminal's other end is closed
        if not piece:
            break
        read += piece
    os.close(ours)
    assert process.wait(30) == 0
    return read.decode().replace("\r\n", "\n")


def test_colour_is_for_terminals(person: Person) -> None:
    person.does("deploy", "counter", "--id", "x" * 100)
    person.platform.bots.update("broken", "realtime", config={}, custom={})
    assert "\033" not in person.does("ps")
    shown = on_terminal(person, "ps")
    assert "\033[31merror\033[0m" in shown
    lines = re.sub(r"\033\[[0-9]*m", "", shown).splitlines()
    assert all(len(line) <= 80 for line in lines[:3])
    assert "\033" not in on_terminal(person, "ps", NO_COLOR="1")
    assert "\033" not in on_terminal(person, "ps", TERM="dumb")
    assert json.loads(on_terminal(person, "ps", "--json"))


def test_a_word_has_its_colour_in_one_column_only() -> None:
    out = io.StringIO()
    screen = tables.Screen(out, width=34, colour=True)
    rows = [
        ("日本", "scheduled", "error", "new"),
        ("error", "new", "scheduled", "ok"),
        ("b" * 9, "x", "failed", "y"),
        ("c", "x", "none", ""),
    ]
    screen.table(("BOT", "TYPE", "STATUS", "WHY"), rows, coloured="STATUS")
    assert out.getvalue().splitlines()[1:] == [
        "日本       scheduled  \033[31merror\033[0m      …",
        "error      new        \033[32mscheduled\033[0m  …",
        "bbbbbbbbb  x          \033[31mfailed\033[0m     y",
        "c          x          none",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (90000, "1d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert tables.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (34 << 10, "34 KiB"), (5 << 40, "5120 GiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert tables.size(count) == text
