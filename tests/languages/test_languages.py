"""The same bot in every language: it runs, remembers, is heard, fails and is stopped as its program says."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import zipfile
from pathlib import Path

import pytest
from bot_place import Place, archive

from languages.bots import BOTS, EACH, Bot, archived, lose_the_machine, or_skip, prepare, stored_log
from languages.conftest import Mark
from rig import toolchains
from the0.execute.languages import LANGUAGES, Target, language
from the0.execute.target import divided


@EACH
def test_runs_remembers_and_is_heard(place: Place, bot: Bot, mark: Mark) -> None:
    prepare(place, bot, mode="end")
    ended = place.run()
    assert ended.code == 0, ended.out + ended.err
    assert "counted 1" in ended.out
    mark(bot.name, "run", told="exit 0")

    assert bot.says in ended.out
    if language(bot.runtime).executable:
        mode = (place.code / bot.entrypoint).stat().st_mode
        assert mode & 0o111 == 0o111, "it was archived without"
    mark(bot.name, "archive layout", told=bot.entrypoint)

    lose_the_machine(place)
    ended = place.run()
    assert "counted 2" in ended.out
    assert json.loads((place.state / ".the0-state/k.json").read_text()) == {"count": 2}
    mark(bot.name, "state")

    lines = stored_log(place)
    own = [
        line for line in lines if re.fullmatch(r'\{"timestamp":\d{13},"level":"info","message":"counted [12]"\}', line)
    ]
    assert len(own) == 2, lines
    plain = [json.loads(line) for line in lines if "plain words" in line]
    assert [sorted(line) for line in plain] == [["message", "timestamp"]] * 2
    assert {line["message"] for line in plain} == {"plain words of bot-1"}
    mark(bot.name, "log")


@EACH
def test_fails_with_its_own_code(place: Place, bot: Bot, mark: Mark) -> None:
    prepare(place, bot, mode="fail")
    ended = place.run()
    assert ended.code == 3, ended.out + ended.err
    assert ended.record is not None
    assert (ended.record["by"], ended.record["bot_code"]) == ("bot", 3)
    lose_the_machine(place)
    assert "counted 2" in place.run().out, "what it wrote before it failed is kept"
    mark(bot.name, "fail", told="exit 3")


@EACH
def test_is_stopped(place: Place, bot: Bot, mark: Mark) -> None:
    prepare(place, bot, mode="wait")
    running = place.start()
    running.wait_for("ready")
    ended = running.stop(signal.SIGTERM)
    assert ended.code == bot.terminated, ended.out + ended.err
    assert ended.record is not None
    assert (ended.record["by"], ended.record["stop_asked"]) == ("bot", True)
    if bot.terminated == 0:
        assert place.result()["status"] == "terminated"
    lose_the_machine(place)
    prepare(place, bot, mode="end")
    assert "counted 2" in place.run().out, "the final sync has run"
    mark(bot.name, "terminate", told=f"exit {ended.code}")


def test_an_entry_marked_as_a_link_becomes_the_file_it_holds(place: Place) -> None:
    bot = next(each for each in BOTS if each.runtime == "gcc13")
    prepare(place, bot, mode="end")
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as target:
        for name, content in archived(bot).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(info, content)
    place.put(written.getvalue())
    ended = place.run()
    assert ended.code == 0, ended.err
    assert stat.S_ISREG((place.code / bot.entrypoint).lstat().st_mode)


@pytest.mark.parametrize(
    ("runtime", "entrypoint", "sentence"),
    [
        ("dotnet8", "SmaBot.dll", "needs the .NET 8 runtime, and this machine's PATH has no `dotnet`: install"),
        ("dotnet8", "SmaBot.csproj", "needs the .NET 8 SDK, and this machine's PATH has no `dotnet`: install"),
        ("scala3", "x.jar", "needs Java 17, and this machine's PATH has no `java`: install"),
        ("nodejs20", "main.js", "needs Node.js 20, and this machine's PATH has no `node`: install"),
    ],
)
def test_a_machine_that_lacks_a_runtime(
    place: Place, tmp_path: Path, runtime: str, entrypoint: str, sentence: str
) -> None:
    place.put(archive({entrypoint: ""}))
    place.env |= {"RUNTIME": runtime, "ENTRYPOINT": entrypoint, "PATH": str(tmp_path / "empty")}
    ended = place.run()
    assert ended.code == 202
    assert ended.record is not None
    assert sentence in ended.record["reason"]
    assert ended.record["by"] == "runtime"


@pytest.mark.parametrize("entrypoint", ["SmaBot.csproj", "src"])
def test_a_project_needs_an_sdk(place: Place, entrypoint: str) -> None:
    runtime_only = or_skip(toolchains.dotnet).parent
    if (runtime_only / "sdk").exists():
        pytest.skip("this machine has an SDK")
    place.put(archive({"SmaBot.csproj": "<Project/>", "src/SmaBot.csproj": "<Project/>"}))
    place.env |= {"RUNTIME": "dotnet8", "ENTRYPOINT": entrypoint, "PATH": str(runtime_only)}
    ended = place.run()
    assert ended.code == 202
    assert ended.record is not None
    assert "publish the bot and name its .dll as the entrypoint, or install the .NET 8 SDK" in ended.record["reason"]


@pytest.mark.parametrize("entrypoint", ["SmaBot.csproj", "src"])
def test_a_project_is_run_where_there_is_an_sdk(place: Place, entrypoint: str) -> None:
    """A stand-in for the SDK, which no package registry here has: what it is asked, and that it is asked."""
    home = place.root / "dotnet"
    (home / "sdk/8.0.100").mkdir(parents=True)
    (home / "dotnet").write_text('#!/bin/sh\necho "asked: $*"\n')
    (home / "dotnet").chmod(0o755)
    place.put(archive({"SmaBot.csproj": "<Project/>", "src/SmaBot.csproj": "<Project/>"}))
    place.env |= {"RUNTIME": "dotnet8", "ENTRYPOINT": entrypoint, "PATH": f"{home}:/usr/bin:/bin"}
    ended = place.run()
    assert (ended.code, ended.out) == (0, f"asked: run --project {place.code}/{entrypoint}\n"), ended.err


@pytest.mark.parametrize("name", ["-version", "a b", "1x", "a..b"])
def test_what_is_no_class_is_no_option_to_java_either(place: Place, name: str) -> None:
    place.put(archive({"x.jar": b"PK"}))
    place.env |= {"RUNTIME": "scala3", "ENTRYPOINT": f"x.jar:{name}"}
    ended = place.run()
    assert ended.code == 204
    assert ended.record is not None
    assert "which is no class" in ended.record["reason"] or "no path within the code" in ended.record["reason"]


@pytest.mark.parametrize(
    ("runtime", "entrypoint", "argv"),
    [
        ("python3.11", "query.py", ["-s", "/bot/query.py"]),
        ("nodejs20", "dist/query.js", ["/bin/node", "/bot/dist/query.js"]),
        ("rust-stable", "target/release/q", ["/bot/target/release/q"]),
        ("gcc13", "build/q", ["/bot/build/q"]),
        ("cpp-gcc13", "build/q", ["/bot/build/q"]),
        ("ghc96", "bin/q", ["/bot/bin/q"]),
        ("dotnet8", "out/Q.dll", ["/bin/dotnet", "/bot/out/Q.dll"]),
        ("scala3", "q.jar", ["/bin/java", "-jar", "/bot/q.jar"]),
        ("scala3", "q.jar:app.QueryMain", ["/bin/java", "-cp", "/bot/q.jar", "app.QueryMain"]),
    ],
)
def test_how_a_query_entrypoint_is_run(runtime: str, entrypoint: str, argv: list[str]) -> None:
    file, part = divided(entrypoint)
    row = language(runtime)
    target = Target(folder="/bot", entrypoint=file, part=part, find=lambda name: f"/bin/{name}")
    assert row.query(target)[-len(argv) :] == argv
    assert os.path.isabs(row.query(target)[0])


def test_every_language_of_the_table_has_a_bot_here() -> None:
    assert {bot.runtime for bot in BOTS} == set(LANGUAGES)
