"""The `runtime` command as a person meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bot_place import Place, eventually

from the0 import __version__
from the0.errors import EXIT_CODES

RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]


def runtime(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUNTIME, *arguments], env=env or {}, capture_output=True, text=True, check=False, timeout=30
    )


def test_version() -> None:
    done = runtime("version")
    assert (done.returncode, done.stdout) == (0, f"the0 runtime {__version__}\n")


def test_the_table_of_exit_codes() -> None:
    done = runtime("help", "exit-codes")
    assert done.returncode == 0
    for each in EXIT_CODES:
        assert f"{each.code:>4}  {each.meaning}" in done.stdout
    assert [each.code for each in EXIT_CODES] == list(range(200, 220))


@pytest.mark.parametrize(
    "command",
    [[], ["execute"], ["daemon"], ["daemon", "sync"], ["daemon", "init"], ["state"], ["state", "ls"], ["logs"]],
)
def test_every_command_has_help(command: list[str]) -> None:
    done = runtime(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: runtime")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["fly"], 2, "'fly'"),
        (["daemon", "fly"], 2, "'fly'"),
        (["daemon", "sync"], 2, "--bot-id"),
        (["daemon", "sync", "--bot-id", "b", "--readiness-port", "x"], 2, "--readiness-port"),
        (["state", "adopt", "b"], 2, "--local"),
        (["state", "adopt", "b", "--local", "--store"], 2, "--store"),
        (["execute", "--fast"], 201, "'--fast'"),
        (["execute", "--query"], 201, "--query /PATH"),
        (["execute", "--query-server-only"], 201, "BOT_ID"),
        (["state", "show", "b"], 201, "There is no "),
        (["daemon", "sync", "--bot-id", "b", "--interval", "often"], 201, "--interval"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_sentence(arguments: list[str], code: int, word: str) -> None:
    done = runtime(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_both_names_are_installed() -> None:
    folder = Path(sys.executable).parent
    for name in ("runtime", "the0-runtime"):
        done = subprocess.run([folder / name, "version"], capture_output=True, text=True, check=True)
        assert __version__ in done.stdout


def test_a_reader_that_has_seen_enough(place: Place) -> None:
    place.put_bot(f"for number in range(3000): open(f'{place.state}/file-{{number}}', 'w')")
    assert place.run().code == 0
    ls = f"{' '.join(RUNTIME)} state ls bot-1"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{ls} | head -n 1"], env=place.environment(), capture_output=True, text=True, check=False
    )
    assert "file-0" in done.stdout
    assert done.stderr == ""


# --- a run in parts, as a Pod has it --------------------------------------------------------------


def test_init_sync_and_execute_as_separate_processes(place: Place) -> None:
    place.put_bot("""
        from the0 import state
        state.set("count", state.get("count", 0) + 1)
        print("counted", state.get("count"))
    """)
    environ = place.environment()
    for run in (1, 2):
        init = runtime("daemon", "init", "--bot-id", "bot-1", "--code-file", environ["CODE_FILE"], env=environ)
        assert init.returncode == 0, init.stderr
        done_file = str(place.run_dir / "done")
        sync = subprocess.Popen(
            [*RUNTIME, "daemon", "sync", "--bot-id", "bot-1", "--watch-done", done_file],
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        place.started.append(sync)
        place.env["OBJECT_STORE_DIR"] = None  # the bot's container has no credentials
        bot = place.run("--skip-sync", "--skip-query-server")
        place.env.pop("OBJECT_STORE_DIR")
        assert (bot.code, bot.out) == (0, f"counted {run}\n"), bot.err
        assert sync.wait(20) == 0, sync.stderr and sync.stderr.read()
        shown = runtime("logs", "bot-1", env=environ)
        assert f"counted {run}" in shown.stdout
        # Each container of the next run has a fresh code folder and run folder.
        subprocess.run(["rm", "-rf", place.code, place.run_dir, place.state], check=True)
    verified = runtime("state", "verify", "bot-1", env=environ)
    assert verified.returncode == 0, verified.stdout


def test_sync_stops_on_sigterm(place: Place) -> None:
    place.put_bot("print('hi')")
    environ = place.environment()
    assert runtime("daemon", "init", "--bot-id", "bot-1", "--code-file", "", env=environ).returncode == 0
    sync = subprocess.Popen(
        [*RUNTIME, "daemon", "sync", "--bot-id", "bot-1"], env=environ, stderr=subprocess.PIPE, text=True
    )
    place.started.append(sync)
    (place.state / "file").write_text("kept")
    eventually(lambda: list((place.store / "bot-state").rglob("segments/*/*")), "a first commit")
    (place.state / "file").write_text("kept too")
    sync.send_signal(signal.SIGTERM)
    assert sync.wait(20) == 0, sync.stderr and sync.stderr.read()
    listed = runtime("state", "ls", "bot-1", env=environ)
    assert listed.returncode == 0
    assert "file" in listed.stdout
    assert str(len("kept too")) in listed.stdout
    assert os.environ.get("BOT_ID") is None
