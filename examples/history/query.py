"""Answers questions about the history, without running the bot."""

from __future__ import annotations

from typing import Any

from the0 import query, state


@query.handler("/history")
def history(request: query.QueryRequest) -> list[dict[str, Any]]:
    """The last prices; `limit` says how many."""
    limit = int(request.get("limit", 10))
    seen: list[dict[str, Any]] = state.get("history", [])
    return seen[-limit:] if limit > 0 else []


@query.handler("/summary")
def summary(_request: query.QueryRequest) -> dict[str, Any]:
    prices = [entry["price"] for entry in state.get("history", [])]
    if not prices:
        return {"count": 0}
    return {"count": len(prices), "low": min(prices), "high": max(prices), "last": prices[-1]}


query.run()
