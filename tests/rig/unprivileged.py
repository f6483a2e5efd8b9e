"""The runtime as a user who is not root, on a machine where the tests are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import the0


def identity(uid: int) -> dict[str, Any]:
    """Arguments of Popen: as that user where we are root, else as we are."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}


def python(uid: int) -> str:
    """An interpreter that this user can start (root's own may lie below /root)."""
    if os.geteuid() != 0:
        return sys.executable
    for candidate in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3.11", "/usr/bin/python3"):
        try:
            told = subprocess.run(
                [candidate, "-I", "-c", "import sys; print(sys.version_info >= (3, 11))"],
                **identity(uid),
                capture_output=True,
                text=True,
                cwd="/",
                check=False,
            )
        except OSError:
            continue
        if told.stdout.strip() == "True":
            return candidate
    pytest.fail(f"no Python 3.11 or newer that user {uid} can start: install one as /usr/bin/python3.11")


def command(uid: int, *arguments: str) -> list[str]:
    """`runtime …`, of an installation that this user cannot change."""
    found = [str(Path(the0.__file__).parent.parent), *(path for path in sys.path if path.endswith("site-packages"))]
    script = f"import sys; sys.path += {found!r}; from the0.cli import main; sys.exit(main())"
    return [python(uid), "-I", "-c", script, *arguments]
