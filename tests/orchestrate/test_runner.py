"""The runner: absence and its confirmation, a store that fails, metrics, what it does when nothing happens."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Any

from orchestrate.platform_place import Platform, eventually
from the0.documents import BadBot
from the0.errors import ExitCode, Fatal
from the0.orchestrate.bots import Document
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.engine_process import ProcessEngine
from the0.orchestrate.runner import Runner


def lose_rows(platform: Platform) -> None:
    """As a store does that was restored from an old copy: rows are gone, and nobody removed them."""
    with sqlite3.connect(platform.data.bots_db) as db:
        db.execute("DELETE FROM bots")
        db.execute("UPDATE revision SET number = number + 1")
    platform.tell()


def test_bots_that_are_missing_run_on_until_somebody_says_that_they_are_gone(platform: Platform) -> None:
    for bot_id in ("a", "b"):
        platform.put(bot_id)
    up = platform.up()
    for bot_id in ("a", "b"):
        platform.until_printed(bot_id, "is here")
    lose_rows(platform)
    eventually(lambda: up.news("missing"), "a word about it")
    assert "2 running bots are missing" in up.news("missing")[0]["message"]
    told = [row for row in platform.control.ps() if "missing from the store" in row["reason"]]
    assert [row["status"] for row in told] == ["running", "running"]
    assert "the0_ready 0" in platform.control.metrics()
    assert len(platform.supervisors()) == 2
    platform.put("a")
    eventually(lambda: platform.row("b") is None, "the end of b, one of two")
    lose_rows(platform)
    eventually(lambda: len(up.news("missing")) > 1, "another word")
    assert platform.control.confirm() == ["a"]
    eventually(lambda: platform.supervisors() == [], "the end of a")
    assert "the0_ready 1" in platform.control.metrics()


def test_metrics_of_bots_are_told(platform: Platform) -> None:
    platform.put(
        "b",
        """
        import time
        from the0 import metric
        def main(bot_id, config):
            metric("price", {"value": 1.5, "symbol": "X"})
            metric("price", {"value": 2.5, "symbol": "Y"})
            print('{"_metric": "broken', flush=True)
            print("ready", flush=True)
            time.sleep(3600)
        """,
    )
    platform.up()
    platform.until_printed("b", "ready")
    price = eventually(lambda: platform.row("b")["metrics"].get("price"), "the metric")
    assert (price["value"], price["symbol"]) == (2.5, "Y")
    text = platform.control.metrics()
    assert 'the0_bot_metric{bot="b",type="price",field="value"} 2.5' in text
    assert 'the0_bot_up{bot="b"} 1' in text
    assert 'the0_bots{status="running"} 1' in text


class Failing(SqliteBots):
    """A real store that can be told to fail."""

    failing = False

    def revision(self) -> int:
        if self.failing:
            raise Fatal("The store is away.", code=ExitCode.LOCAL_DISK)
        return super().revision()


def test_while_the_store_fails_bots_run_on(platform: Platform) -> None:
    platform.put("b")
    store = Failing(platform.data.bots_db)
    engine = ProcessEngine(platform.data, environ={}, stop_grace_s=5)
    said: list[tuple[str, str]] = []

    def say(event: str, message: str, **_: Any) -> None:
        said.append((event, message))

    runner = Runner(store, engine, say=say, grace_s=5, interval_s=0.05)
    assert runner.not_ready() is not None
    runner.start()
    platform.until_printed("b", "is here")
    assert runner.not_ready() is None
    store.failing = True
    eventually(lambda: runner.not_ready() == "The store is away.", "the trouble")
    assert len(platform.supervisors()) == 1
    store.failing = False
    eventually(lambda: runner.not_ready() is None, "its end")
    assert [message for event, message in said if event == "store"] == [
        "The store is away.",
        "The bots can be read again.",
    ]
    runner.close()
    runner.close()
    engine.stop("b", grace_s=5, reason="the test ends")
    eventually(lambda: platform.supervisors() == [], "the end")
    engine.close()
    store.close()


def test_a_dry_run_starts_nothing(platform: Platform) -> None:
    platform.put("b")
    platform.bots.insert(Document("bad", "realtime", {"id": "bad"}))
    engine = ProcessEngine(platform.data, environ={}, stop_grace_s=5)
    runner = Runner(platform.bots, engine, say=lambda *_, **__: None, grace_s=5)
    (action,) = runner.plan().actions
    assert action.bot.id == "b"  # type: ignore[union-attr]
    assert engine.actual() == ()
    assert isinstance(runner.bots()["bad"], BadBot)
    engine.close()


def test_nothing_is_done_while_nothing_happens(platform: Platform) -> None:
    """10,000 stored bots: the pass that finds no change costs next to nothing."""
    with sqlite3.connect(platform.data.bots_db) as db:
        platform.put("model", kind="scheduled", schedule="0 0 1 1 *")
        body = db.execute("SELECT body FROM bots").fetchone()[0]
        rows = [(f"s{number}", "scheduled", body, None) for number in range(10_000)]
        db.executemany("INSERT INTO bots (id, kind, body, next_s) VALUES (?, ?, ?, ?)", rows)
        db.execute("UPDATE revision SET number = number + 1")
    engine = ProcessEngine(platform.data, environ={}, stop_grace_s=5)
    runner = Runner(platform.bots, engine, say=lambda *_, **__: None, grace_s=5)
    runner.one_pass()
    began_s = time.thread_time()
    runner.one_pass()
    assert time.thread_time() - began_s < 0.1
    assert threading.active_count() < 10
    engine.close()
