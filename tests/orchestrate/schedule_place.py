"""A scheduler with a real store, real bots in SQLite and real child processes; its clock may be moved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrate.plain_engine import PlainEngine
from rig.server import wait_until
from the0.documents import BadBot, Bot, read_all
from the0.objects.folder import Folder
from the0.orchestrate.bots import Document
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.scheduler import Scheduler
from the0.runs import Run, Runs


def document(bot_id: str, schedule: str, *, next_s: int | None = None, **config: Any) -> Document:
    body: dict[str, Any] = {
        "id": bot_id,
        "enabled": True,
        "config": {"schedule": schedule, **config},
        "custom": {
            "version": "1.0.0",
            "filePath": "u/b/1.0.0",
            "config": {"name": "b", "runtime": "python3.11", "version": "1.0.0", "entrypoints": {"bot": "main.py"}},
        },
    }
    if next_s is not None:
        body["next_execution_time"] = next_s
    return Document(id=bot_id, kind="scheduled", body=body)


class Watched:
    """All bots, read again where the store changed: what Runner does."""

    def __init__(self, store: SqliteBots) -> None:
        self._store = store
        self._revision = -1
        self._found: Mapping[str, Bot | BadBot] = {}

    def __call__(self) -> Mapping[str, Bot | BadBot]:
        revision = self._store.revision()
        if revision != self._revision:
            self._found = read_all((each.kind, each.body) for each in self._store.list("scheduled"))
            self._revision = revision
        return self._found


class Clock:
    """The wall clock, which somebody may set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = Folder(str(root / "store"))
        self.objects.ensure_bucket("bot-state")
        self.bots = SqliteBots(str(root / "bots.db"), create=True)
        self.engine = PlainEngine(root / "runs", store=root / "store")
        self.runs = Runs(self.objects, bucket="bot-state")
        self.clock = Clock()
        self.news: list[tuple[str, str, str | None]] = []

    def add(self, *documents: Document) -> None:
        for each in documents:
            assert self.bots.insert(each)

    def scheduler(self, **changed: Any) -> Scheduler:
        settings: dict[str, Any] = {
            "grace_s": 5.0,
            "interval_s": 0.5,
            "lost_after_s": 2.0,
            "clock": self.clock,
            **changed,
        }
        return Scheduler(
            Watched(self.bots), self.bots, self.engine, self.objects, bucket="bot-state", say=self.say, **settings
        )

    def say(self, event: str, message: str, *, bot: str | None = None, **_: Any) -> None:
        self.news.append((event, message, bot))

    @contextlib.contextmanager
    def running(self, **changed: Any) -> Iterator[Scheduler]:
        scheduler = self.scheduler(**changed)
        scheduler.start()
        try:
            yield scheduler
        finally:
            scheduler.close()

    def next_s(self, bot_id: str) -> int | None:
        found = self.bots.get(bot_id)
        assert found is not None
        return found.body.get("next_execution_time")

    def records(self, bot_id: str, *, limit: int = 1000) -> list[Run]:
        """Oldest first."""
        return self.runs.newest(bot_id, limit=limit, now_s=self.clock())[::-1]

    def until_ended(self, bot_id: str, *, count: int, within_s: float = 20) -> list[Run]:
        """At least so many records with an end; all of them."""

        def ended() -> bool:
            return sum(not run.is_open for run in self.records(bot_id)) >= count

        wait_until(ended, deadline_s=within_s, what=f"{count} ended runs of {bot_id}")
        return self.records(bot_id)

    def close(self) -> None:
        for instance in self.engine.actual():
            self.engine.kill(instance.name)
        self.engine.close()
        self.bots.close()
