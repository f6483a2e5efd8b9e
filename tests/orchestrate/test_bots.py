"""One contract over every store of bots, then what is SQLite's alone."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from the0 import documents
from the0.documents import Kind
from the0.errors import ExitCode, Fatal, Fault, Transient
from the0.orchestrate import sqlite_file
from the0.orchestrate.bots import BotStore, Document
from the0.orchestrate.bots_sqlite import SqliteBots

Open = Callable[[], BotStore]


@pytest.fixture(params=["sqlite"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store once more, as another process would."""
    opened: list[BotStore] = []

    def one() -> BotStore:
        assert request.param == "sqlite"
        opened.append(SqliteBots(str(tmp_path / "bots.db"), create=True))
        return opened[-1]

    yield one
    for each in opened:
        each.close()


@pytest.fixture
def bots(again: Open) -> BotStore:
    return again()


def document(bot_id: str, kind: Kind = "realtime", **body: Any) -> Document:
    about = {"runtime": "python3.11", "entrypoints": {"bot": "main.py"}}
    whole = {"id": bot_id, "config": {"n": 5}, "custom": {"version": "1", "filePath": "u/b/1", "config": about}}
    return Document(bot_id, kind, {**whole, **body})


def ids(bots: BotStore, kind: Kind) -> list[str]:
    return [each.id for each in bots.list(kind)]


def test_what_was_inserted_is_there(bots: BotStore) -> None:
    stored = document("b", unknown={"x": [1, None]}, enabled=True)
    assert bots.insert(stored)
    assert bots.get("b") == stored
    assert bots.list("realtime") == [stored]
    assert bots.list("scheduled") == []
    assert bots.get("c") is None


def test_insert_never_overwrites(bots: BotStore) -> None:
    assert bots.insert(document("b"))
    at = bots.revision()
    assert not bots.insert(document("b", config={"n": 6}))
    assert bots.get("b") == document("b")
    assert bots.revision() == at


def test_lists_are_by_id(bots: BotStore) -> None:
    for name in ("b", "a", "c", "~", "A"):
        bots.insert(document(name))
    assert ids(bots, "realtime") == sorted(("b", "a", "c", "~", "A"))


def test_ids_of_any_kind(bots: BotStore) -> None:
    for name in ("../../etc", "a b/ü", "'; DROP TABLE bots; --", "x" * 500, "%", "_"):
        assert bots.insert(document(name))
        found = bots.get(name)
        assert found is not None
        assert found.body["id"] == name
    assert len(ids(bots, "realtime")) == 6


def test_update_sets_what_is_given_only(bots: BotStore) -> None:
    bots.insert(document("b", unknown=1, enabled=False))
    assert bots.update("b", "realtime", config={"n": 6})
    assert bots.get("b") == document("b", unknown=1, enabled=False, config={"n": 6})
    assert bots.update("b", "realtime", custom={"version": "2"})
    assert bots.get("b") == document("b", unknown=1, enabled=False, config={"n": 6}, custom={"version": "2"})


def test_update_inserts_where_asked(bots: BotStore) -> None:
    assert not bots.update("b", "realtime", config={}, upsert=False)
    assert bots.get("b") is None
    assert bots.update("b", "realtime", config={"n": 1}, custom={"version": "1"})
    found = bots.get("b")
    assert found is not None
    assert (found.kind, found.body["config"], documents.is_enabled(found.body)) == ("realtime", {"n": 1}, True)


def test_an_update_that_changes_nothing_is_no_revision(bots: BotStore) -> None:
    bots.insert(document("b"))
    at = bots.revision()
    for _ in range(2):
        assert bots.update("b", "realtime", config={"n": 5})
        assert bots.set_paused("b", False)
    assert bots.revision() == at


def test_every_change_is_a_revision(bots: BotStore, again: Open) -> None:
    other = again()
    seen = [other.revision()]
    changes: list[Callable[[], object]] = [
        lambda: bots.insert(document("b")),
        lambda: bots.update("b", "realtime", config={"n": 6}),
        lambda: bots.set_enabled("b", False),
        lambda: bots.set_enabled("b", True),
        lambda: bots.set_paused("b", True),
        lambda: bots.update("b", "scheduled", config={"schedule": "@daily"}),
        lambda: bots.remove("b"),
        lambda: bots.insert(document("b")),
    ]
    for change in changes:
        assert change()
        assert other.revision() == bots.revision()
        seen.append(other.revision())
    assert len(set(seen)) == len(seen)


