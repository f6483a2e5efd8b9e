"""The bots that a platform is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance.platform_under_test import Platform

MANIFEST = """\
name: {name}
type: {type}
runtime: python3.11
version: 1.0.0
author: tests
description: what a platform is asked to run
entrypoints:
  bot: main.py
  query: query.py
schema:
  type: object
  properties:
    step: {{type: integer, minimum: 1}}
"""
COUNTS = """\
from the0 import log, metric, sleep, state


def main(bot_id, config):
    starts = state.get("starts", 0) + 1
    state.set("starts", starts)
    log(f"start {starts} of {bot_id}", {"step": config.get("step")})
    while True:
        count = state.get("count", 0) + config.get("step", 1)
        state.set("count", count)
        metric("count", {"value": count})
        if config.get("fails_at") and starts == 1 and count >= config["fails_at"]:
            raise RuntimeError("as it was told")
        sleep(0.1)
"""
RUNS = """\
from the0 import state


def main(bot_id, config):
    state.set("runs", state.get("runs", 0) + 1)
    if config.get("fails"):
        raise RuntimeError("as it was told")
    return {"status": "success", "message": "done"}
"""
ANSWERS = """\
from the0 import query, state


@query.handler("/all")
def all_of_it(req):
    return {key: state.get(key) for key in state.list()} | {"asked": req.params}


@query.handler("/write")
def write(req):
    state.set("written", 1)
    return {}


query.run()
"""
Folder = Callable[..., Path]


def realtime(folder: Folder, name: str = "realtime") -> Path:
    return folder(
        name, main_py=COUNTS, query_py=ANSWERS, **{"bot-config_yaml": MANIFEST.format(name=name, type="realtime")}
    )


def scheduled(folder: Folder, name: str = "scheduled") -> Path:
    manifest = MANIFEST.format(name=name, type="scheduled")
    return folder(name, main_py=RUNS, query_py=ANSWERS, **{"bot-config_yaml": manifest})


def count(platform: Platform, bot_id: str) -> int:
    """As the running bot's query process sees it."""
    return int(platform.answers(bot_id, "/all", source="live").body["data"]["count"])
