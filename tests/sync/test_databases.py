"""SQLite databases in the state folder: whatever writes them, each stored generation holds them whole."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_keeper import Kept, keeping
from world import World

from the0.sync.head import Content
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore

SOAK = bool(os.environ.get("THE0_SOAK"))
ROUNDS = 200 if SOAK else 12
DEADLINE_S = 1800.0 if SOAK else 120.0

# Moves money between two accounts of two tables, and writes down each move in a third: the sum stays, and all three agree.
WRITER = """
import random, sqlite3, sys, time
path, mode, pause_s, filler = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
base = sqlite3.connect(path, timeout=0, isolation_level=None)
base.execute("PRAGMA journal_mode = " + mode)
base.execute("PRAGMA synchronous = OFF")
base.executescript('''
    CREATE TABLE IF NOT EXISTS a (money INTEGER); CREATE TABLE IF NOT EXISTS b (money INTEGER);
    CREATE TABLE IF NOT EXISTS moves (amount INTEGER, note BLOB); CREATE TABLE IF NOT EXISTS filler (data BLOB);
''')
base.execute("BEGIN")
base.execute("INSERT INTO a VALUES (1000)")
base.execute("INSERT INTO b VALUES (1000)")
for _ in range(filler):
    base.execute("INSERT INTO filler VALUES (randomblob(3000))")
base.execute("COMMIT")
print("ready", flush=True)
chance, locked, done = random.Random(3), 0, 0
while True:
    amount = chance.randint(-50, 50)
    try:
        base.execute("BEGIN IMMEDIATE")
        base.execute("UPDATE a SET money = money - ?", (amount,))
        if filler:
            base.execute("UPDATE filler SET data = randomblob(3000) WHERE rowid = ?", (chance.randint(1, filler),))
        base.execute("INSERT INTO moves VALUES (?, randomblob(500))", (amount,))
        base.execute("UPDATE b SET money = money + ?", (amount,))
        base.execute("COMMIT")
        done += 1
    except sqlite3.OperationalError as reason:
        assert "locked" in str(reason), reason
        locked += 1
        if base.in_transaction:
            base.execute("ROLLBACK")
    print(done, locked, flush=True)
    time.sleep(pause_s * chance.random())
"""


class Writing:
    """A process that writes a database without rest. `done` and `locked` count its transactions."""

    def __init__(self, path: Path, *, mode: str, pause_s: float, filler: int) -> None:
        arguments = [str(path), mode, str(pause_s), str(filler)]
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.done = self.locked = 0
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.done, self.locked = map(int, line.split())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join()


@contextmanager
def writing(path: Path, *, mode: str, pause_s: float = 0.002, filler: int = 0) -> Iterator[Writing]:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Writing(path, mode=mode, pause_s=pause_s, filler=filler)
    try:
        yield writer
        assert writer.process.poll() is None, "the writer must not end by itself"
    finally:
        writer.kill()


def generations(kept: Kept, *, count: int) -> list[Content]:
    """One after the other, as quickly as they come."""
    found: list[Content] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} generations, {kept.said}"
        kept.keeper.one_pass(time.monotonic())
        content = kept.keeper._committer.content
        if not found or content.generation > found[-1].generation:
            found.append(content)
    return found


def restored(world: World, content: Content) -> Path:
    world.clock += 1
    path = world.base / f"restored-{world.clock}"
    with StateFolder(str(path)) as folder:
        restore(
            folder,
            content,
            store=world.store,
            bucket=world.buckets.state,
            bot_id=world.bot_id,
            origin=Origin(),
            max_bytes=1 << 40,
            stop=threading.Event(),
        )
    return path


def whole(path: Path) -> int:
    """How many moves it knows. SQLite itself opens it, and rolls back or forward what is to be."""
    base = sqlite3.connect(path, isolation_level=None)
    try:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (a,) = base.execute("SELECT sum(money) FROM a").fetchone()
        (b,) = base.execute("SELECT sum(money) FROM b").fetchone()
        moves, total = base.execute("SELECT count(*), coalesce(sum(amount), 0) FROM moves").fetchone()
    finally:
        base.close()
    assert a + b == 2000
    assert b - 1000 == total
    return int(moves)


@pytest.mark.parametrize(
    ("mode", "filler", "pause_s"),
    [
        ("wal", 0, 0.002),
        ("wal", 1500, 0.0),
        ("delete", 0, 0.002),
        ("delete", 300, 0.0),
        ("truncate", 0, 0.002),
        ("persist", 0, 0.002),
        ("memory", 0, 0.002),
    ],
)
def test_every_generation_holds_a_whole_database(world: World, mode: str, filler: int, pause_s: float) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "money" / "base.db"
    with writing(path, mode=mode, pause_s=pause_s, filler=filler) as writer:
        with keeping(world, host) as kept:
            found = generations(kept, count=ROUNDS)
            holds = kept.keeper._committer._databases.holds
        done, locked = writer.done, writer.locked
    checked = 0
    moves = []
    for content in found:
        tree = restored(world, content)
        assert not (tree / "money" / "base.db-shm").exists()
        if (tree / "money" / "base.db").exists():
            moves.append(whole(tree / "money" / "base.db"))
            checked += 1
        else:
            assert content.generation == 0 or content.stale == ("money/base.db",)
    stale = sum(bool(content.stale) for content in found)
    print(
        f"{mode}: {checked} whole, {stale} stale, {holds} holds; {done} transactions, {locked} locked; moves {moves[0]} to {moves[-1]}"
    )
    assert moves == sorted(moves)
    world.check()