def test_what_changed_is_told(bots: BotStore, again: Open) -> None:
    other = again()
    for name in ("a", "b", "c"):
        bots.insert(document(name))
    whole = other.changed_since(None)
    assert (whole.whole, whole.count, whole.revision) == (True, 3, other.revision())
    assert sorted(each.id for each in whole.documents) == ["a", "b", "c"]

    def news(since: int) -> tuple[list[Document], set[tuple[Kind, str]], int]:
        """What has to be applied to what was known at that revision."""
        found = other.changed_since(since)
        assert found.revision == bots.revision()
        return found.documents, set(found.gone), found.count

    at = whole.revision
    unchanged = other.changed_since(at)
    assert (unchanged.documents == [] and not unchanged.gone) or unchanged.whole
    bots.update("b", "realtime", config={"n": 6})
    changed, gone, count = news(at)
    assert [each.body["config"] for each in changed if each.id == "b"] == [{"n": 6}]
    assert (count, ("realtime", "b") in gone) == (3, False)
    bots.remove("a")
    bots.update("c", "scheduled", config={"schedule": "@daily"})
    changed, gone, count = news(at)
    assert {(each.kind, each.id) for each in changed} == {("realtime", "b"), ("scheduled", "c")}
    assert {("realtime", "a"), ("realtime", "c")} <= gone
    assert count == 2
    bots.insert(document("a"))
    bots.update("c", "realtime", config={})
    changed, gone, count = news(at)
    assert {(each.kind, each.id) for each in changed} == {("realtime", name) for name in "abc"}
    assert not gone & {("realtime", "a"), ("realtime", "c")}
    assert count == 3
    ahead = other.changed_since(bots.revision() + 100)
    assert (ahead.whole, ahead.count, len(ahead.documents)) == (True, 3, 3), "of a revision that is none, all"


def test_a_bot_is_in_one_collection_only(bots: BotStore) -> None:
    bots.insert(document("b", next_execution_time=5))
    bots.update("b", "scheduled", config={"schedule": "@daily"})
    assert ids(bots, "realtime") == []
    assert ids(bots, "scheduled") == ["b"]
    found = bots.get("b")
    assert found is not None
    assert "next_execution_time" not in found.body
    assert found.body["custom"] == document("b").body["custom"], "what was not given moves along"
    assert bots.removed("realtime") == {"b"}
    assert bots.insert(document("b"))
    assert (ids(bots, "realtime"), ids(bots, "scheduled")) == (["b"], [])
    assert bots.removed("realtime") == frozenset()
    assert bots.removed("scheduled") == {"b"}


def test_a_removal_is_remembered_until_the_bot_is_back(bots: BotStore, again: Open) -> None:
    bots.insert(document("b"))
    assert bots.removed("realtime") == frozenset()
    assert bots.remove("b")
    assert not bots.remove("b")
    assert not bots.remove("never")
    other = again()
    assert other.removed("realtime") == {"b"}
    assert other.removed("scheduled") == frozenset()
    assert other.insert(document("b"))
    assert bots.removed("realtime") == frozenset()


def test_enabled(bots: BotStore) -> None:
    bots.insert(document("b", config={"enabled": "false", "n": 1}, enabled=0))
    for wanted in (True, True, False, True):
        assert bots.set_enabled("b", wanted)
        found = bots.get("b")
        assert found is not None
        assert documents.is_enabled(found.body) is wanted
    assert not bots.set_enabled("c", True)


def test_disabling_leaves_the_config_as_it_is(bots: BotStore) -> None:
    """So that the bot's configuration hash stays."""
    bots.insert(document("b"))
    bots.set_enabled("b", False)
    bots.set_enabled("b", True)
    found = bots.get("b")
    assert found is not None
    assert found.body["config"] == {"n": 5}


