"""The sync process beside the bot: forked, listened to, forked again when it dies, continued when somebody stops it, ended last."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from the0 import child
from the0.errors import EXIT_CODES, ExitCode
from the0.execute import oom
from the0.execute.loop import Loop
from the0.frozen import dataclass

if TYPE_CHECKING:
    from threading import Event

Notify = Callable[[str], None]
Keep = Callable[["Event", Notify], int]
"""`keep(stop, notify)`: keeps state and logs in the store until `stop`, then once more; returns an exit code.
Runs in a forked child. `notify` takes "ready", "fenced" or "store-down"."""

DEATHS = 8
DEATHS_WITHIN_S = 60.0
STOPS = 60
"""So often somebody may stop it (SIGSTOP) within DEATHS_WITHIN_S: more, and it gets nothing done."""
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 15.0
NO_PROCESS_PAUSE_S = 1.0
NO_PROCESS_AT_END_S = 30.0
"""How long the final sync may wait for a process to run in."""
FINAL_TRIES = 3

TAKEN_OVER = "Another instance took over this bot: look where it runs, and stop one of them."

_HOPELESS = frozenset(meaning.code for meaning in EXIT_CODES if not meaning.restart)
_MAY_PASS = frozenset({ExitCode.STORE_UNREACHABLE, ExitCode.STORE_DENIED, ExitCode.LOCAL_DISK})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the bot must be stopped."""

    code: int
    reason: str


