"""A bot that counts and remembers how far it got."""

from __future__ import annotations

from typing import Any

from the0 import log, sleep, state


def main(bot_id: str, config: dict[str, Any]) -> None:
    count = state.get("count", 0)
    if count:
        log(f"{bot_id} is back and remembers {count}")
    else:
        log(f"{bot_id} runs for the first time")
    while True:
        count += config.get("step", 1)
        state.set("count", count)
        log(f"counted to {count}")
        sleep(0.5)