def test_paused(bots: BotStore) -> None:
    bots.insert(document("b", "scheduled"))
    assert bots.set_paused("b", True)
    found = bots.get("b")
    assert found is not None
    assert found.body["paused"] is True
    assert bots.set_enabled("b", True), "a start ends the pause"
    found = bots.get("b")
    assert found is not None
    assert "paused" not in found.body
    assert not bots.set_paused("c", True)


def test_the_next_time_is_no_change_of_the_bot(bots: BotStore) -> None:
    bots.insert(document("b", "scheduled", config={"schedule": "@daily"}))
    at = bots.revision()
    bots.set_nexts({"b": 1700000000, "missing": 1700000000})
    bots.set_nexts({})
    assert bots.revision() == at
    found = bots.get("b")
    assert found is not None
    assert found.body["next_execution_time"] == 1700000000
    bots.update("b", "scheduled", config={"schedule": "@daily", "n": 1})
    assert bots.list("scheduled")[0].body["next_execution_time"] == 1700000000
    bots.update("b", "scheduled", config={"schedule": "@hourly"})
    assert "next_execution_time" not in bots.list("scheduled")[0].body
    bots.update("b", "scheduled", config={"schedule": "@weekly"}, next_execution_time=1800000000)
    assert bots.list("scheduled")[0].body["next_execution_time"] == 1800000000


def test_numbers_keep_their_value(bots: BotStore) -> None:
    config = {"whole": 5.0, "large": 2**53 + 1, "beyond": 1e300, "small": 1e-9, "text": "é\u0000€😀", "none": None}
    bots.insert(document("b", config=config))
    found = bots.get("b")
    assert found is not None
    assert found.body["config"] == config


def test_threads_share_a_store(bots: BotStore) -> None:
    def work(number: int) -> None:
        for step in range(10):
            bots.insert(document(f"b{number}-{step}"))
            bots.list("realtime")
            bots.update(f"b{number}-{step}", "realtime", config={"n": step})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(bots, "realtime")) == 40


def test_closing_twice(bots: BotStore) -> None:
    bots.close()
    bots.close()


# --- SQLite alone -----------------------------------------------------------------------------------


WRITER = """
import sys
from the0.orchestrate.bots import Document
from the0.orchestrate.bots_sqlite import SqliteBots
path, name = sys.argv[1:]
bots = SqliteBots(path, create=True)
for number in range(25):
    assert bots.insert(Document(f"{name}-{number}", "realtime", {"id": f"{name}-{number}"}))
print(bots.revision())
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Each one's first step is to make it."""
    path = str(tmp_path / "bots.db")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in ("a", "b", "c")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    bots = SqliteBots(path)
    assert len(bots.list("realtime")) == 75
    assert bots.revision() == 76
    bots.close()


def refused(path: Path, *, create: bool = False) -> Fault:
    with pytest.raises(Fault) as raised:
        SqliteBots(str(path), create=create)
    assert raised.value.sentence.endswith(".")
    assert "\n" not in raised.value.sentence
    return raised.value


def test_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "bots.db").code == ExitCode.USAGE
    assert not (tmp_path / "bots.db").exists()
    assert refused(tmp_path / "no/bots.db", create=True).code == ExitCode.LOCAL_DISK


def test_a_file_of_garbage(tmp_path: Path) -> None:
    (tmp_path / "bots.db").write_bytes(b"garbage " * 1000)
    fault = refused(tmp_path / "bots.db")
    assert fault.code == ExitCode.STATE_DAMAGED
    assert "bots.db" in fault.sentence
    assert (tmp_path / "bots.db").read_bytes() == b"garbage " * 1000


def test_another_programs_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "bots.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    assert refused(tmp_path / "bots.db", create=True).code == ExitCode.STATE_DAMAGED


def test_a_newer_format(tmp_path: Path) -> None:
    SqliteBots(str(tmp_path / "bots.db"), create=True).close()
    with sqlite3.connect(tmp_path / "bots.db") as newer:
        newer.execute(f"PRAGMA user_version = {sqlite_file.FORMAT + 1}")
    newer.close()
    fault = refused(tmp_path / "bots.db")
    assert fault.code == ExitCode.STATE_DAMAGED
    assert "update the runtime" in fault.sentence


