"""Every failure of ours: its kind, its exit code, and one sentence for a person.

Three kinds. `Transient` is retried with backoff; `Permanent` is reported and ends the operation;
`Fatal` ends the process. A bot's own exit code is passed on untouched, so ours keep to 200..219.
"""

from __future__ import annotations

from enum import IntEnum

from the0.frozen import dataclass


class ExitCode(IntEnum):
    """Exit codes of `runtime execute`, `runtime daemon` and `runtime state`; all others are the bot's."""

    INTERNAL = 200
    USAGE = 201
    LANGUAGE = 202
    CODE = 203
    ENTRYPOINT = 204
    STORE_UNREACHABLE = 205
    STORE_DENIED = 206
    STORE_UNSUITABLE = 207
    LOCAL_DISK = 208
    FINAL_SYNC = 209
    FENCED = 210
    REFUSED = 211
    SLOT_TAKEN = 212
    RUNNING_HERE = 213
    STATE_DAMAGED = 214
    STATE_LIMIT = 215
    SYNC_FAILED = 216
    QUERY_FAILED = 217
    TIMED_OUT = 218
    STOPPED_EARLY = 219


@dataclass(frozen=True, slots=True)
class CodeMeaning:
    code: ExitCode
    meaning: str
    restart: bool
    """Whether starting again by itself can help; False means a person has to look first."""


EXIT_CODES: tuple[CodeMeaning, ...] = (
    CodeMeaning(ExitCode.INTERNAL, "nothing left for the runtime to run on, or a bug of it; its log says which", True),
    CodeMeaning(ExitCode.USAGE, "a variable or flag is missing or malformed", False),
    CodeMeaning(ExitCode.LANGUAGE, "the runtime is unknown, or this machine lacks it", False),
    CodeMeaning(ExitCode.CODE, "the code archive is missing, corrupt, hostile or over its limits", False),
    CodeMeaning(ExitCode.ENTRYPOINT, "the entrypoint is not in the archive, or cannot be started", False),
    CodeMeaning(ExitCode.STORE_UNREACHABLE, "the object store does not answer", True),
    CodeMeaning(ExitCode.STORE_DENIED, "the object store denies access, or a bucket is missing", True),
    CodeMeaning(ExitCode.STORE_UNSUITABLE, "the object store lacks conditional PUT", False),
    CodeMeaning(ExitCode.LOCAL_DISK, "the local disk is full, read-only or failing", True),
    CodeMeaning(ExitCode.FINAL_SYNC, "the bot ended, but its last state or logs did not reach the store", True),
    CodeMeaning(ExitCode.FENCED, "another instance took over this bot", False),
    CodeMeaning(ExitCode.REFUSED, "local and stored state disagree; a person must choose", False),
    CodeMeaning(ExitCode.SLOT_TAKEN, "another run holds this schedule slot", False),
    CodeMeaning(ExitCode.RUNNING_HERE, "this bot already runs on this state folder", False),
    CodeMeaning(ExitCode.STATE_DAMAGED, "stored state is damaged, or of a newer format", False),
    CodeMeaning(ExitCode.STATE_LIMIT, "state is over its size limit", False),
    CodeMeaning(ExitCode.SYNC_FAILED, "the sync process could not be kept alive", True),
    CodeMeaning(ExitCode.QUERY_FAILED, "the query process failed or gave no usable answer", False),
    CodeMeaning(ExitCode.TIMED_OUT, "the run exceeded its time limit", False),
    CodeMeaning(ExitCode.STOPPED_EARLY, "a stop was asked for before the bot had started", False),
)


class Fault(Exception):
    """A failure with a sentence for a person and an exit code. Never holds a secret or a payload."""

    def __init__(self, sentence: str, *, code: ExitCode) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


class Transient(Fault):
    """May pass by itself; the caller retries with backoff until its deadline."""


class Permanent(Fault):
    """Will not pass by itself; reported, the operation ends."""


class Fatal(Fault):
    """The process must end with this exit code."""


def clip(text: str, *, limit: int = 200) -> str:
    """Foreign text made fit for one log line: control characters escaped, at most `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
