"""What people tell the platform: deploy, start, stop, pause, restart, run, query. Each returns an exit code."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

from the0 import documents
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import address
from the0.orchestrate import archive as archives
from the0.orchestrate import deploy as deploying
from the0.orchestrate.bots import Document
from the0.orchestrate.client import NOT_RUNNING, Client
from the0.orchestrate.data import GATEWAY_FILE
from the0.orchestrate.deploy import Plan, Wanted
from the0.orchestrate.listing import still_running
from the0.orchestrate.tables import Screen, plural, size

_ANSWER_BYTES: Final = 64 << 20
Change = Literal["start", "stop", "pause"]


def deploy(client: Client, screen: Screen, wanted: Wanted, *, dry_run: bool) -> int:
    with archives.opened(wanted.source, scratch=client.place.path) as archive:
        plan = deploying.make_plan(wanted, archive, client.bots)
        if not dry_run:
            deploying.carry_out(plan, archive, bots=client.bots, store=client.store, bucket=client.buckets.code)
    control = None if dry_run else client.control()
    if control is not None and plan.changes:
        control.changed()
    if screen.as_json:
        screen.json({**plan.as_json(dry_run=dry_run), "platform_running": control is not None})
        return 0
    _show(screen, plan, files_count=len(archive.names), archive_bytes=archive.size)
    if dry_run:
        screen.say("Nothing was done: this is a dry run.")
    elif not plan.bot.enabled:
        screen.say(f"It is stopped: `runtime start {clip(plan.bot.id)}` starts it.")
    elif control is None:
        screen.say(NOT_RUNNING)
    return 0


def change(client: Client, screen: Screen, bot_ids: Sequence[str], *, every: bool, what: Change) -> int:
    """start, stop, pause: what is stored, which a running platform obeys at once, and any later one."""
    chosen = _chosen(client, bot_ids, every=every, what=what)
    changed, left = [], []
    for document in chosen:
        if what == "pause" and document.kind != "scheduled":
            left.append(document.id)
            continue
        before = (documents.is_enabled(document.body), document.body.get("paused") is True)
        if what == "pause":
            client.bots.set_paused(document.id, True)
        else:
            client.bots.set_enabled(document.id, what == "start")
        after = {"start": (True, False), "stop": (False, False), "pause": (before[0], True)}[what]
        if before != after:
            changed.append(document.id)
    if left and not every:
        raise Fatal(
            f"Bot {clip(left[0])} is a realtime bot, which has no schedule to pause: use `runtime stop`.",
            code=ExitCode.USAGE,
        )
    control = client.control()
    if control is not None:
        control.changed()
    # Left by `up --detach-bots`, or by one that was killed: nobody is there to stop them.
    running_on = [each.id for each in chosen if control is None and what == "stop" and still_running(client, each.id)]
    if screen.as_json:
        told = [
            {"id": document.id, "changed": document.id in changed} for document in chosen if document.id not in left
        ]
        known = {"platform_running": control is not None, "running_on": running_on}
        screen.json({"bots": told, "not_scheduled": left, **known})
        return 0
    done = {"start": "told to start", "stop": "told to stop", "pause": "paused"}[what]
    same = {"start": "was started already", "stop": "was stopped already", "pause": "was paused already"}[what]
    if every:
        screen.say(f"{plural(len(changed), 'bot')} {done}, of {len(chosen)}.")
        if left:
            screen.say(f"{plural(len(left), 'realtime bot')} left as they are: only schedules can be paused.")
    else:
        for document in chosen:
            screen.say(f"{clip(document.id)} is {done}." if document.id in changed else f"{clip(document.id)} {same}.")
    if running_on:
        shown = ", ".join(clip(bot_id, limit=40) for bot_id in running_on[:5])
        more = f" and {len(running_on) - 5} more" if len(running_on) > 5 else ""
        screen.say(f"The platform is not running, and until `runtime up` stops them, these run on: {shown}{more}.")
    elif control is None:
        screen.say(NOT_RUNNING if what == "start" else "The platform is not running; it will know when it starts.")
    return 0


def restart(client: Client, screen: Screen, bot_ids: Sequence[str], *, every: bool) -> int:
    chosen = _chosen(client, bot_ids, every=every, what="restart")
    stopped = [each.id for each in chosen if not documents.is_enabled(each.body)]
    if stopped and not every:
        raise Fatal(
            f"Bot {clip(stopped[0])} is stopped: `runtime start {clip(stopped[0])}` starts it.", code=ExitCode.USAGE
        )
    scheduled = [each.id for each in chosen if each.kind == "scheduled"]
    if scheduled and not every:
        raise Fatal(
            f"Bot {clip(scheduled[0])} is scheduled and begins anew each time: use `runtime run`.", code=ExitCode.USAGE
        )
    control = client.needed_control("A restart")
    restarted = [each.id for each in chosen if each.id not in {*stopped, *scheduled}]
    for bot_id in restarted:
        control.restart(bot_id)
    if screen.as_json:
        screen.json({"bots": [{"id": bot_id, "changed": True} for bot_id in restarted]})
    else:
        for bot_id in restarted:
            screen.say(f"{clip(bot_id)} is told to restart.")
    return 0


def run(client: Client, screen: Screen, bot_id: str) -> int:
    """A scheduled bot, now."""
    document = client.bot(bot_id)
    if document.kind != "scheduled":
        raise Fatal(
            f"Bot {clip(bot_id)} is a realtime bot, which runs all the time: use `runtime restart`.",
            code=ExitCode.USAGE,
        )
    told = client.needed_control("A run").run(bot_id)
    if screen.as_json:
        screen.json({"id": bot_id, **told})
    else:
        screen.say(
            f"{clip(bot_id)} runs: {clip(str(told.get('slot', '')))}. `runtime runs {clip(bot_id)}` tells how it goes."
        )
    return 0


def query(client: Client, screen: Screen, bot_id: str, path: str, params: Sequence[str], *, timeout_s: float) -> int:
    """Through the gateway, as any other program asks. Exit code 0, QUERY_FAILED, or TIMED_OUT; USAGE for no such bot."""
    client.bot(bot_id)
    asked: dict[str, Any] = {}
    for text in params:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Fatal(f"The param {clip(text)!r} has no value: write NAME=VALUE.", code=ExitCode.USAGE)
        asked[name] = deploying.parse_value(value)
    client.needed_control("A query")
    question = {"bot_id": bot_id, "query_path": path, "params": asked, "timeout_sec": timeout_s}
    status, answer = _ask_gateway(client, question, timeout_s=timeout_s)
    if screen.as_json:
        screen.json(answer)
    elif status == 200:
        if answer.get("source") == "stored":
            screen.say(f"# from the stored state, generation {answer.get('generation')}")
        screen.say(json.dumps(answer.get("data"), indent=2, ensure_ascii=False))
    if status == 200:
        return 0
    if screen.as_json:
        return _query_code(status)
    said = clip(str(answer.get("error", f"status {status}")), limit=2000).rstrip(".")
    raise Fatal(f"The query {clip(path)} of bot {clip(bot_id)} failed: {said}.", code=_query_code(status))


def _chosen(client: Client, bot_ids: Sequence[str], *, every: bool, what: str) -> list[Document]:
    if every == bool(bot_ids):
        raise Fatal(f"Name the bots to {what}, or give --all: not both, not neither.", code=ExitCode.USAGE)
    return client.all() if every else [client.bot(bot_id) for bot_id in dict.fromkeys(bot_ids)]


def _show(screen: Screen, plan: Plan, *, files_count: int, archive_bytes: int) -> None:
    bot = plan.bot
    screen.say(f"{screen.word(plan.action)}: {clip(bot.id)}, {bot.kind}, {bot.runtime}, version {clip(bot.version)}")
    query_part = f", queries by {clip(bot.query_entrypoint)}" if bot.query_entrypoint else ""
    screen.say(f"  runs      {clip(bot.entrypoint)}{query_part}")
    if bot.schedule is not None:
        screen.say(f"  schedule  {clip(bot.schedule)} ({clip(bot.policies.timezone)})")
    screen.say(f"  code      {plural(files_count, 'file')}, {size(archive_bytes)} packed")
    if bot.config:
        screen.say(f"  config    {', '.join(clip(name, limit=60) for name in sorted(bot.config))}")
    if plan.former is not None and plan.changes:
        screen.say(f"  changed   {', '.join(plan.changes)}")
    for sentence in plan.warnings:
        screen.say(f"  {screen.word('warning')}   {sentence}")


def _ask_gateway(client: Client, question: dict[str, Any], *, timeout_s: float) -> tuple[int, dict[str, Any]]:
    deadline = time.monotonic() + 5.0
    while (gateway := address.read(client.place, GATEWAY_FILE)) is None:
        if time.monotonic() > deadline:
            raise Fatal(
                "The running `runtime up` has not said where its query gateway listens: look at its output.",
                code=ExitCode.QUERY_FAILED,
            )
        time.sleep(0.05)
    connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=timeout_s + 10.0)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {gateway.token}"}
    try:
        connection.request("POST", "/query", json.dumps(question).encode(), headers)
        reply = connection.getresponse()
        answer = json.loads(reply.read(_ANSWER_BYTES))
        if not isinstance(answer, dict):
            raise ValueError("no object")
        return reply.status, answer
    except TimeoutError as reason:
        raise Fatal(f"The query gateway gave no answer within {timeout_s:g} s.", code=ExitCode.TIMED_OUT) from reason
    except (OSError, ValueError, http.client.HTTPException) as reason:
        raise Fatal(
            f"The query gateway gave no usable answer ({clip(str(reason))}): look at the output of `runtime up`.",
            code=ExitCode.QUERY_FAILED,
        ) from reason
    finally:
        connection.close()


def _query_code(status: int) -> ExitCode:
    return {504: ExitCode.TIMED_OUT, 404: ExitCode.USAGE, 400: ExitCode.USAGE}.get(status, ExitCode.QUERY_FAILED)
