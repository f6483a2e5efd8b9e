"""What can be done about a bot: decided by `reconcile`, carried out by the runner."""

from __future__ import annotations

from dataclasses import dataclass

from the0.documents import Bot
from the0.errors import clip
from the0.orchestrate.engine import Exit


@dataclass(frozen=True, slots=True)
class StartBot:
    bot: Bot
    restart: int
    failures: int
    previous: Exit | None


@dataclass(frozen=True, slots=True)
class StopInstance:
    name: str
    bot_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class KillInstance:
    name: str
    bot_id: str
    asked_s: float
    """When its stop was asked for."""


@dataclass(frozen=True, slots=True)
class RemoveInstance:
    """Forget an ended one that is followed by none."""

    name: str
    bot_id: str
    discard: bool
    """The bot was removed, and all of its state is stored: what this machine holds of it can go."""


Action = StartBot | StopInstance | KillInstance | RemoveInstance


def describe(action: Action) -> str:
    """One line of a plan."""
    if isinstance(action, StartBot):
        again = f" again ({action.restart})" if action.restart else ""
        return f"start {clip(action.bot.id)}{again}"
    if isinstance(action, StopInstance):
        return f"stop {clip(action.bot_id)}: {action.reason}"
    if isinstance(action, KillInstance):
        return f"kill {clip(action.bot_id)}: it has not stopped in time"
    return f"forget {clip(action.bot_id)}{', and remove its local folder' if action.discard else ''}"
