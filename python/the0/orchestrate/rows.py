"""What a running platform tells of its bots, one row each: what `ps` and `/metrics` are made of. See control_client.Row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from the0.documents import BadBot, Bot
from the0.errors import clip
from the0.orchestrate.engine import Instance
from the0.orchestrate.reconcile import Decision
from the0.orchestrate.timetable import Told


def row(bot_id: str, bot: Bot | BadBot | None, decision: Decision, newest: Instance | None) -> dict[str, Any]:
    ended = newest.exit or newest.previous if newest is not None else None
    return {
        "id": bot_id,
        "type": bot.kind if bot is not None else newest.kind if newest is not None else "realtime",
        "status": decision.status,
        "reason": clip(decision.reason, limit=1000),
        "since": decision.since_s,
        "restarts": newest.restart if newest is not None else 0,
        "next_s": decision.due_s if decision.status == "waiting" else None,
        "last_exit": {"code": ended.code, "by": ended.by, "reason": ended.reason, "at_s": ended.at_s}
        if ended is not None
        else None,
        "slot": newest.slot if newest is not None else None,
        "memory_bytes": None,
        "cpu_s": None,
        "metrics": {},
    }


def scheduled(bot: Bot | BadBot, told: Told | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """What is different in the row of a scheduled bot."""
    if isinstance(bot, BadBot) or made["status"] in ("running", "stopping"):
        return {}
    if not bot.enabled:
        return {"status": "stopped"}
    if told is None:
        return {"status": "scheduled"}
    if told.error is not None:
        return {"status": "error", "reason": told.error}
    if told.phase is not None:
        return {"status": "running", "reason": "it waits for its turn", "slot": told.slot, "since": told.since_s}
    return {
        "status": "paused" if bot.paused else "scheduled",
        "reason": "",
        "next_s": None if bot.paused else told.next_s,
    }
