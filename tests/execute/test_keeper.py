"""The sync process's deaths, with real forks: in a process of their own, since the loop takes over the signals of its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from bot_place import eventually, memory_group

SETUP = """
import json, os, signal, sys, tempfile, time
from the0.errors import Fatal, ExitCode
from the0.execute import keeper
from the0.execute.loop import Loop

keeper.FIRST_PAUSE_S = keeper.LAST_PAUSE_S = 0.001
said = []
loop = Loop()
tries = tempfile.NamedTemporaryFile()

def number():
    '''How many came before, over all forks.'''
    with open(tries.name, "ab") as file:
        file.write(b".")
    return os.path.getsize(tries.name) - 1

def run(keep, until=lambda made: made.verdict is not None, within_s=10.0):
    made = keeper.Keeper(loop, keep, keep_fds=(), say=said.append)
    made.start()
    loop.run_until(lambda: until(made), deadline=time.monotonic() + within_s)
    verdict = made.verdict
    code = made.finish()
    print(json.dumps({"verdict": verdict and [int(verdict.code), verdict.reason], "code": code,
                      "said": said, "tries": os.path.getsize(tries.name)}))
"""


def outcome(script: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", SETUP + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "return 0"])
def test_one_that_dies_again_and_again_is_given_up(death: str) -> None:
    told = outcome(f"""
        def keep(stop, notify):
            number()
            if stop.wait(0):
                return 0
            {death}
        run(keep)
    """)
    assert told["verdict"][0] == 216
    assert told["tries"] in (8, 9, 10, 11), "eight lives, and up to three for the final sync"
    assert len(told["said"]) == 1


def test_a_store_that_is_away_never_stops_the_bot() -> None:
    told = outcome("""
        def keep(stop, notify):
            if number() < 20:
                raise Fatal("The store does not answer.", code=ExitCode.STORE_UNREACHABLE)
            notify("ready")
            stop.wait()
            return 0
        run(keep, until=lambda made: os.path.getsize(tries.name) == 21)
    """)
    assert (told["verdict"], told["code"]) == (None, 0)


@pytest.mark.parametrize("code", [210, 211, 214])
def test_codes_that_need_a_person_stop_the_bot(code: int) -> None:
    told = outcome(f"""
        def keep(stop, notify):
            number()
            return {code}
        run(keep)
    """)
    assert (told["verdict"][0], told["code"], told["tries"]) == (code, code, 1)


@pytest.mark.parametrize(("word", "code"), [("fenced", 210), ("store-down", 205)])
def test_notices_stop_the_bot_while_sync_goes_on(word: str, code: int) -> None:
    told = outcome(f"""
        def keep(stop, notify):
            notify("ready")
            notify({word!r})
            stop.wait()
            return 210
        run(keep)
    """)
    assert (told["verdict"][0], told["code"]) == (code, 210)


def test_a_final_sync_that_is_killed_is_tried_again() -> None:
    told = outcome("""
        def keep(stop, notify):
            notify("ready")
            stop.wait()
            if number() < 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0
        run(keep, until=lambda made: False, within_s=0.1)
    """)
    assert (told["code"], told["tries"]) == (0, 3)


def test_a_final_sync_that_is_killed_every_time_has_failed() -> None:
    told = outcome("""
        def keep(stop, notify):
            stop.wait()
            number()
            os.kill(os.getpid(), signal.SIGKILL)
        run(keep, until=lambda made: False, within_s=0.1)
    """)
    assert (told["code"], told["tries"]) == (209, 3)


def test_a_claim_is_given_back_without_a_life_in_between() -> None:
    told = outcome("""
        def keep(stop, notify):
            number()
            return 0 if stop.wait(5) else 1
        made = keeper.Keeper(loop, keep, keep_fds=(), say=said.append)
        print(json.dumps({"code": made.finish(), "tries": os.path.getsize(tries.name)}))
    """)
    assert (told["code"], told["tries"]) == (0, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user of its own without processes")
def test_a_final_sync_that_gets_no_process_has_failed() -> None:
    told = outcome("""
        import resource
        keeper.NO_PROCESS_PAUSE_S = keeper.NO_PROCESS_AT_END_S = 0.1
        made = keeper.Keeper(loop, lambda stop, notify: 0, keep_fds=(), say=said.append)
        os.setuid(60_000 + os.getpid() % 5_000)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        print(json.dumps({"code": made.finish()}))
    """)
    assert told["code"] == 209


def test_one_that_is_stopped_goes_on_until_it_is_too_often() -> None:
    told = outcome("""
        def keep(stop, notify):
            number()
            while not stop.wait(0.001):
                os.kill(os.getpid(), signal.SIGSTOP)
            return 0
        run(keep)
    """)
    assert told["verdict"][0] == 216
    assert (told["tries"], told["code"]) == (1, 0)
    assert len(told["said"]) == 1


def test_one_that_has_no_memory_left_says_so() -> None:
    group = memory_group()
    try:
        told = outcome(f"""
            with open("{group}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            keeper.DEATHS = 3
            def keep(stop, notify):
                number()
                held = []
                while True:
                    held.append(bytearray(b"x" * (4 << 20)))
            run(keep)
        """)
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "an empty control group")
        group.rmdir()
    assert (told["verdict"][0], told["code"]) == (216, 209)
    assert "ran out of memory: the kernel killed it at the bot's limit of 128 MiB" in told["verdict"][1]
    assert [line for line in told["said"] if "ran out of memory" in line] == [told["verdict"][1]]
