"""Seccomp: what a filtered process can still do with limits, tried by a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TRIES = """
import json, os, resource, subprocess, sys
from the0 import privacy, seccomp

other = int(sys.argv[1])
privacy.gain_no_privileges()
told = {"filtered": seccomp.keep_to_own_limits()}
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for name, act in {
    "set another's": lambda: resource.prlimit(other, resource.RLIMIT_NOFILE, (8, 8)),
    "take another's memory": lambda: resource.prlimit(other, resource.RLIMIT_AS, (0, 0)),
    "set the parent's": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
    "by a child": lambda: subprocess.run(["prlimit", "--nofile=8:8", "--pid", str(other)], check=True, stderr=-3),
    "read another's": lambda: resource.prlimit(other, resource.RLIMIT_NOFILE),
    "set its own": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard)),
    "set its own by prlimit": lambda: resource.prlimit(0, resource.RLIMIT_NOFILE, (soft - 2, hard)),
    "give one to a child": lambda: subprocess.run(["sh", "-c", "ulimit -n 16; test $(ulimit -n) = 16"], check=True),
}.items():
    try:
        act()
        told[name] = "done"
    except (OSError, subprocess.CalledProcessError) as refused:
        told[name] = type(refused).__name__
print(json.dumps(told))
"""


@pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "aarch64"), reason="no other machine's numbers are known to us"
)
def test_limits_of_others_are_read_and_not_set() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", TRIES, str(other.pid)],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        finally:
            other.kill()
    assert json.loads(done.stdout) == {
        "filtered": True,
        "set another's": "PermissionError",
        "take another's memory": "PermissionError",
        "set the parent's": "PermissionError",
        "by a child": "CalledProcessError",
        "read another's": "done",
        "set its own": "done",
        "set its own by prlimit": "done",
        "give one to a child": "done",
    }
