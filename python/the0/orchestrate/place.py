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
from typing import Any, Final

from the0.errors import ExitCode

LIMITS: Final = {"open_files": resource.RLIMIT_NOFILE}


def take(fd: str) -> Mapping[str, str] | int:
    """Reads what to do from the pipe and does it; the environment of `execute`, or an exit code where there is none."""
    try:
        with os.fdopen(int(fd), "rb") as pipe:
            told = pipe.read()
        if not told:
            return int(ExitCode.STOPPED_EARLY)
        spec: dict[str, Any] = json.loads(told)
        _enter(spec)
        environment: dict[str, str] = spec["environment"]
        return environment
    except (OSError, ValueError, KeyError) as reason:
        print(f"the0: The bot's place on this machine cannot be made: {reason}; see `runtime doctor`.", file=sys.stderr)
        return int(ExitCode.INTERNAL)


def _enter(spec: Mapping[str, Any]) -> None:
    for name, (soft, hard) in spec.get("limits", {}).items():
        resource.setrlimit(LIMITS[name], (soft, hard))
