"""A scheduled bot: each run looks at the price once and adds it to the history that it keeps."""

from __future__ import annotations

import math
import time
from typing import Any

from the0 import log, metric, state, success


def price_at(moment: float) -> float:
    """Stands for a market that one would ask: two waves, so that no network is needed."""
    return round(100 + 8 * math.sin(moment / 7200) + 2 * math.sin(moment / 311), 2)


def main(bot_id: str, config: dict[str, Any]) -> None:
    now = time.time()
    price = price_at(now)
    history = state.get("history", [])
    history.append({"time": int(now), "price": price})
    state.set("history", history[-config.get("keep", 1000) :])
    metric("price", {"value": price, "symbol": config["symbol"]})
    log(f"{bot_id} has seen {len(history)} prices, the last one is {price}")
    success("looked once", {"price": price})
