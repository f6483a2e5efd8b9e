"""What a bot of each language needs in its folder, and how to get it there."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from itertools import islice
from typing import Final

from the0.documents import Bot
from the0.errors import clip
from the0.orchestrate.archive import Archive, holds

LARGE_BYTES: Final = 200 << 20
COMPARED: Final = 2000
"""How many names are held against one that is not there."""
_BUILDS: Final = {
    "rust-stable": "build it first (`cargo build --release`)",
    "gcc13": "build it first (`make`, `cmake --build build`)",
    "cpp-gcc13": "build it first (`make`, `cmake --build build`)",
    "ghc96": "build it first (`cabal build`, or `ghc`)",
    "dotnet8": "publish it first (`dotnet publish -c Release`)",
    "scala3": "build it first (`sbt assembly`)",
}


def hints(bot: Bot, archive: Archive) -> list[str]:
    """Sentences about what the bot may miss when it runs."""
    found = []
    if bot.runtime == "python3.11" and _lists_packages(archive) and not _has(archive, "vendor"):
        found.append(
            "requirements.txt names packages and there is no vendor/: the bot will not find them. Run "
            "`pip install -r requirements.txt -t vendor` in its folder."
        )
    if bot.runtime == "nodejs20" and _needs_modules(archive) and not _has(archive, "node_modules"):
        found.append(
            "package.json names dependencies and there is no node_modules/: the bot will not find them. Run "
            "`npm install --omit=dev` in its folder."
        )
    if archive.size > LARGE_BYTES:
        found.append(
            f"The archive has {archive.size >> 20} MiB, which every start fetches: leave out what the bot does not need in "
            ".the0ignore."
        )
    return found


def missing(bot: Bot, path: str, archive: Archive) -> str:
    """What to do about an entrypoint that is not there; the end of a sentence."""
    last = path.rsplit("/", 1)[-1]
    for name in archive.names:
        if name.rsplit("/", 1)[-1] == last:
            return f"perhaps it is {clip(name)!r}"
    near = get_close_matches(path, list(islice(archive.names, COMPARED)), n=1, cutoff=0.7)
    if near:
        return f"perhaps it is {clip(near[0])!r}"
    build = _BUILDS.get(bot.runtime)
    return f"{build}, or correct the entrypoint" if build else "correct the entrypoint, or look at .the0ignore"


def _has(archive: Archive, folder: str) -> bool:
    return holds(archive, folder)


def _lists_packages(archive: Archive) -> bool:
    lines = _text(archive, "requirements.txt").splitlines()
    # `the0` itself is part of the runtime.
    wanted = (line.split("#", 1)[0].strip() for line in lines)
    return any(line and not line.startswith("-") and line.split("=")[0].strip("<>~! ") != "the0" for line in wanted)


def _needs_modules(archive: Archive) -> bool:
    try:
        about = json.loads(_text(archive, "package.json") or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(about, dict) and bool(about.get("dependencies"))


def _text(archive: Archive, name: str) -> str:
    """ "" where it is not there, or no text; these are hints."""
    if not holds(archive, name):
        return ""
    for folder in (archive.folder, os.path.join(archive.folder, archive.top)):
        try:
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                return file.read(1 << 20)
        except OSError:
            continue  # it is in the other one
    return ""
