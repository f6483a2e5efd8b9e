"""What the counter answers when it is asked."""

from __future__ import annotations

from the0 import query, state


@query.handler("/count")
def count(_: query.QueryRequest) -> dict[str, int]:
    return {"count": state.get("count", 0)}


query.run()
