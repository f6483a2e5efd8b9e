"""One run of one bot, from the lock to the exit code. Linear: each step runs the loop until what it waits for has happened.

Stdlib only and single-threaded, since everything with credentials is forked from here without exec.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from the0 import child, privacy
from the0.errors import ExitCode, Fatal, Fault
from the0.execute import oom, target
from the0.execute.fence import watch_fenced
from the0.execute.keeper import TAKEN_OVER, Keeper, Verdict
from the0.execute.launch import Job, Launched
from the0.execute.loop import Loop
from the0.execute.output import Log, Output
from the0.execute.preparing import Prepared, Preparing, stopped_early
from the0.execute.record import Outcome, RunFolder
from the0.execute.strays import end_strays

if TYPE_CHECKING:
    from the0.execute.serving import Serving

STRAYS_GRACE_S = 2.0
"""How long what a bot left behind may take to end after SIGTERM, when the bot itself ended unasked."""
KILL_S = 2.0
"""How long the end of a bot that was killed is waited for, before who keeps it from us is looked for."""
DRAIN_S = 2.0
"""How long a pipe that somebody out of our reach still holds is read on after the bot's end."""
ECHO_S = 1.0
"""How long a reader of our stdout that lags behind is waited for at the very end."""

NOT_STORED = "The bot's last state or logs did not reach the store: its log says why."


def run(job: Job, launched: Launched, *, log: Log, run_folder: RunFolder, echo_fd: int = 1) -> Outcome:
    """Runs what was launched to its end. Takes over this process's signals. Never raises a Fault. `log` is closed."""
    privacy.become_subreaper()
    return _Run(job, launched, loop=Loop(), log=log, run_folder=run_folder, echo_fd=echo_fd).run()


