"""A store that is watched: what was asked of it, what was sent to it, how long it was waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from the0.objects.store import ObjectStore


class Counting:
    """Stands in for the store itself."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.reset()

    def reset(self) -> None:
        self.sent_bytes = 0
        self.requests: list[str] = []
        """The names of the calls, in order."""
        self.waited_ms = 0.0

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        act = getattr(self._store, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            self.requests.append(name)
            if name in ("put", "put_if", "append"):
                self.sent_bytes += len(args[2])
            began = time.perf_counter()
            try:
                return act(*args, **kwargs)
            finally:
                self.waited_ms += (time.perf_counter() - began) * 1000

        return ask