FORMAT_1 = """
CREATE TABLE bots (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, next_s INTEGER) WITHOUT ROWID;
CREATE TABLE removed (id TEXT, kind TEXT, at_s INTEGER NOT NULL, PRIMARY KEY (id, kind)) WITHOUT ROWID;
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (7);
PRAGMA user_version = 1;
"""


def test_a_file_of_the_first_format_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "bots.db"
    with sqlite3.connect(path) as old:
        old.executescript(FORMAT_1)
        row = ("b", "scheduled", json.dumps(dict(document("b").body)), 1700000000)
        old.execute("INSERT INTO bots VALUES (?, ?, ?, ?)", row)
        old.execute("INSERT INTO removed VALUES ('gone', 'realtime', ?)", (int(time.time()),))
    old.close()
    bots = SqliteBots(str(path))
    assert bots.revision() == 7
    assert bots.list("scheduled") == [document("b", "scheduled", next_execution_time=1700000000)]
    assert bots.removed("realtime") == {"gone"}
    assert bots.changed_since(None).documents == bots.list("scheduled")
    assert bots.changed_since(7).documents == []
    bots.update("b", "scheduled", config={"n": 1})
    assert [each.id for each in bots.changed_since(7).documents] == ["b"]
    bots.close()
    again = SqliteBots(str(path))
    assert again.revision() == 8
    again.close()


def test_damage_within(tmp_path: Path) -> None:
    path = tmp_path / "bots.db"
    bots = SqliteBots(str(path), create=True)
    for number in range(200):
        bots.insert(document(f"b{number}"))
    bots.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(Fatal) as raised:
        SqliteBots(str(path)).list("realtime")
    assert raised.value.code == ExitCode.STATE_DAMAGED


def test_one_unreadable_row_is_that_bots_error(tmp_path: Path) -> None:
    path = tmp_path / "bots.db"
    bots = SqliteBots(str(path), create=True)
    bots.insert(document("good"))
    with sqlite3.connect(path) as other:
        other.execute(
            "INSERT INTO bots (id, kind, body) VALUES ('torn', 'realtime', '{\"id\": '), ('list', 'realtime', '[]')"
        )
    other.close()
    read = documents.read_all((each.kind, each.body) for each in bots.list("realtime"))
    assert {bot_id: isinstance(bot, documents.Bot) for bot_id, bot in read.items()} == {
        "good": True,
        "list": False,
        "torn": False,
    }
    bots.close()


def test_a_full_disk_leaves_all_as_it_was(tmp_path: Path) -> None:
    bots = SqliteBots(str(tmp_path / "bots.db"), create=True)
    bots.insert(document("b"))
    with bots._file.reading() as db:
        db.execute("PRAGMA max_page_count = 8")
    at = bots.revision()
    with pytest.raises(Fatal) as raised:
        bots.insert(document("large", config={"x": "y" * 200_000}))
    assert raised.value.code == ExitCode.LOCAL_DISK
    assert "free some space" in raised.value.sentence
    assert bots.revision() == at
    assert ids(bots, "realtime") == ["b"]
    assert bots.set_enabled("b", False), "and works on"
    bots.close()


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    """As for a user without the right; root has it always, so the limit of a file's size stands in."""
    path = str(tmp_path / "bots.db")
    SqliteBots(path, create=True).close()
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "from the0.errors import Fault\n"
        "from the0.orchestrate.bots import Document\n"
        "from the0.orchestrate.bots_sqlite import SqliteBots\n"
        "try:\n"
        "    SqliteBots(sys.argv[1]).insert(Document('b', 'realtime', {'id': 'b'}))\n"
        "except Fault as fault:\n"
        "    print(int(fault.code), fault.sentence)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("208 The disk under the SQLite file"), done.stdout + done.stderr