class _Run:
    def __init__(
        self, job: Job, launched: Launched, *, loop: Loop, log: Log, run_folder: RunFolder, echo_fd: int
    ) -> None:
        self._job = job
        self._launched = launched
        self._loop = loop
        self._log = log
        self._run_folder = run_folder
        self._output = Output(loop, launched.output_read_fd, log=log, echo_fd=echo_fd)
        self._keeper: Keeper | None = None
        self._serving: Serving | None = None
        self._memory = oom.look()
        self._end: child.End | None = None
        self._killed = False
        self._fenced = False
        if launched.bot is not None:
            loop.on_end(launched.bot.pid, self._note_end)

    def run(self) -> Outcome:
        preparing = Preparing(self._loop, self._launched.preparing)
        try:
            self._get_ready(preparing.wait(grace_s=self._job.stop_grace_s))
            self._start_bot()
            self._keep_company()
            self._serve_queries()
            self._loop.run_until(lambda: self._end is not None or self._must_end())
            outcome = self._stop_bot()
        except Fault as fault:
            outcome = Outcome(
                by="runtime", code=int(fault.code), reason=fault.sentence, stop_asked=self._loop.stop_asked
            )
        self._end_rest()
        if outcome.by == "runtime" or (outcome.code != 0 and not outcome.stop_asked):
            self._say(outcome)
        self._run_folder.write(outcome, instance=self._job.instance)
        self._log.close()
        outcome = self._end_sync(outcome)
        self._loop.run_until(lambda: self._output.echoed, deadline=time.monotonic() + ECHO_S)
        return outcome

    def _say(self, outcome: Outcome) -> None:
        """In the bot's log, once: by way of sync, or in the store directly where there is none."""
        if self._keeper is not None or not self._job.report(outcome):
            self._log.say(outcome.reason)

    # --- its start --------------------------------------------------------------------------------

    def _get_ready(self, prepared: Prepared) -> None:
        """Everything that may still forbid the bot's start. Raises the Fault that does."""
        if self._job.keep is not None and prepared.claimed:
            # Before anything is raised: the claim has to be given back.
            keep = self._job.keep(prepared)
            self._keeper = Keeper(self._loop, keep, keep_fds=self._job.shared_fds, say=self._log.say)
        if self._job.keep is None:
            watch_fenced(self._loop, self._run_folder, self._note_fenced)
        if prepared.fault is not None:
            # What fails after a request to stop may well fail because of it.
            raise stopped_early() if self._loop.stop_asked else prepared.fault
        if self._keeper is not None and prepared.wait_s > 0:
            self._keeper.start()
            self._loop.run_until(self._must_end, deadline=time.monotonic() + prepared.wait_s)
        verdict = self._verdict()
        if verdict is not None:
            raise Fatal(verdict.reason, code=ExitCode(verdict.code))
        if self._loop.stop_asked:
            raise stopped_early()

    def _must_end(self) -> bool:
        return self._loop.stop_asked or self._verdict() is not None

    def _verdict(self) -> Verdict | None:
        if self._fenced:
            return Verdict(code=ExitCode.FENCED, reason=TAKEN_OVER)
        return self._keeper.verdict if self._keeper is not None else None

    def _note_fenced(self) -> None:
        self._fenced = True

    def _start_bot(self) -> None:
        row = self._job.language
        target.check(self._job.folder, self._job.file, executable=row.executable, folders=row.folders)
        early = self._launched.bot is not None
        spawned = self._launched.bot or self._spawn_bot()
        failure = child.exec_failure(spawned)
        if failure is not None:
            program = self._job.argv[0]
            why = f"{failure.strerror}; repair this installation" if early else target.not_started(program, failure)
            raise Fatal(
                f"The bot cannot be started: {program}: {why}.",
                code=ExitCode.LANGUAGE if early else ExitCode.ENTRYPOINT,
            )
        if early:
            self._say_go()

    def _keep_company(self) -> None:
        """After the word to go, since a fork takes a moment too."""
        if self._keeper is None:
            return
        if self._launched.bot is not None:
            self._keeper.watch_over(self._launched.bot.pid)
        if self._keeper.pid is None:
            self._let_start(self._job.language.undisturbed_s)
            self._keeper.start()

    def _let_start(self, within_s: float) -> None:
        """Stays out of the bot's way until it runs, as far as can be seen from here."""
        if within_s > 0:
            self._loop.run_until(
                lambda: self._output.heard or self._end is not None or self._must_end(),
                deadline=time.monotonic() + within_s,
            )

    def _serve_queries(self) -> None:
        if self._job.serve is None:
            return
        from the0.execute.serving import Serving  # most bots serve none

        try:
            program = self._job.serve()
        except Fault as fault:
            self._log.say(f"No queries are served: {fault.sentence}")
            return
        self._serving = Serving(self._loop, program, heard=self._output.insert, say=self._log.say)
        self._serving.start()

    def _say_go(self) -> None:
        try:
            os.write(self._launched.word_fd, b"g")
        except BrokenPipeError:
            self._loop.run_until(lambda: self._end is not None)
            raise Fatal(
                f"{self._job.argv[0]} ended with {self._end} before the bot was started: its output says why.",
                code=ExitCode.LANGUAGE,
            ) from None
        self._launched.drop_word()

    def _spawn_bot(self) -> child.Spawned:
        try:
            spawned = self._launched.spawn_bot(self._job)
        except OSError as reason:
            raise Fatal(
                f"No process can be started for the bot: {reason.strerror}; raise this user's or container's limits.",
                code=ExitCode.INTERNAL,
            ) from reason
        self._loop.on_end(spawned.pid, self._note_end)
        return spawned

    def _note_end(self, end: child.End) -> None:
        self._end = end

    # --- its end ----------------------------------------------------------------------------------

    def _stop_bot(self) -> Outcome:
        """Stops it if it runs still; how it ended."""
        verdict = self._verdict()
        if self._end is None:
            self._end_of_grace()
        outcome = self._outcome()
        return outcome.overruled(code=verdict.code, reason=verdict.reason) if verdict is not None else outcome

    def _end_of_grace(self) -> None:
        bot = self._launched.bot
        assert bot is not None
        child.send(bot.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._job.stop_grace_s
        if not self._loop.run_until(lambda: self._end is not None, deadline=deadline):
            self._killed = True
            child.send_group(bot.pid, signal.SIGKILL)
            if not self._loop.run_until(lambda: self._end is not None, deadline=time.monotonic() + KILL_S):
                self._end_held_back()

    def _end_held_back(self) -> None:
        """The bot was killed, and nobody tells us: another process of its own traces it, or it waits for a device within the kernel.
        Ends that other one; what does not help then is not waited for, since its state has to be stored."""
        self._stop_rest(grace_s=0.0)
        if self._end is None:
            self._end = child.End(code=None, signal=signal.SIGKILL)

    def _outcome(self) -> Outcome:
        end = self._end
        assert end is not None
        memory = oom.look()
        starved = not self._killed and end.signal == signal.SIGKILL and memory.killed_since(self._memory)
        if starved:
            reason = f"The bot ran out of memory: the kernel killed it at its limit{memory.limit}; raise the limit."
        elif self._killed:
            reason = f"The bot did not end within {self._job.stop_grace_s:g} s of SIGTERM and was killed."
        else:
            reason = f"The bot ended with {end}."
        return Outcome(
            by="runtime" if self._killed else "bot",
            code=end.exit_code,
            reason=reason,
            bot_code=end.exit_code,
            signal=end.signal,
            oom=starved,
            stop_asked=self._loop.stop_asked,
        )

    def _end_rest(self) -> None:
        """Whatever is left of the bot is ended, and its last words are read."""
        bot = self._launched.bot
        if bot is not None and self._end is None:
            # Started early, and never told to go.
            child.send_group(bot.pid, signal.SIGKILL)
            self._loop.run_until(lambda: self._end is not None)
        self._launched.drop_word()
        self._launched.drop_output()
        self._stop_rest(grace_s=0.0 if self._killed else STRAYS_GRACE_S)
        if self._serving is not None:
            self._serving.close()
        if not self._loop.run_until(lambda: self._output.closed, deadline=time.monotonic() + DRAIN_S):
            self._output.abandon()

    def _stop_rest(self, *, grace_s: float) -> None:
        if self._serving is not None:
            self._serving.stop()
        end_strays(self._loop, spared=self._spared, grace_s=grace_s)

    def _spared(self) -> set[int]:
        keeper = self._keeper.pid if self._keeper is not None else None
        return {*self._launched.not_ours, *(() if keeper is None else (keeper,))}

    def _end_sync(self, outcome: Outcome) -> Outcome:
        if self._keeper is None:
            return outcome
        code = self._keeper.finish()
        if code == 0 or outcome.code in (ExitCode.FENCED, ExitCode.SYNC_FAILED):
            return outcome
        if outcome.bot_code is None:
            return outcome  # there was no bot, hence nothing that could be lost
        if code == ExitCode.FENCED:
            return outcome.overruled(code=code, reason=TAKEN_OVER)
        return outcome.overruled(code=ExitCode.FINAL_SYNC, reason=self._keeper.starved or NOT_STORED)
