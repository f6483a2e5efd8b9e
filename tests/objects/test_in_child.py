from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from the0.errors import ExitCode, Fault
from the0.objects.in_child import in_child
from the0.objects.store import Denied, Missing, PreconditionFailed, Refused, Unavailable


def children() -> set[str]:
    """Of this process, zombies too."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_it_returns_what_the_child_returns_and_nothing_stays() -> None:
    before, others = os.listdir("/proc/self/fd"), children()
    parent = os.getpid()
    assert in_child(lambda: f"{os.getpid() != parent} grüße", doing="It", timeout_s=10) == "True grüße"
    assert os.listdir("/proc/self/fd") == before
    assert children() == others


@pytest.mark.parametrize("kind", [Missing, PreconditionFailed, Denied, Refused])
def test_a_fault_comes_over_as_it_was(kind: type[Fault]) -> None:
    def fail() -> str:
        raise kind("Reading b/k failed: why; what to do.", code=ExitCode.STORE_DENIED)

    with pytest.raises(kind, match=r"Reading b/k failed: why; what to do\.") as raised:
        in_child(fail, doing="It", timeout_s=10)
    assert raised.value.code == ExitCode.STORE_DENIED


def test_what_may_pass_stays_what_may_pass() -> None:
    def fail() -> str:
        raise Unavailable("The store is away.")

    with pytest.raises(Unavailable, match="The store is away"):
        in_child(fail, doing="It", timeout_s=10)


def test_a_child_that_dies_is_unavailable() -> None:
    def die() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    with pytest.raises(Unavailable, match="Appending to b/k was given up"):
        in_child(die, doing="Appending to b/k", timeout_s=10)


def test_a_child_that_stands_still_is_killed() -> None:
    lock = threading.Lock()
    lock.acquire()

    def wait() -> str:
        # A lock that a thread of the parent held when the child was forked, and that nobody gives back there.
        with lock:
            return ""

    begun, others = time.monotonic(), children()
    with pytest.raises(Unavailable, match="stood still"):
        in_child(wait, doing="It", timeout_s=0.2)
    assert time.monotonic() - begun < 5
    assert children() == others


def test_the_child_holds_no_descriptor_of_ours(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert int(in_child(lambda: str(len(os.listdir("/proc/self/fd"))), doing="It", timeout_s=10)) <= 5
    with (tmp_path / "lock").open("w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
