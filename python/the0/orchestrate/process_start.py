"""Starts `runtime execute` as a process of this machine, in two steps: first it is there, then it is told what to do."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final

from the0 import files, names
from the0.documents import Bot
from the0.orchestrate import processes
from the0.orchestrate.engine import Start
from the0.orchestrate.place import Place

SETTLING_S: Final = 2.0
SETTLED_LOOK_MS: Final = 25


@dataclass(frozen=True, slots=True)
class Begun:
    """It waits for `tell` or `drop`, one of which must follow."""

    child: subprocess.Popen[bytes]
    write_fd: int

    def tell(self, place: Place) -> None:
        """What to do: it takes its place and begins."""
        try:
            files.write_all(self.write_fd, place.encode())
        except BrokenPipeError:
            pass  # it has ended: its exit code says why
        finally:
            os.close(self.write_fd)

    def drop(self) -> None:
        """It ends without having done anything."""
        os.close(self.write_fd)


def begin(*, stdout: int, stderr: int | IO[bytes], stdin: int = subprocess.DEVNULL, flags: Sequence[str] = ()) -> Begun:
    """`flags`: more of `execute`'s. OSError where no process can be had."""
    read_fd, write_fd = os.pipe()
    try:
        child = subprocess.Popen(
            [*_command(read_fd), *flags],
            env={},
            cwd="/",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(read_fd,),
            start_new_session=True,
        )
    except BaseException:
        os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
    return Begun(child, write_fd)


def _command(read_fd: int) -> Sequence[str]:
    """See `place`."""
    return [sys.executable, "-I", "-m", "the0.cli", "execute", f"--place={read_fd}"]


def environment(bot: Bot, wanted: Start, *, query_port: int | None) -> dict[str, str]:
    """Of a bot's run, without its folders."""
    told = {
        names.BOT_ID: bot.id,
        names.RUNTIME: bot.runtime,
        names.ENTRYPOINT: bot.entrypoint,
        names.CODE_FILE: bot.file_path,
        names.BOT_CONFIG: bot.config_json,
        names.BOT_TYPE: bot.kind,
    }
    for name, value in (
        (names.QUERY_ENTRYPOINT, bot.query_entrypoint),
        (names.THE0_QUERY_PORT, str(query_port) if query_port is not None else None),
        (names.THE0_SLOT, wanted.slot),
        (names.THE0_RUN_TOKEN, wanted.token),
        (names.THE0_ENDED, wanted.previous.instance if wanted.previous is not None else None),
    ):
        if value is not None:
            told[name] = value
    return told


def settle(pid: int, pidfd: int) -> None:
    """Until the bot has begun, as far as can be told from outside, or has ended: so that who starts many bots in a few threads
    starts as many of them at the same time, and no more."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + SETTLING_S
    while time.monotonic() < deadline and not ended.poll(SETTLED_LOOK_MS):
        if processes.has_child(pid, "the0-sync"):
            return
