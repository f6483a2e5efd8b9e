"""What a bot's process does to itself before it becomes `runtime execute`: takes its place on this machine.

The engine starts the interpreter with one end of a pipe, writes down who it is, and only then sends what to do. A
process that is told nothing (its engine died in between) ends without having touched anything.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from the0.errors import ExitCode

LIMITS: Final = {
    "open_files": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "processes": resource.RLIMIT_NPROC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Arguments of `view.enter`."""

    folders: Mapping[str, str]
    store: str
    hidden: str
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    environment: Mapping[str, str]
    """Of `execute`."""
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard, by a name of LIMITS."""
    groups: tuple[str, ...] = ()
    """Folders of control groups to enter."""
    view: View | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def take(fd: str) -> Mapping[str, str] | int:
    """Reads a Place from the pipe and takes it; the environment of `execute`, or an exit code where there is none."""
    try:
        with os.fdopen(int(fd), "rb") as pipe:
            told = pipe.read()
        if not told:
            return int(ExitCode.STOPPED_EARLY)
        place: dict[str, Any] = json.loads(told)
        _enter(place)
        environment: dict[str, str] = place["environment"]
        return environment
    except (OSError, ValueError, KeyError) as reason:
        print(f"the0: The bot's place on this machine cannot be made: {reason}; see `runtime doctor`.", file=sys.stderr)
        return int(ExitCode.INTERNAL)


def _enter(place: Mapping[str, Any]) -> None:
    for group in place["groups"]:
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as procs:
            procs.write("0")
    if place["view"] is not None:
        from the0 import view

        view.enter(**place["view"])
    # Afterwards, so that the limit of processes counts those of the view's user namespace.
    for name, (soft, hard) in place["limits"].items():
        resource.setrlimit(LIMITS[name], (soft, hard))
