"""Bots whose processes are hard to end, and bots that signal those of the runtime."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bot_place import eventually

from hostile.yard import Yard, honest, identity, leftovers
from the0.execute import keeper

SOAK = bool(os.environ.get("THE0_SOAK"))
"""Two of the limits are waited out: 20 s each."""
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="counts processes of a user of its own, for which it has to be root"
)


@pytest.mark.attack(
    "five processes that daemonise themselves (double fork, setsid), ignore SIGTERM, keep writing state, done and exit.json, and "
    "outlive the bot",
    "killed before the last state is stored and the records are written; nothing of the bot's runs afterwards",
)
@as_root
def test_daemons_that_outlive_the_bot(yard: Yard) -> None:
    begun = time.monotonic()
    ended = yard.run("processes.py", act="daemons")
    honest(ended, by="bot", code=0)
    assert time.monotonic() - begun < 2.0 + 5.0 + 5.0, "two seconds to end by themselves, then SIGKILL"
    assert leftovers() == []
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack("SIGTERM ignored", "killed after STOP_GRACE_S; exit 137, the record says that the runtime did it")
def test_deaf_to_sigterm(yard: Yard) -> None:
    yard.place.env["STOP_GRACE_S"] = "1"
    running = yard.start("processes.py", act="deaf")
    running.wait_for("deaf")
    begun = time.monotonic()
    ended = running.stop()
    assert time.monotonic() - begun < 1.0 + 5.0 + 5.0
    honest(ended, by="runtime", code=137)
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "SIGSTOP to the sync process, now and then", "continued at once by the supervisor, said in the log; nothing is lost"
)
def test_sync_is_stopped(yard: Yard) -> None:
    ended = yard.run("processes.py", act="stop_sync")
    honest(ended, by="bot", code=0)
    assert yard.findings["went on"]
    assert ended.log.count("it was continued") == 1
    assert yard.next_start(anew=True)["kept"] == 2


@pytest.mark.attack(
    "SIGSTOP to the sync process, 200 times a second for ever",
    "after 60 in a minute the bot is stopped (216), then its state is stored",
)
def test_sync_is_stopped_for_ever(yard: Yard) -> None:
    yard.place.env["STOP_GRACE_S"] = "1"
    ended = yard.run("processes.py", act="stop_sync_for_ever")
    honest(ended, by="runtime", code=216)
    assert f"stopped over {keeper.STOPS} times" in ended.err
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "TERM, INT, HUP, USR1, USR2 and the like to the sync process", "ignored: only the supervisor ends it"
)
def test_sync_is_signalled(yard: Yard) -> None:
    ended = yard.run("processes.py", act="signal_sync")
    honest(ended, by="bot", code=0)


@pytest.mark.attack(
    "the supervisor killed (outside a container; within one it is PID 1 and cannot be)",
    "the bot dies with it, the sync process stores the state; a daemon that it left runs on until its container or `runtime up` ends it",
)
@as_root
def test_the_supervisor_is_killed(yard: Yard) -> None:
    running = yard.start("processes.py", act="kill_supervisor")
    ended = running.end()
    assert ended.code == -signal.SIGKILL
    eventually(lambda: not any("the0.cli" in line for line in leftovers()), "the end of what the runtime had started")
    yard.no_secret(ended)
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "the supervisor stopped with SIGSTOP (outside a container; PID 1 ignores it)",
    "the bot and its sync go on, a stop waits for SIGCONT or SIGKILL; then all is as after a crash",
)
def test_the_supervisor_is_stopped(yard: Yard) -> None:
    running = yard.start("processes.py", act="stop_supervisor")
    stat = Path(f"/proc/{running.process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a stopped supervisor")
    running.send(signal.SIGTERM)
    running.send(signal.SIGCONT)
    ended = running.end()
    honest(ended, by="bot", code=0)
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "the supervisor made its tracer (PTRACE_TRACEME), so that each signal is reported to it",
    "let go at once, with the signal: the bot runs on as if it had not been traced",
)
def test_the_supervisor_is_made_its_tracer(yard: Yard) -> None:
    running = yard.start("processes.py", act="traced_by_us")
    bot = running.child("bot")
    stat = Path(f"/proc/{bot}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a bot that its own SIGSTOP has stopped")
    os.kill(bot, signal.SIGCONT)
    ended = running.end()
    honest(ended, by="bot", code=0)
    assert (yard.findings["traced"], yard.findings["went on"]) == (0, True)
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "the same thousands of times a second, by nine processes that are deaf to SIGTERM",
    "the supervisor goes on with everything else: a stop, the last state, the records",
)
@as_root
def test_the_supervisor_is_made_a_tracer_for_ever(yard: Yard) -> None:
    yard.place.env["STOP_GRACE_S"] = "1"
    running = yard.start("processes.py", act="traced_for_ever", seconds=60)
    running.wait_for("traced")
    begun = time.monotonic()
    ended = running.stop()
    assert time.monotonic() - begun < 15
    honest(ended, by="bot", code=0)
    assert leftovers() == []
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "its own end held back from the supervisor by another process of its own, in another session, that traces it",
    "that one is killed, too; then the last state is stored; exit 137, the record says that the runtime did it",
)
@as_root
def test_its_end_is_held_back(yard: Yard) -> None:
    yard.place.env["STOP_GRACE_S"] = "1"
    running = yard.start("processes.py", act="held_back")
    running.wait_for("held\n")
    assert yard.findings["held"] == "0"
    begun = time.monotonic()
    ended = running.stop()
    assert time.monotonic() - begun < 1.0 + 2.0 + 5.0 + 5.0
    honest(ended, by="runtime", code=137)
    assert leftovers() == []
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "all inotify instances and watches of the user, all memory for pipes, all places for waiting signals; then sync killed",
    "the new one looks at the whole folder now and then instead of being told; lines and state are stored",
)
def test_what_a_user_has_in_all_is_taken(yard: Yard) -> None:
    watches = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    ended = yard.run("processes.py", act="take_all", watches=min(watches, 5_000), within_s=60)
    honest(ended, by="bot", code=0)
    assert yard.findings["taken"]["inotify"] > 10
    assert "x" * 100_000 in ended.log
    assert any(
        b"Changes in the state folder cannot be watched" in data for key, _, data in yard.objects() if "logs/" in key
    )
    assert yard.next_start(anew=True)["kept"] == 2


@pytest.mark.attack(
    "leases on its state files, for which whoever opens them has to wait 45 s each",
    "not waited for: all else is stored meanwhile, and those at the end",
)
def test_leases(yard: Yard) -> None:
    running = yard.start("processes.py", act="lease")
    running.wait_for("leased\n")
    assert set(yard.findings.values()) == {True, 0}, "the leases were granted"
    eventually(lambda: set(yard.head.content.incomplete) >= {"leased"}, "a generation without it", within_s=30)
    restored = yard.root / "restored"
    done = yard.runtime("state", "restore", yard.bot_id, "--to", str(restored))
    assert done.returncode == 0
    assert (restored / ".the0-state/kept.json").read_text() == "2"
    ended = running.stop()
    honest(ended, by="bot", code=0)
    assert yard.head.content.incomplete == ()
    shutil.rmtree(restored)
    assert yard.next_start(anew=True)["kept"] == 2


@pytest.mark.attack("stdin, stdout and stderr closed", "nothing: the bot runs on, its end is seen")
def test_output_is_closed(yard: Yard) -> None:
    ended = yard.run("processes.py", act="close_output")
    honest(ended, by="bot", code=0)
    assert yard.next_start(anew=True)["kept"] == 2


@pytest.mark.attack(
    "a fork bomb of sessions of their own, deaf to SIGTERM, under a limit of 64 processes as engines set it, sync killed meanwhile",
    "sync waits for a process and goes on; all are killed at the bot's end; the last state is stored",
)
@as_root
def test_fork_bomb(yard: Yard) -> None:
    yard.place.popen |= {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))}
    begun = time.monotonic()
    ended = yard.run("processes.py", act="bomb", seconds=1.0, within_s=60)
    took_s = time.monotonic() - begun
    honest(ended, by="bot", code=0)
    assert yard.findings["limited"]
    assert leftovers() == []
    assert took_s < 40
    yard.place.popen.pop("preexec_fn")
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    ".the0/lock replaced by a file of its own while it is held, to let a second start skip the 35 s that it owes the first",
    "213: the state folder itself is the lock",
)
def test_the_lock_is_replaced(yard: Yard) -> None:
    running = yard.start(
        "import os, shutil, time\n"
        "lock = os.path.dirname(os.environ['STATE_DIR']) + '/.the0/lock'\n"
        "open(lock + '.new', 'w').close()\n"
        "os.replace(lock + '.new', lock)\n"
        "print('replaced', flush=True)\n"
        "time.sleep(60)\n"
    )
    running.wait_for("replaced")
    second = yard.place.start().end()
    assert second.code == 213
    assert running.stop().code == 0


OPTIONS = {"RLIMIT_NOFILE": "nofile", "RLIMIT_AS": "as", "RLIMIT_FSIZE": "fsize", "RLIMIT_NPROC": "nproc"}
LIMITS = tuple(OPTIONS)


@pytest.mark.attack(
    "limits of our processes set to nothing (prlimit: open files, memory, size of files, processes)",
    "Operation not permitted: what a bot starts may set its own limits only (seccomp)",
)
def test_our_limits_cannot_be_set(yard: Yard) -> None:
    ended = yard.run("processes.py", act="limits", names=LIMITS)
    honest(ended, by="bot", code=0)
    got = {name: yard.findings[f"{process} {name}"] for process in ("supervisor", "sync") for name in LIMITS}
    assert got == dict.fromkeys(LIMITS, "refused: PermissionError")
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "the same where the kernel has no seccomp, or by a process of the same user that is no bot's",
    "the run ends within a minute or two with 200 or 209 and a sentence (exit.json may be missing), nothing of it stays; the next "
    "start has the state",
)
@pytest.mark.parametrize("limit", LIMITS if SOAK else ("RLIMIT_AS", "RLIMIT_NPROC"))
@as_root
def test_our_limits_are_set_to_nothing(yard: Yard, limit: str) -> None:
    running = yard.start("processes.py", act="stay")
    running.wait_for("here")
    for pid in (running.process.pid, running.child("the0-sync")):
        subprocess.run(["prlimit", f"--pid={pid}", f"--{OPTIONS[limit]}=0:0"], check=True, **identity())
    running.send(signal.SIGTERM)
    ended = running.end(within_s=240)
    assert ended.code in (200, 209), ended.err
    assert "the0: " in ended.err
    assert "bug" not in ended.err
    assert ended.record is None or ended.record["code"] == ended.code, "where no file can be written there is none"
    eventually(lambda: not leftovers(), "the end of all that the run had started", within_s=240)
    assert yard.next_start(within_s=60)["kept"] == 1
