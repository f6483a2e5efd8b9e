"""One bot in each language, in the layout that existing archives have; all of them do the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from rig import toolchains

PROGRAMS = Path(__file__).with_name("programs")
PYTHON_SDK = """
import json, os
print("a the0 of its own")
def parse():
    return os.environ["BOT_ID"], json.loads(os.environ["BOT_CONFIG"])
"""
NODE_SDK = """
console.log("a the0 of its own")
exports.parse = () => ({ botId: process.env.BOT_ID, config: JSON.parse(process.env.BOT_CONFIG) })
"""
SCALA_JAR = "target/scala-3.3.1/x-assembly-1.0.3.jar"

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
    return {"main.py": _source("python_bot.py"), "query.py": "", "vendor/the0/__init__.py": PYTHON_SDK}


def _node(folder: str) -> Files:
    files = {"main.js": _source("node_bot.js"), "query.js": ""}
    return {**{folder + name: text for name, text in files.items()}, "node_modules/the0/index.js": NODE_SDK}


def _program(path: str, built: toolchains.Built) -> Files:
    return {path: built.files()["program"]}


def _jar() -> Files:
    return {SCALA_JAR: toolchains.scala(PROGRAMS / "ScalaBot.scala", main="BotMain").files()["program.jar"]}


def _dotnet() -> Files:
    built = toolchains.csharp(PROGRAMS / "CsharpBot.cs", name="SmaBot").files()
    return {f"bin/Release/net8.0/publish/{name}": data for name, data in built.items()}


def _cpp() -> Files:
    return _program("build/sma_bot", toolchains.cpp(PROGRAMS / "cpp_bot.cpp"))


BOTS = (
    Bot("python3.11", "main.py", _python, says="a the0 of its own", terminated=0),
    Bot("nodejs20", "main.js", lambda: _node(""), says="a the0 of its own", terminated=0, search_path=node_path),
    Bot(
        "nodejs20",
        "dist/main.js",
        lambda: _node("dist/"),
        variant="in dist/",
        says="a the0 of its own",
        terminated=0,
        search_path=node_path,
    ),
    Bot(
        "rust-stable",
        "target/release/sma-bot",
        lambda: _program("target/release/sma-bot", toolchains.rust(PROGRAMS / "rust_bot.rs")),
    ),
    Bot("gcc13", "build/sma_bot", _cpp),
    Bot("cpp-gcc13", "build/sma_bot", _cpp),
    Bot("ghc96", "bin/sma-bot", lambda: _program("bin/sma-bot", toolchains.haskell(PROGRAMS / "haskell_bot.hs"))),
    Bot(
        "dotnet8",
        "bin/Release/net8.0/publish/SmaBot.dll",
        _dotnet,
        search_path=lambda: f"{toolchains.dotnet().parent}:{os.environ['PATH']}",
    ),
    Bot("scala3", SCALA_JAR, _jar),
    Bot("scala3", f"{SCALA_JAR}:OtherMain", _jar, variant="by class", says="the other class"),
)
