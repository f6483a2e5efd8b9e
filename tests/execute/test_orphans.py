"""A forked child whose parent died unasked: it finishes its work, and never stays for ever."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap

SETUP = """
import os, signal, sys, threading, time
from the0 import child

child.SILENT_S, child._LOOK_S = 1.0, 0.05
"""


def orphan(work: str) -> bytes:
    """What a child of a killed parent wrote in all, read until it had ended."""
    script = SETUP + textwrap.dedent(work) + "\nchild.fork_child('orphan', work, keep=(1,))\nsignal.pause()\n"
    with subprocess.Popen([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        told = os.read(parent.stdout.fileno(), 64)
        parent.send_signal(signal.SIGKILL)
        # Its end closes the last descriptor of the pipe.
        while select.select([parent.stdout], [], [], 60)[0]:
            piece = os.read(parent.stdout.fileno(), 64)
            if not piece:
                return told
            told += piece
    raise AssertionError(f"the child has not ended: {told!r}")


def test_one_that_waits_for_something_that_never_comes_is_ended() -> None:
    told = orphan("""
        def work(stop):
            os.write(1, b"begun,")
            stop.wait()
            os.write(1, b"asked to stop,")
            threading.Event().wait()
    """)
    assert told == b"begun,asked to stop,"


def test_one_that_works_for_longer_is_left_alone() -> None:
    told = orphan("""
        def work(stop):
            os.write(1, b"begun,")
            stop.wait()
            until = time.monotonic() + 3.0
            while time.monotonic() < until:
                sum(range(10000))
                time.sleep(0.001)
            os.write(1, b"finished")
            return 0
    """)
    assert told == b"begun,finished"


def test_memory_that_is_taken_away_ends_it() -> None:
    told = orphan("""
        import resource

        def work(stop):
            os.write(1, b"begun,")
            stop.wait()
            resource.setrlimit(resource.RLIMIT_AS, (0, 0))
            threading.Thread(target=print).start()
            os.write(1, b"a thread was started")
            threading.Event().wait()
    """)
    assert told.startswith(b"begun,")
