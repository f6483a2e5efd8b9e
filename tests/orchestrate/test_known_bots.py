"""The bots as last read: always what a reading of all of them would give, for the price of what changed."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from the0 import documents
from the0.documents import BadBot, Kind
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.known_bots import KnownBots

KINDS: tuple[Kind, Kind] = ("realtime", "scheduled")
ABOUT = {"runtime": "python3.11", "entrypoints": {"bot": "main.py"}}
CUSTOM = {"version": "1", "filePath": "u/b/1", "config": ABOUT}
CONFIG = {"schedule": "@daily"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteBots]:
    made = SqliteBots(str(tmp_path / "bots.db"), create=True)
    yield made
    made.close()


def put(store: SqliteBots, bot_id: str, kind: Kind = "realtime", **config: Any) -> None:
    store.update(bot_id, kind, config={**CONFIG, **config}, custom=CUSTOM)


def raw(store: SqliteBots, *statements: str) -> None:
    """As somebody with another program."""
    with sqlite3.connect(store.name.removeprefix("SQLite file ")) as db:
        for statement in statements:
            db.execute(statement)
        db.execute("UPDATE revision SET number = number + 1")
    db.close()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_reading_all_of_them_gives(store: SqliteBots, seed: int) -> None:
    chosen = random.Random(seed)
    known = KnownBots(store)
    for step in range(120):
        for _ in range(chosen.choice((0, 1, 1, 1, 5))):
            bot_id, kind = f"b{chosen.randrange(8)}", chosen.choice(KINDS)
            act = chosen.randrange(6)
            if act <= 2:
                put(store, bot_id, kind, n=chosen.randrange(3))
            elif act == 3:
                store.remove(bot_id)
            elif act == 4:
                store.set_enabled(bot_id, chosen.random() < 0.5)
            else:
                raw(store, f"DELETE FROM bots WHERE id = '{bot_id}'")
        known.refresh()
        whole = documents.read_all((each.kind, each.body) for kind in KINDS for each in store.list(kind))
        assert known.bots == whole, f"seed {seed}, step {step}"
        assert known.removed == (store.removed("realtime") | store.removed("scheduled")) - whole.keys()
        assert not known.refresh(), "nothing happened since"


def test_what_did_not_change_is_the_same_object(store: SqliteBots) -> None:
    for name in ("a", "b", "c"):
        put(store, name)
    known = KnownBots(store)
    assert known.refresh()
    before = known.bots
    put(store, "b", n=2)
    store.remove("c")
    assert known.refresh()
    assert known.bots["a"] is before["a"]
    assert known.bots["b"] is not before["b"]
    assert known.bots.keys() == {"a", "b"}
    assert before.keys() == {"a", "b", "c"}, "a snapshot stays as it was"


def test_an_id_that_occurs_twice_is_bad_until_it_does_no_more(store: SqliteBots) -> None:
    put(store, "a")
    body = json.dumps({"id": "a", "config": {}, "custom": CUSTOM})
    raw(store, f"INSERT INTO bots (id, kind, body) VALUES ('other', 'scheduled', '{body}')")
    known = KnownBots(store)
    known.refresh()
    assert isinstance(known.bots["a"], BadBot)
    assert "more than once" in known.bots["a"].reason
    store.remove("other")
    known.refresh()
    assert not isinstance(known.bots["a"], BadBot)


def test_a_store_that_went_back_is_read_whole(store: SqliteBots) -> None:
    for name in ("a", "b"):
        put(store, name)
    known = KnownBots(store)
    known.refresh()
    raw(store, "DELETE FROM bots WHERE id = 'b'", "UPDATE revision SET number = 1")
    assert known.refresh()
    assert known.bots.keys() == {"a"}


def test_one_change_among_ten_thousand_is_cheap(store: SqliteBots) -> None:
    body = json.dumps({"config": CONFIG, "custom": CUSTOM})
    rows = ((f"s{n}", json.dumps({"id": f"s{n}", **json.loads(body)})) for n in range(10_000))
    with sqlite3.connect(store.name.removeprefix("SQLite file ")) as db:
        db.executemany("INSERT INTO bots (id, kind, body) VALUES (?, 'scheduled', ?)", rows)
        db.execute("UPDATE revision SET number = number + 1")
    db.close()
    known = KnownBots(store)
    began_s = time.thread_time()
    known.refresh()
    whole_s = time.thread_time() - began_s
    assert len(known.bots) == 10_000
    store.set_enabled("s77", False)
    began_s = time.thread_time()
    known.refresh()
    assert time.thread_time() - began_s < whole_s / 10
    assert not known.bots["s77"].enabled
