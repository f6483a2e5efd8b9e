"""What starts and stops bots: one protocol over process groups, Docker containers and Kubernetes Pods.

An engine decides nothing. It tells what there is, with all that whoever decides must know, so that a service which
starts again adopts what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from the0.documents import Bot

InstanceKind = Literal["realtime", "scheduled", "query"]
State = Literal["starting", "running", "stopping", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How an instance ended."""

    code: int
    by: Literal["bot", "runtime"]
    reason: str
    """One sentence."""
    at_s: float
    """Unix seconds."""
    lines: tuple[str, ...] = ()
    """The last ones that it printed, at most 20, clipped."""
    instance: str | None = None
    """Of the claim that it held, where that is known: THE0_ENDED of the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One start of a bot: a process group, a container, a Pod. At most one that is not ended exists for a bot and kind."""

    bot_id: str
    kind: InstanceKind
    name: str
    """The engine's own name for it; not used again for another instance of another bot."""
    config_hash: str
    restart: int
    """How many instances of the same configuration came before it."""
    failures: int
    """How many of those ended unasked, one after the other, without 10 minutes of health between: the backoff's exponent."""
    state: State
    """"ended" only once nothing of it runs any more, its final sync included."""
    started_s: float
    """Unix seconds."""
    stop_asked_s: float | None = None
    """When we asked it to stop; None: never."""
    stop_reason: str | None = None
    exit: Exit | None = None
    """Of an ended one."""
    slot: str | None = None
    token: str | None = None
    previous: Exit | None = None
    """How its predecessor ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    bot: Bot
    restart: int = 0
    failures: int = 0
    slot: str | None = None
    """THE0_SLOT and THE0_RUN_TOKEN of a scheduled run."""
    token: str | None = None
    previous: Exit | None = None
    """How the former instance ended: recorded with the new one; its `instance` becomes THE0_ENDED."""


@dataclass(frozen=True, slots=True)
class Usage:
    memory_bytes: int
    """Of all its processes, ours beside the bot included."""
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswer:
    """Of a query of stored state."""

    answer: Mapping[str, Any]
    """The bot's own `{"status", "data" | "error"}`."""
    generation: int | None
    """Of the stored state that it was asked against."""


class Engine(Protocol):
    """Every method may be called from any thread, and raises Fault where the engine itself fails."""

    def actual(self) -> Sequence[Instance]:
        """All there is, ended ones included until they are removed or replaced by a start. Cheap: no work per bot where
        nothing happened."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> None:
        """`wake` is called, from some thread, soon after anything may have changed. Subscribe first, then ask `actual`."""
        ...

    def start(self, wanted: Start) -> str:
        """Starts an instance in place of the ended one, if there is one; returns its name once it is started. A Fault:
        nothing was started. Never a second copy: Fault RUNNING_HERE while one is not ended."""
        ...

    def stop(self, name: str, *, grace_s: float, reason: str) -> None:
        """Begins the stop: SIGTERM to the bot, SIGKILL after `grace_s`, then its final sync; the end is seen in `actual`.
        Idempotent; a missing or ended one is no error."""
        ...

    def kill(self, name: str) -> None:
        """Ends it at once, as far as the final sync allows. Idempotent."""
        ...

    def remove(self, name: str) -> None:
        """Forgets an ended instance. One that is not ended is left alone; a missing one is no error."""
        ...

    def discard(self, bot_id: str) -> None:
        """Removes what this machine holds of a bot that was removed, state included (what is stored stays). Only where nothing
        of it runs; else nothing happens."""
        ...

    def usage(self, name: str) -> Usage | None:
        """Now; None where that cannot be known or nothing runs."""
        ...

    def query_address(self, bot_id: str) -> tuple[str, int] | None:
        """Host and port of a running realtime bot's query process; None where there is none."""
        ...

    def query(self, bot: Bot, *, path: str, params: Mapping[str, Any], timeout_s: float) -> QueryAnswer:
        """A query of the newest stored state; blocks. Raises Fault: QUERY_FAILED, TIMED_OUT, or why it cannot start."""
        ...

    def close(self) -> None:
        """Stops watching. Leaves what runs alone. Idempotent."""
        ...
