"""`runtime ps`: the bots, what they do and why, what is stored of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from the0 import documents
from the0.documents import BadBot, Bot
from the0.errors import Fault, Permanent
from the0.objects.store import ObjectStore
from the0.orchestrate import process_record
from the0.orchestrate.bots import Document
from the0.orchestrate.client import NOT_RUNNING, Client
from the0.orchestrate.processes import open_pidfd
from the0.orchestrate.tables import Screen, age, ago, rfc3339, size, until
from the0.runs import Run, Runs
from the0.sync.head import HeadFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A bot's stored state, in short."""

    generation: int | None = None
    bytes: int | None = None
    committed_s: float | None = None
    incomplete: int = 0
    stale: int = 0
    problem: str = ""


def ps(client: Client, screen: Screen, bot_ids: Sequence[str]) -> int:
    """All bots, or those that are named. Exit code 0."""
    now_s = time.time()
    chosen = [client.bot(bot_id) for bot_id in dict.fromkeys(bot_ids)] if bot_ids else client.all()
    bots = documents.read_all((each.kind, {**each.body, "id": each.id}) for each in chosen)
    control = client.control()
    live = {row["id"]: row for row in control.ps([each.id for each in chosen])} if control is not None else {}
    rows = []
    for document in chosen:
        bot = bots[document.id]
        live_row: Mapping[str, Any] = live.get(document.id) or _at_rest(client, bot, up=control is not None)
        kept = _kept(client.store, client.buckets.state, document.id)
        rows.append(_row(document, bot, live_row, kept, last=_last_run(client, document)))
    if screen.as_json:
        screen.json(rows)
        return 0
    if not rows:
        screen.say("There are no bots: `runtime deploy` makes one.")
        return 0
    headers = (
        "BOT",
        "TYPE",
        "STATUS",
        "SINCE",
        "RESTARTS",
        "NEXT",
        "LAST",
        "MEM",
        "CPU",
        "GEN",
        "STATE",
        "COMMIT",
        "WHY",
    )
    screen.table(headers, [_cells(row, now_s) for row in rows], coloured="STATUS")
    if control is None:
        screen.say(NOT_RUNNING)
    return 0


def still_running(client: Client, bot_id: str) -> bool:
    """Whether a process of the bot is there, with or without an `up`."""
    record = process_record.read(client.place.bot(bot_id))
    if record is None or record.process is None or record.instance.state == "ended":
        return False
    pidfd = open_pidfd(record.process)
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def _at_rest(client: Client, bot: Bot | BadBot, *, up: bool) -> dict[str, Any]:
    """As `up` would show a bot, without one."""
    status, reason = (
        "stopped",
        "It is stopped." if not bot.enabled else NOT_RUNNING if not up else "It is not known there yet.",
    )
    if isinstance(bot, BadBot):
        status, reason = "error", bot.reason
    row: dict[str, Any] = {"status": status, "reason": reason, "since": None, "restarts": 0}
    record = process_record.read(client.place.bot(bot.id))
    if record is None:
        return row
    row["restarts"] = record.instance.restart
    ended = record.instance.exit or record.instance.previous
    if ended is not None:
        row["last_exit"] = {"code": ended.code, "by": ended.by, "reason": ended.reason, "at_s": ended.at_s}
    if not up and still_running(client, bot.id):
        # One that `up --detach-bots` left, or that outlived a killed `up`.
        row["status"], row["reason"] = "running", "It runs on without a platform; the next `runtime up` takes it over."
        row["since"] = record.instance.started_s
    return row


def _kept(store: ObjectStore, bucket: str, bot_id: str) -> Kept:
    try:
        dated = HeadFile(store, bucket=bucket, bot_id=bot_id).read_dated()
    except Permanent as fault:
        return Kept(problem=fault.sentence)
    if dated is None or dated[0].head.content.removed:
        return Kept()
    content = dated[0].head.content
    return Kept(
        generation=content.generation,
        bytes=sum(segment.bytes for segment in content.segments),
        committed_s=dated[1] if content.generation else None,
        incomplete=len(content.incomplete),
        stale=len(content.stale),
    )


def _last_run(client: Client, document: Document) -> Run | None:
    if document.kind != "scheduled":
        return None
    try:
        return next(
            (
                run
                for run in Runs(client.store, bucket=client.buckets.state).newest(document.id, limit=5)
                if not run.is_open
            ),
            None,
        )
    except Fault:
        return None  # `runtime runs` says what is wrong; the rest of the list is worth more


def _row(
    document: Document, bot: Bot | BadBot, live: Mapping[str, Any], kept: Kept, *, last: Run | None
) -> dict[str, Any]:
    next_s = live.get("next_s")
    reasons = [str(live.get("reason") or "")]
    if kept.incomplete:
        reasons.append(f"{kept.incomplete} files are over the limit and not kept.")
    if kept.problem:
        reasons.append(kept.problem)
    return {
        "id": document.id,
        "type": document.kind,
        "status": live["status"],
        "reason": " ".join(reason for reason in reasons if reason),
        "since": rfc3339(live.get("since")),
        "restarts": live.get("restarts") or 0,
        "generation": kept.generation,
        "enabled": bot.enabled,
        "runtime": bot.runtime if isinstance(bot, Bot) else None,
        "version": bot.version if isinstance(bot, Bot) else None,
        "schedule": bot.schedule if isinstance(bot, Bot) else None,
        "next": rfc3339(next_s),
        "slot": live.get("slot"),
        "last_run": last.document() if last is not None else None,
        "last_exit": _exit(live.get("last_exit")),
        "memory_bytes": live.get("memory_bytes"),
        "cpu_s": live.get("cpu_s"),
        "state_bytes": kept.bytes,
        "last_commit": rfc3339(kept.committed_s),
        "incomplete": kept.incomplete,
        "stale": kept.stale,
        "metrics": live.get("metrics") or {},
    }


def _exit(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "code": told.get("code"),
        "by": told.get("by"),
        "reason": told.get("reason"),
        "at": rfc3339(told.get("at_s")),
    }


def _cells(row: Mapping[str, Any], now_s: float) -> list[str]:
    last = row["last_run"]
    ended = row["last_exit"]
    if last is not None:
        shown = f"{last['result']} {ago(_moment(last['end'] or last['claimed']), now_s)} ago"
    elif ended is not None:
        shown = f"exit {ended['code']} {ago(_moment(ended['at']), now_s)} ago"
    else:
        shown = ""
    cpu_s = row["cpu_s"]
    return [
        row["id"],
        row["type"],
        row["status"],
        ago(_moment(row["since"]), now_s),
        str(row["restarts"]) if row["restarts"] else "",
        until(_moment(row["next"]), now_s),
        shown,
        size(row["memory_bytes"]),
        "" if cpu_s is None else f"{cpu_s:.1f} s" if cpu_s < 60 else age(cpu_s),
        "" if row["generation"] is None else str(row["generation"]),
        size(row["state_bytes"]),
        ago(_moment(row["last_commit"]), now_s),
        row["reason"],
    ]


def _moment(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
