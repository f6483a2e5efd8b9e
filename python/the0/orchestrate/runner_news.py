"""What there is to say about realtime instances: each start and each end once, and what comes after an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from the0.orchestrate.engine import Instance
from the0.orchestrate.reconcile import Decision

Say = Callable[..., None]
"""`say(event, message, bot=…)`: news for a person or a log."""


class InstanceNews:
    """For one thread."""

    def __init__(self, say: Say, *, known: Sequence[Instance]) -> None:
        """What is `known` already is no news, and neither are the ends among it."""
        self._say = say
        self._seen: dict[str, Instance] = {}
        self._told = {each.name: (each.started_s, each.state == "ended") for each in known if each.kind == "realtime"}
        """Of which instance (by its start) its start was told, and whether its end was, too."""

    def tell(self, actual: Sequence[Instance], *, decide: Callable[[Instance], Decision], now_s: float) -> None:
        """Once a pass. `decide`: what will be done about the bot of an ended one."""
        seen = {each.name: each for each in actual if each.kind == "realtime"}
        if seen == self._seen:
            return
        self._seen = seen
        self._told = {name: told for name, told in self._told.items() if name in seen}
        for name, each in seen.items():
            started_s, ended = self._told.get(name, (None, False))
            if started_s != each.started_s:
                if each.state == "starting":
                    continue
                ended = False
                self._say("started", f"restart {each.restart}" if each.restart else "", bot=each.bot_id)
            if each.state == "ended" and not ended:
                ended = True
                if each.exit is not None:
                    said = each.exit.reason + _outlook(decide(each), now_s=now_s)
                    self._say("ended", said, bot=each.bot_id, code=each.exit.code, by=each.exit.by)
            self._told[name] = each.started_s, ended


def _outlook(decision: Decision, *, now_s: float) -> str:
    if decision.status == "waiting" and decision.due_s is not None:
        return f" It starts again in {decision.due_s - now_s:.0f} s."
    if decision.status == "error":
        return " It is not started again by itself: correct it, or restart it."
    return ""
