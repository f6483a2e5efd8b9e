"""One bot in each language, in the layout that existing archives have; all of them do the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from bot_place import Place, archive

from rig import toolchains

PROGRAMS = Path(__file__).with_name("programs")
OLD_SDK = PROGRAMS / "old_sdk"
"""What an archive brings along, made to be as awkward as SDKs of bots that exist: each file says how."""
SCALA_JAR = "target/scala-3.3.1/x-assembly-1.0.3.jar"
DOTNET_FOLDER = "bin/Release/net8.0/publish/"
OWN = "a the0 of its own"

Files = Mapping[str, str | bytes]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bot:
    runtime: str
    entrypoint: str
    files: Callable[[], Files]
    """Of the archive, by path. Raises toolchains.Lacking."""
    variant: str = ""
    """Sets it apart from the others of its language."""
    query: str = ""
    """Its query entrypoint."""
    says: str = ""
    """What only this layout makes it print."""
    terminated: int = 143
    """Its exit code after SIGTERM: of a wrapper's, of the JVM's and .NET's own, or 128 + 15 for a death of that signal."""
    search_path: Callable[[], str] = field(default=lambda: os.environ["PATH"])

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.variant}".strip()


def node_path() -> str:
    return f"{toolchains.node().parent}:{os.environ['PATH']}"


def or_skip(make: Callable[[], T]) -> T:
    """What this machine can make. Skips where it lacks the means, and fails there in CI."""
    try:
        return make()
    except toolchains.Lacking as lacking:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(lacking))


def archived(bot: Bot) -> dict[str, str | bytes]:
    return dict(or_skip(bot.files))


def _source(name: str) -> str:
    return (PROGRAMS / name).read_text()


def _python() -> Files:
    sdk = {"vendor/the0/__init__.py": _source("old_sdk/the0.py")}
    return {"main.py": _source("python_bot.py"), "query.py": _source("python_query.py"), **sdk}


def _node(folder: str) -> Files:
    files = {"main.js": _source("node_bot.js"), "query.js": _source("node_query.js")}
    sdk = {"index.js": _source("old_sdk/the0.js"), "package.json": '{"name": "@the0/sdk", "version": "0.1.0"}'}
    return {
        **{folder + name: text for name, text in files.items()},
        **{f"node_modules/@the0/sdk/{name}": text for name, text in sdk.items()},
    }


def _native(folder: str, bot: str, query: str, built: toolchains.Built) -> Files:
    program = built.files()["program"]
    return {folder + bot: program, folder + query: program}


def _jar() -> Files:
    built = toolchains.scala(PROGRAMS / "ScalaBot.scala", OLD_SDK / "The0.scala", main="BotMain")
    return {SCALA_JAR: built.files()["program.jar"]}


def _dotnet() -> Files:
    built = toolchains.csharp(PROGRAMS / "CsharpBot.cs", OLD_SDK / "The0.cs", name="SmaBot").files()
    return {f"{DOTNET_FOLDER}{name}": data for name, data in built.items()}


def _rust() -> Files:
    built = toolchains.rust(PROGRAMS / "rust_bot.rs", OLD_SDK / "the0.rs")
    return _native("target/release/", "sma-bot", "sma-query", built)


def _cpp() -> Files:
    return _native("build/", "sma_bot", "sma_query", toolchains.cpp(PROGRAMS / "cpp_bot.cpp", OLD_SDK / "the0.hpp"))


def _haskell() -> Files:
    return _native("bin/", "sma-bot", "sma-query", toolchains.haskell(PROGRAMS / "haskell_bot.hs", OLD_SDK / "The0.hs"))


BOTS = (
    Bot("python3.11", "main.py", _python, query="query.py", says=OWN, terminated=0),
    Bot("nodejs20", "main.js", lambda: _node(""), query="query.js", says=OWN, terminated=0, search_path=node_path),
    Bot(
        "nodejs20",
        "dist/main.js",
        lambda: _node("dist/"),
        query="dist/query.js",
        variant="in dist/",
        says=OWN,
        terminated=0,
        search_path=node_path,
    ),
    Bot("rust-stable", "target/release/sma-bot", _rust, query="target/release/sma-query"),
    Bot("gcc13", "build/sma_bot", _cpp, query="build/sma_query"),
    Bot("cpp-gcc13", "build/sma_bot", _cpp, query="build/sma_query"),
    Bot("ghc96", "bin/sma-bot", _haskell, query="bin/sma-query"),
    Bot(
        "dotnet8",
        f"{DOTNET_FOLDER}SmaBot.dll",
        _dotnet,
        query=f"{DOTNET_FOLDER}SmaBot.dll",
        search_path=lambda: f"{toolchains.dotnet().parent}:{os.environ['PATH']}",
    ),
    Bot("scala3", SCALA_JAR, _jar, query=f"{SCALA_JAR}:QueryMain"),
    Bot(
        "scala3",
        f"{SCALA_JAR}:OtherMain",
        _jar,
        query=f"{SCALA_JAR}:QueryMain",
        variant="by class",
        says="the other class",
    ),
)

EACH = pytest.mark.parametrize("bot", BOTS, ids=lambda bot: f"{bot.runtime}-{bot.entrypoint.rpartition('/')[2]}")


def prepare(place: Place, bot: Bot, *, mode: str) -> None:
    place.put(archive(archived(bot)))
    place.env |= {
        "RUNTIME": bot.runtime,
        "ENTRYPOINT": bot.entrypoint,
        "PATH": or_skip(bot.search_path),
        "BOT_CONFIG": json.dumps({"symbol": "AAPL", "mode": mode}),
    }


def lose_the_machine(place: Place) -> None:
    for folder in (place.code, place.state, place.logs, place.run_dir):
        shutil.rmtree(folder, ignore_errors=True)


def stored_log(place: Place) -> list[str]:
    (day,) = (place.store / "bot-logs/logs/bot-1").glob("*.log")
    return day.read_text().splitlines()