class Keeper:
    def __init__(self, loop: Loop, keep: Keep, *, keep_fds: tuple[int, ...], say: Callable[[str], None]) -> None:
        self.verdict: Verdict | None = None
        self.starved: str | None = None
        """The sentence that says so, if the kernel killed it for lack of memory."""
        self.pid: int | None = None
        self._bot_pid: int | None = None
        self._loop = loop
        self._keep = keep
        self._keep_fds = keep_fds
        self._say = say
        self._forked: child.Forked | None = None
        self._deaths: list[float] = []
        self._stops: list[float] = []
        self._said = False
        self._said_stopped = False
        self._memory = oom.look()
        self._finishing = False
        self._finishing_since_s = 0.0
        self._tries_left = FINAL_TRIES
        self._final_code: int | None = None

    def start(self) -> None:
        try:
            self._fork()
        except OSError:
            # No process can be had just now (a bot's own may be too many): later.
            if self._finishing and time.monotonic() > self._finishing_since_s + NO_PROCESS_AT_END_S:
                self._final_code = int(ExitCode.FINAL_SYNC)
                return
            self._loop.after(NO_PROCESS_PAUSE_S, self._start_again)

    def _fork(self) -> None:
        notices_read, notices_write = os.pipe()
        os.set_blocking(notices_read, False)
        keep = self._keep

        def work(stop: Event) -> int:
            return keep(stop, lambda word: _tell(notices_write, word))

        try:
            forked = child.fork_child("sync", work, keep=(*self._keep_fds, notices_write))
        except OSError:
            os.close(notices_read)
            raise
        finally:
            os.close(notices_write)
        self.pid, self._forked = forked.pid, forked
        if self._bot_pid is not None:
            forked.leave_behind(self._bot_pid)
        self._loop.on_end(forked.pid, lambda end: self._ended(end, notices_read))
        self._loop.on_stop(forked.pid, self._stopped)
        self._loop.watch(notices_read, lambda: self._listen(notices_read))
        if self._finishing:
            self._ask_to_stop()

    def watch_over(self, bot_pid: int) -> None:
        """Should the supervisor die, the sync process kills the bot's process group."""
        self._bot_pid = bot_pid
        if self._forked is not None:
            self._forked.leave_behind(bot_pid)

    def finish(self) -> int:
        """Asks for the final sync and waits for it; its exit code, 0 if all is stored and the claim released."""
        self._finishing, self._finishing_since_s = True, time.monotonic()
        if self.pid is not None:
            self._ask_to_stop()
        elif self._final_code is None:
            self.start()  # it had died and was to be started a little later
        self._loop.run_until(lambda: self._final_code is not None)
        assert self._final_code is not None
        return self._final_code

    def _ask_to_stop(self) -> None:
        if self._forked is not None:
            self._forked.ask_to_stop()
            self._forked = None

    def _listen(self, fd: int) -> None:
        try:
            words = os.read(fd, 4096)
        except BlockingIOError:
            return
        if not words:
            self._loop.watch(fd, None)
        for word in words.split():
            if word == b"fenced":
                self._judge(ExitCode.FENCED, TAKEN_OVER)
            elif word == b"store-down":
                self._judge(
                    ExitCode.STORE_UNREACHABLE,
                    "The store has not answered for too long, and the0.store_down says stop.",
                )

    def _judge(self, code: int, reason: str) -> None:
        if self.verdict is None:
            self.verdict = Verdict(code=code, reason=reason)

    def _ended(self, end: child.End, notices_fd: int) -> None:
        self._listen(notices_fd)
        self._loop.watch(notices_fd, None)
        os.close(notices_fd)
        if self._forked is not None:
            self._forked.drop()
            self._forked = None
        self.pid = None
        self._note_memory(end)
        if self._finishing:
            self._ended_finally(end)
        elif end.code == ExitCode.FENCED:
            self._final_code = end.code
            self._judge(end.code, TAKEN_OVER)
        elif end.code is not None and end.code in _HOPELESS:
            self._final_code = end.code
            self._judge(end.code, f"The sync process ended with {end}, so the bot's state is no longer kept.")
        else:
            self._died(end)

    def _note_memory(self, end: child.End) -> None:
        memory, former = oom.look(), self._memory
        self._memory = memory
        if end.signal == signal.SIGKILL and memory.killed_since(former):
            told = self.starved is not None
            self.starved = (
                f"The sync process ran out of memory: the kernel killed it at the bot's limit{memory.limit}. What it could not store is "
                "on this disk only: raise the limit, or keep fewer files."
            )
            if not told and not self._finishing:
                self._say(self.starved)

    def _ended_finally(self, end: child.End) -> None:
        self._tries_left -= 1
        if end.code is not None:
            self._final_code = end.code
        elif self._tries_left > 0:
            self.start()
        else:
            self._final_code = int(ExitCode.FINAL_SYNC)

    def _died(self, end: child.End) -> None:
        now = time.monotonic()
        self._deaths = [when for when in self._deaths if now - when < DEATHS_WITHIN_S] + [now]
        # A store or disk that fails for long ends it again and again, in good order: that alone never stops the bot.
        if len(self._deaths) >= DEATHS and (end.code is None or end.code not in _MAY_PASS):
            self._judge(
                ExitCode.SYNC_FAILED,
                self.starved
                or f"The sync process died {DEATHS} times within {DEATHS_WITHIN_S:.0f} s, last with {end}.",
            )
            return
        if not self._said:
            self._said = True
            self._say(f"The sync process ended unasked ({end}); it is started again, and the bot goes on.")
        pause_s = min(FIRST_PAUSE_S * 4 ** (len(self._deaths) - 1), LAST_PAUSE_S)
        self._loop.after(pause_s, self._start_again)

    def _stopped(self) -> None:
        now = time.monotonic()
        self._stops = [when for when in self._stops[-STOPS:] if now - when < DEATHS_WITHIN_S] + [now]
        if len(self._stops) > STOPS:
            self._judge(
                ExitCode.SYNC_FAILED, f"The sync process was stopped over {STOPS} times within {DEATHS_WITHIN_S:.0f} s."
            )
        elif not self._said_stopped:
            self._said_stopped = True
            self._say("Somebody stopped the sync process (SIGSTOP); it was continued.")

    def _start_again(self) -> None:
        if self.pid is None and self._final_code is None and (self._finishing or self.verdict is None):
            self.start()


def _tell(fd: int, word: str) -> None:
    os.write(fd, word.encode() + b"\n")
