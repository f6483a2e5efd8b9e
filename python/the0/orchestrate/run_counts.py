"""How many runs ended how since a scheduler began; what is wrong with one is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from the0.runs import Run

Say = Callable[..., None]
"""`say(event, message, bot=…)`: news for a person or a log."""


@dataclass(slots=True)
class Counts:
    """Since this scheduler began."""

    say: Say
    results: dict[str, int] = field(default_factory=dict)
    late_s: float = 0.0
    """How late the latest start was."""

    def add(self, run: Run) -> None:
        """One that has an end."""
        if run.result is None:
            return
        self.results[run.result] = self.results.get(run.result, 0) + run.count
        if run.result in ("lost", "missed", "skipped"):
            more = f" and {run.count - 1} more slots" if run.count > 1 else ""
            self.say(run.result, f"Run {run.slot}{more}: {run.reason}", bot=run.bot_id)