def test_a_lock_held_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.1)
    bots = SqliteBots(str(tmp_path / "bots.db"), create=True)
    other = sqlite3.connect(tmp_path / "bots.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Transient, match="locked"):
        bots.insert(document("b"))
    assert ids(bots, "realtime") == [], "reading waits for nobody"
    other.execute("ROLLBACK")
    assert bots.insert(document("b"))
    other.close()
    bots.close()


def test_what_is_no_json_is_refused_whole(bots: BotStore) -> None:
    for value in (float("nan"), {1, 2}, b"x"):
        with pytest.raises(Fatal, match="no JSON"):
            bots.insert(document("b", config={"x": value}))
    assert bots.get("b") is None


GARBAGE = os.urandom(40_000)


def garbled(path: Path) -> None:
    path.write_bytes(GARBAGE)


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(GARBAGE)
    other.replace(path)


def without_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE other (x)")
    other.close()


@pytest.mark.parametrize("damage", [garbled, cut, emptied, replaced, without_tables, os.unlink])
def test_an_open_file_that_is_damaged_is_refused_until_it_is_put_back(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "bots.db"
    bots = SqliteBots(str(path), create=True)
    for number in range(50):
        bots.insert(document(f"b{number}"))
    good = path.read_bytes()
    damage(path)
    after = path.read_bytes() if path.exists() else None
    refused_by = (bots.revision, lambda: bots.changed_since(3), lambda: bots.insert(document("new")), bots.revision)
    for ask in refused_by:
        with pytest.raises(Fatal) as raised:
            ask()
        assert raised.value.code in (ExitCode.STATE_DAMAGED, ExitCode.LOCAL_DISK)
        assert str(path) in raised.value.sentence
        assert "restore it" in raised.value.sentence or "repair it" in raised.value.sentence
    assert (path.read_bytes() if path.exists() else None) == after, "nothing is changed"
    path.write_bytes(good)
    assert len(bots.list("realtime")) == 50
    assert bots.insert(document("new"))
    bots.close()


def test_a_file_that_was_put_in_place_of_another_one_is_read_whole(tmp_path: Path) -> None:
    """Though both have the same count of revisions."""
    path = tmp_path / "bots.db"
    bots, others = SqliteBots(str(path), create=True), SqliteBots(str(tmp_path / "others.db"), create=True)
    bots.insert(document("b"))
    others.insert(document("other"))
    seen = bots.changed_since(None)
    others.close()
    (tmp_path / "others.db").replace(path)
    assert bots.revision() != seen.revision
    changes = bots.changed_since(seen.revision)
    assert changes.whole
    assert [each.id for each in changes.documents] == ["other"]
    assert bots.changed_since(changes.revision).documents == []
    bots.close()


def test_an_empty_file_is_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "bots.db").touch()
    fault = refused(tmp_path / "bots.db", create=True)
    assert fault.code == ExitCode.STATE_DAMAGED
    assert "it is empty" in fault.sentence
    assert (tmp_path / "bots.db").read_bytes() == b""


def test_a_file_with_a_log_beside_it_has_none_afterwards(tmp_path: Path) -> None:
    """As earlier versions made it."""
    path = tmp_path / "bots.db"
    bots = SqliteBots(str(path), create=True)
    bots.insert(document("b"))
    bots.close()
    earlier = sqlite3.connect(path)
    earlier.execute("PRAGMA journal_mode = WAL")
    earlier.execute("UPDATE revision SET number = number + 1")
    earlier.commit()
    beside = SqliteBots(str(path))
    assert ids(beside, "realtime") == ["b"], "while somebody else has it open"
    beside.close()
    earlier.close()
    bots = SqliteBots(str(path))
    assert ids(bots, "realtime") == ["b"]
    assert bots.revision() == 3
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bots.db"]
    bots.close()


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    SqliteBots(str(tmp_path / "bots.db"), create=True).close()
    assert (tmp_path / "bots.db").stat().st_mode & 0o777 == 0o600


def test_ten_thousand_bots_without_a_change_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bots.db"
    bots = SqliteBots(str(path), create=True)
    body = json.dumps(document("b").body)
    with sqlite3.connect(path) as other:
        other.executemany(
            "INSERT INTO bots (id, kind, body) VALUES (?, 'realtime', ?)", ((f"b{n}", body) for n in range(10_000))
        )
    other.close()
    assert len(bots.list("realtime")) == 10_000
    began_s = time.process_time()
    for _ in range(100):
        bots.revision()
    assert (time.process_time() - began_s) / 100 < 0.001
    bots.close()
