"""Each example does what its README shows, and is what its bot-config.yaml says."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from house.test_docs import blocks, pattern
from rig.server import free_ports, wait_until
from the0.execute.languages import LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/bot-config.yaml"))
NEEDS = {"gcc13": "g++", "nodejs20": "node"}


def named(example: Path, field: str) -> str:
    found = re.search(rf"^ *{field}: (.+)$", (example / "bot-config.yaml").read_text(), re.MULTILINE)
    assert found is not None, field
    return found[1]


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
    }


def run(argv: list[str | Path], home: Path) -> str:
    """What the command prints; it must end well."""
    ran = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def do_as_shown(example: Path, home: Path) -> None:
    """Runs the README's commands; they leave one folder in `home`."""
    shell, shown = blocks(example / "README.md")
    assert (shell.kind, shown.kind) == ("sh", "text")
    output = run(["bash", "-c", f"set -eu\n{shell.text}"], home)
    output = output if output.endswith("\n") else f"{output}\n"
    assert pattern(shown.text).fullmatch(output), f"{example.name}/README.md shows another output than:\n{output}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_readme(example: Path, tmp_path: Path) -> None:
    program = NEEDS.get(named(example, "runtime"))
    if program is not None and shutil.which(program) is None:
        assert not os.environ.get("CI"), f"{program} is missing: install it"
        pytest.skip(f"{program} is missing: install it")
    do_as_shown(example, tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_config_is_true(example: Path) -> None:
    shown = blocks(example / "README.md")[0].text
    assert named(example, "runtime") in LANGUAGES
    for variable, field in (("RUNTIME", "runtime"), ("BOT_TYPE", "type"), ("ENTRYPOINT", "bot"), ("BOT_ID", "name")):
        assert f"{variable}={named(example, field)} " in shown
    if not named(example, "bot").startswith("build/"):
        assert (example / named(example, "bot")).is_file()


def test_there_is_one_of_each_kind() -> None:
    told = {(named(example, "type"), named(example, "runtime")) for example in EXAMPLES}
    assert told == {("scheduled", "python3.11"), ("realtime", "nodejs20"), ("realtime", "gcc13")}


def test_history_answers_queries(tmp_path: Path) -> None:
    do_as_shown(ROOT / "examples/history", tmp_path)
    (place,) = tmp_path.iterdir()
    (port,) = free_ports(1)
    with subprocess.Popen(
        [sys.executable, place / "bot/query.py"],
        env={
            **environment(tmp_path),
            "BOT_ID": "history",
            "BOT_CONFIG": "{}",
            "BOT_TYPE": "realtime",
            "STATE_DIR": str(place / "state/.the0-state"),
            "THE0_QUERY_PORT": str(port),
        },
    ) as process:
        try:
            wait_until(lambda: listens(port), deadline_s=20, what="the query process listens")
            summary = ask(port, "/summary")
            assert summary["count"] == 2
            assert summary["low"] <= summary["last"] <= summary["high"]
            assert [sorted(entry) for entry in ask(port, "/history?limit=1")] == [["price", "time"]]
        finally:
            process.terminate()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_deploys_as_it_is(example: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bot"
    shutil.copytree(example, folder)
    entrypoint = folder / named(example, "bot")
    if not entrypoint.exists():
        entrypoint.parent.mkdir()
        entrypoint.write_bytes(b"\x7fELF stands for what is built")
    told = json.loads(run(["runtime", "deploy", "--data", tmp_path / "data", "--no-start", "--json", folder], tmp_path))
    assert told["id"] == named(example, "name")


def test_watcher_serves_queries(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "node is missing: install it"
        pytest.skip("node is missing: install it")
    (tmp_path / "watcher.json").write_text('{"prices": [1, 3], "ticks": 7}')
    (port,) = free_ports(1)
    told = {**environment(tmp_path), "STATE_DIR": str(tmp_path), "THE0_QUERY_PORT": str(port)}
    with subprocess.Popen([node, ROOT / "examples/watcher/query.js"], env=told) as process:
        try:
            wait_until(lambda: listens(port), deadline_s=20, what="the query process listens")
            assert ask(port, "/average") == {"ticks": 7, "average": 2}
        finally:
            process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int, path: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"", method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        told = json.load(reply)
    assert told["status"] == "ok", told
    return told["data"]
