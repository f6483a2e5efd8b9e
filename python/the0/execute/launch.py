"""The first processes of a run, started before the rest of the supervisor is even imported: each millisecond counts twice here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from the0 import child
from the0.errors import ExitCode, Fatal
from the0.execute import preparing
from the0.execute.languages import WORD_FD, Language
from the0.execute.preparing import Prepare, Prepared
from the0.execute.record import Outcome
from the0.frozen import dataclass

if TYPE_CHECKING:
    from the0.execute.keeper import Keep
    from the0.execute.serving import Program

KeepAfter = Callable[[Prepared], "Keep"]
Report = Callable[[Outcome], bool]
"""Puts the reason of a start that failed without a claim into the stored log; whether it arrived there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run and by which means."""

    instance: str
    language: Language
    argv: list[str]
    environment: Mapping[str, str]
    folder: str
    """CODE_PATH: the bot's working directory."""
    file: str
    """The entrypoint's path below `folder`."""
    stop_grace_s: float
    prepare: Prepare
    """Runs in a forked child: brings code and state; its outcome is what `keep` is made from."""
    keep: KeepAfter | None
    """None: nothing is synced here, a sidecar does it (or nobody)."""
    report: Report
    serve: Callable[[], Program] | None = None
    """What answers queries beside the bot, or the Fault that says why nothing can; None: nothing is to."""
    confine: Callable[[], None] | None = None
    """Called in the bot's process, last before its program."""
    shared_fds: tuple[int, ...] = ()
    """What forked children must hold too: the lock."""


class Launched:
    """What runs already, and the descriptors that go with it."""

    def __init__(
        self, begun: preparing.Begun, *, output_read_fd: int, output_write_fd: int, not_ours: frozenset[int]
    ) -> None:
        self.preparing = begun
        self.output_read_fd = output_read_fd
        self.output_write_fd = output_write_fd
        """For the bot; -1 once it has it."""
        self.word_fd = -1
        """Where an early program waits for the word to go; -1 once it was given."""
        self.bot: child.Spawned | None = None
        self.not_ours = not_ours
        """Children that this process had before: whoever exec'd us may have left some, and they are none of a bot's."""

    def spawn_bot(self, job: Job, *, word_fd: int | None = None) -> child.Spawned:
        self.bot = child.spawn(
            job.argv,
            env=job.environment,
            folder=job.folder,
            output_fd=self.output_write_fd,
            word_fd=word_fd,
            confine=job.confine,
        )
        self.drop_output()
        return self.bot

    def drop_output(self) -> None:
        if self.output_write_fd != -1:
            os.close(self.output_write_fd)
            self.output_write_fd = -1

    def drop_word(self) -> None:
        if self.word_fd != -1:
            os.close(self.word_fd)
            self.word_fd = -1


def launch(job: Job) -> Launched:
    """Begins to fetch code and state, and starts the bot's interpreter where that can wait for them. Raises Fatal (INTERNAL) where
    this machine starts no more processes; nothing is running then."""
    not_ours = frozenset(child.children())
    try:
        begun = preparing.begin(job.prepare, keep_fds=job.shared_fds)
        read_fd, write_fd = os.pipe()
        launched = Launched(begun, output_read_fd=read_fd, output_write_fd=write_fd, not_ours=not_ours)
        if job.language.early:
            word_read, launched.word_fd = os.pipe()
            launched.spawn_bot(job, word_fd=word_read)
            os.close(word_read)
    except OSError as reason:
        raise Fatal(
            f"No process can be started: {reason.strerror}; raise this user's or container's limits.",
            code=ExitCode.INTERNAL,
        ) from reason
    return launched


assert WORD_FD == 3, "child.spawn puts it there"
