"""What people ask about schedules: `runs` and `next`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final
from zoneinfo import ZoneInfo

from the0 import documents
from the0.documents import BadBot, Bot
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import schedule
from the0.orchestrate.client import Client
from the0.orchestrate.schedule import Schedule
from the0.orchestrate.tables import Screen, age, rfc3339, until
from the0.runs import Run, Runs

NEAR_S: Final = 40 * 86400
"""That a clock changed between two slots is worth a note where no more than this lies between them."""


def runs(client: Client, screen: Screen, bot_id: str, *, limit: int) -> int:
    """Newest last, as logs are read. Exit code 0."""
    found = Runs(client.store, bucket=client.buckets.state).newest(bot_id, limit=limit)
    found.reverse()
    if not found:
        document = client.bot(bot_id)  # that there is such a bot at all
        if document.kind == "realtime":
            raise Fatal(f"Bot {clip(bot_id)} is a realtime bot and has no runs: see `runtime ps`.", code=ExitCode.USAGE)
    if screen.as_json:
        screen.json([run.document() for run in found])
        return 0
    if not found:
        screen.say(f"Bot {clip(bot_id)} has not run yet: `runtime next {clip(bot_id)}` tells when it will.")
        return 0
    headers = ("SLOT", "RESULT", "STARTED", "TOOK", "CODE", "GENERATION", "WHY")
    screen.table(headers, [_run_cells(run) for run in found], coloured="RESULT")
    return 0


def next_slots(client: Client, screen: Screen, bot_id: str, *, count: int, after_s: float | None = None) -> int:
    """The slots that follow, in the schedule's own time zone. Exit code 0."""
    document = client.bot(bot_id)
    bot = documents.read(document.body, kind=document.kind)
    if isinstance(bot, BadBot):
        raise Fatal(bot.reason, code=ExitCode.USAGE)
    if bot.schedule is None:
        raise Fatal(f"Bot {clip(bot_id)} is a realtime bot and has no schedule.", code=ExitCode.USAGE)
    parsed = schedule.parse(bot.schedule, timezone=bot.policies.timezone)
    zone = zone_of(parsed, bot)
    after_s = time.time() if after_s is None else after_s
    rows: list[dict[str, Any]] = []
    before = datetime.fromtimestamp(after_s, zone)
    for slot in islice(schedule.slots(parsed, after_s=after_s), count):
        local = datetime.fromtimestamp(slot, zone)
        note = _clock_note(before, local)
        before = local
        rows.append(
            {"slot": rfc3339(slot), "unix_s": slot, "local": local.isoformat(), "zone": str(zone), "note": note}
        )
    if screen.as_json:
        screen.json(rows)
        return 0
    now_s = time.time()
    cells = [(row["slot"], _local(row["local"], zone), until(row["unix_s"], now_s), row["note"]) for row in rows]
    screen.table(("SLOT", "LOCAL", "WHEN", "NOTE"), cells, coloured="NOTE")
    if bot.paused or not bot.enabled:
        state = "paused" if bot.enabled else "stopped"
        screen.say(f"The bot is {state}, so none of them is run: `runtime start {clip(bot_id)}`.")
    return 0


def _run_cells(run: Run) -> list[str]:
    took = run.end_s - run.start_s if run.end_s is not None and run.start_s is not None else None
    before, after = run.generation_before, run.generation_after
    result = run.result or ("waiting" if run.waiting else "running")
    many = f" and {run.count - 1} more up to {run.last}" if run.count > 1 else ""
    return [
        run.slot,
        result,
        "" if run.start_s is None else f"{datetime.fromtimestamp(run.start_s, UTC):%H:%M:%S}",
        "" if took is None else f"{took:.1f} s" if took < 60 else age(took),
        "" if run.code is None else str(run.code),
        "" if after is None else f"{before} → {after}" if before is not None else str(after),
        f"{run.reason}{many}".strip(),
    ]


def zone_of(parsed: Schedule, bot: Bot) -> ZoneInfo:
    """The zone that an expression names itself wins."""
    zone = getattr(parsed, "zone", None)
    return zone if isinstance(zone, ZoneInfo) else ZoneInfo(bot.policies.timezone)


def _clock_note(before: datetime, local: datetime) -> str:
    """What the zone's clock did between two slots, the second of which is `local`."""
    step = (local.utcoffset() or timedelta()) - (before.utcoffset() or timedelta())
    if not step or local.timestamp() - before.timestamp() > NEAR_S:
        return "this hour comes twice" if _twice(local) else ""
    hours = f"{abs(step.total_seconds()) / 3600:g} h"
    return f"the clock went {'forward' if step > timedelta() else 'back'} {hours} before this"


def _twice(local: datetime) -> bool:
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _local(text: str, zone: ZoneInfo) -> str:
    moment = datetime.fromisoformat(text)
    return f"{moment:%a %Y-%m-%d %H:%M:%S} {moment.astimezone(zone):%Z}" if zone != ZoneInfo("UTC") else f"{moment:%a}"
