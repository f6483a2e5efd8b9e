"""SQLite databases in the state folder: whatever writes them, each stored generation holds them whole."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from test_keeper import Kept, keeping
from world import World, read_tree, write_tree

from the0.settings import Limits
from the0.sync.head import Content
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore

SOAK = bool(os.environ.get("THE0_SOAK"))
ROUNDS = 200 if SOAK else 20
ALONE = 500 if SOAK else 20
"""Transactions before we look at the database for the first time."""
DEADLINE_S = 1800.0 if SOAK else 120.0

# Moves money between two accounts of two tables, and writes down each move in a third: the sum stays, and all three agree.
WRITER = """
import random, sqlite3, sys, time
path, mode, pause_s, filler = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
base = sqlite3.connect(path, timeout=0, isolation_level=None)
if mode == "exclusive":
    base.execute("PRAGMA locking_mode = EXCLUSIVE")
base.execute("PRAGMA journal_mode = " + {"exclusive": "delete", "short wal": "wal"}.get(mode, mode))
if mode == "short wal":
    base.execute("PRAGMA wal_autocheckpoint = 10")
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
        time.sleep(0.001)
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
            if line.endswith("\n"):
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
    ("mode", "filler", "pause_s", "beside"),
    [
        # Rests between two transactions: cuts.
        ("wal", 0, 0.002, False),
        ("delete", 0, 0.002, False),
        # Never rests.
        ("wal", 1500, 0.0, False),
        ("delete", 300, 0.0, False),
        # Its log is begun anew after every few transactions, many times while the main file is copied.
        ("short wal", 3000, 0.0, False),
        # Another file never rests, so that there are no cuts.
        ("wal", 0, 0.002, True),
        ("delete", 0, 0.002, True),
        ("truncate", 0, 0.002, True),
        ("persist", 50, 0.002, True),
        ("memory", 0, 0.002, True),
        ("exclusive", 0, 0.05, True),
    ],
)
def test_every_generation_holds_a_whole_database(
    world: World, mode: str, filler: int, pause_s: float, beside: bool
) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "money" / "base.db"
    with writing(path, mode=mode, pause_s=pause_s, filler=filler) as writer:
        wait(lambda: writer.done >= ALONE)
        alone = writer.done, writer.locked
        with noise(host.state) if beside else nullcontext(), keeping(world, host) as kept:
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
    stale, cuts = sum(bool(content.stale) for content in found), sum(content.cut for content in found)
    print(f"{mode}: {checked} whole, {cuts} cuts, {stale} stale, {holds} holds")
    print(
        f"without us {alone[0]} transactions, {alone[1]} locked; with us {done - alone[0]}, {locked - alone[1]} locked"
    )
    assert alone[1] == 0, "nobody else locks it"
    assert moves == sorted(moves)
    assert moves[-1] > moves[0]
    # While it is held a writer tries again every millisecond.
    assert locked <= (0 if "wal" in mode else holds * 150), f"{holds} holds"
    assert set(read_tree(path.parent)) <= {b"base.db", b"base.db-wal", b"base.db-shm", b"base.db-journal"}
    world.check()


HOT = """
import os, signal, sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("PRAGMA cache_size = 2")
base.execute("BEGIN")
base.execute("UPDATE a SET money = money - 7")
base.execute("UPDATE filler SET data = randomblob(3000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_what_a_killed_writer_left_is_stored_with_its_journal(world: World, mode: str) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "base.db"
    with writing(path, mode=mode, filler=50) as writer:
        wait(lambda: writer.done > 5)
    subprocess.run([sys.executable, "-c", HOT, str(path)], check=False)
    companion = b"base.db-" + (b"journal" if mode == "delete" else b"wal")
    assert read_tree(host.state)[companion][1], "it must have left one"
    with keeping(world, host) as kept:
        kept.keeper.finish(deadline_s=time.monotonic() + 60)
    tree = restored(world, world.head.content)
    assert companion in read_tree(tree)
    assert b"base.db-shm" not in read_tree(tree)
    assert whole(tree / "base.db") > 5
    assert world.head.content.cut
    world.check()


LONG = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("PRAGMA cache_size = 2")
base.execute("PRAGMA synchronous = OFF")
base.execute("CREATE TABLE IF NOT EXISTS filler (data BLOB)")
base.execute("BEGIN")
print("ready", flush=True)
for _ in range(200):
    base.execute("INSERT INTO filler VALUES (randomblob(3000))")
while True:
    base.execute("UPDATE filler SET data = randomblob(3000) WHERE rowid = 1 + abs(random()) % 200")
"""


@contextmanager
def in_one_long_transaction(path: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", LONG, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("known", [True, False])
def test_one_that_never_rests_stays_as_it_was_stored_and_is_listed(world: World, known: bool) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "base.db"
    if known:
        with writing(path, mode="delete", filler=20) as writer:
            wait(lambda: writer.done > 3)
    with keeping(world, host) as kept:
        kept.keeper.one_pass(time.monotonic())
        with in_one_long_transaction(path):
            until(kept, lambda: world.head.content.stale == ("base.db",))
            assert not world.head.content.cut
            write_tree(host.state, {"other": b"1"})
            until(kept, lambda: "other" in stored(world))
            tree = restored(world, world.head.content)
            if known:
                assert whole(tree / "base.db") > 3
            elif (tree / "base.db").exists():  # it was caught in a rest
                assert sound(tree / "base.db")
        assert kept.said
        assert [line for line in kept.said if "base.db" in line] == kept.said
        until(kept, lambda: not world.head.content.stale)
    tree = restored(world, world.head.content)
    assert (tree / "base.db-journal").exists()
    assert whole(tree / "base.db") > 3 if known else sound(tree / "base.db")
    world.check()


def test_a_database_that_is_deleted_while_it_is_left_out_is_gone(world: World) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "base.db"
    with keeping(world, host) as kept:
        kept.keeper.one_pass(time.monotonic())
        with in_one_long_transaction(path):
            write_tree(host.state, {"other": b"1"})
            until(kept, lambda: bool(world.head.content.stale) and "other" in stored(world))
        for each in host.state.glob("base.db*"):
            each.unlink()
        until(kept, lambda: not world.head.content.stale)
        kept.keeper.finish(deadline_s=time.monotonic() + 60)
    assert set(stored(world)) == {"other"}
    world.check()


def test_nothing_is_copied_or_held_where_nothing_moves(world: World) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "base.db"
    with writing(path, mode="wal") as writer:
        wait(lambda: writer.done > 3)
    with keeping(world, host) as kept:
        databases = kept.keeper._committer._databases
        databases.copy = forbidden  # type: ignore[method-assign]
        until(kept, lambda: "base.db" in stored(world))
        generation = world.head.content.generation
        for _ in range(3):
            kept.keeper._whole = True
            kept.keeper.one_pass(time.monotonic())
        assert world.head.content.generation == generation
    assert set(stored(world)) == {"base.db", "base.db-wal"}
    assert not (host.state / ".the0" / "databases").exists()


NOISE = """
import os, sys, itertools
number = itertools.count()
while True:
    with open(os.path.join(sys.argv[1], "noise"), "w") as file:
        file.write(str(next(number)))
    for name in sys.argv[2:]:
        os.utime(os.path.join(sys.argv[1], name), follow_symlinks=False)
"""


@contextmanager
def noise(state: Path, *names: str) -> Iterator[None]:
    """A file that never rests, and others that seem not to."""
    process = subprocess.Popen([sys.executable, "-c", NOISE, str(state), *names])
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_hostile_files_harm_nothing(world: World, tmp_path: Path) -> None:
    host = world.host()
    world.start(host)
    odd = "a?mode=rw&b%41#c\n\udcff.db"
    state = host.state
    write_tree(tmp_path, {"outside": b"SQLite format 3\0" + b"secret" * 1000})
    fake = b"SQLite format 3\0" + os.urandom(5000)
    logged = b"SQLite format 3\0\x10\0\2\2" + os.urandom(5000)
    write_tree(
        state,
        {
            "short": b"SQLite format 3\0",
            "fake": fake,
            "fake-wal": os.urandom(4000),
            "logged": logged,
            "logged-wal": os.urandom(40),
            "logged-shm": os.urandom(32768),
            "pipe": logged,
            "notes-wal": b"no log of anything",
            "folder": logged,
            "folder-wal": None,
        },
    )
    os.mkfifo(state / "pipe-wal")
    os.mkfifo(state / "pipe-journal")
    (state / "folder-journal").symlink_to(tmp_path / "outside")
    (state / "link.db").symlink_to(tmp_path / "outside")
    with open(state / "sparse", "wb") as file:
        file.write(logged)
        file.truncate(1 << 31)
    names = ["short", "fake", "fake-wal", "logged", "logged-wal", "pipe", "folder", "link.db", "sparse"]
    with writing(state / odd, mode="delete", pause_s=0.0, filler=30):
        with noise(state, *names), keeping(world, host) as kept:
            found = generations(kept, count=4)
    for content in found[1:]:
        tree = restored(world, content)
        if (tree / odd).exists():
            assert whole(tree / odd) >= 0
        for name in ("fake", "logged"):
            assert not (tree / name).exists() or (tree / name).read_bytes() in (fake, logged)
        assert not (tree / "logged-shm").exists()
        assert b"secret" not in b"".join(data for _, data in read_tree(tree, skip="sparse").values())
    with keeping(world, host) as kept:
        kept.keeper.finish(deadline_s=time.monotonic() + 60)
    assert world.head.content.stale == ()
    tree = restored(world, world.head.content)
    assert (tree / "fake-wal").exists()
    assert (tree / "notes-wal").read_bytes() == b"no log of anything"
    assert whole(tree / odd) >= 0
    world.check()


def test_a_database_over_the_limit_keeps_its_former_log_too(world: World) -> None:
    host = world.host(limits=Limits(state_file_bytes=1 << 20))
    world.start(host)
    path = host.state / "base.db"
    with keeping(world, host) as kept:
        with writing(path, mode="wal", filler=20) as writer:
            wait(lambda: writer.done > 5)
        until(kept, lambda: "base.db" in stored(world))
        before = restored(world, world.head.content)
        base = sqlite3.connect(path, isolation_level=None)
        base.execute("UPDATE a SET money = money + 1")
        base.execute("UPDATE b SET money = money - 1")
        base.execute("INSERT INTO moves VALUES (-1, randomblob(2000000))")
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        base.execute("INSERT INTO moves VALUES (0, randomblob(10))")
        write_tree(host.state, {"other": b"1"})
        until(kept, lambda: "other" in stored(world))
        assert world.head.content.incomplete == ("base.db",)
        tree = restored(world, world.head.content)
        for name in ("base.db", "base.db-wal"):
            assert (tree / name).read_bytes() == (before / name).read_bytes()
        assert whole(tree / "base.db") > 5
        base.execute("DELETE FROM moves WHERE length(note) > 1000000")
        base.execute("UPDATE a SET money = money - 1")
        base.execute("UPDATE b SET money = money + 1")
        base.execute("VACUUM")
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        base.execute("INSERT INTO moves VALUES (0, randomblob(10))")
        until(kept, lambda: not world.head.content.incomplete)
        base.close()
    tree = restored(world, world.head.content)
    assert whole(tree / "base.db") > 6
    world.check()


def sound(path: Path) -> bool:
    base = sqlite3.connect(path, isolation_level=None)
    try:
        return bool(base.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    finally:
        base.close()


def forbidden(*_: object) -> None:
    raise AssertionError("nothing moved")


def stored(world: World) -> dict[str, bytes]:
    return {os.fsdecode(path): data for path, (_, data) in world.stored_tree().items()}


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until(kept: Kept, done: Callable[[], bool]) -> None:
    def passed() -> bool:
        kept.keeper.one_pass(time.monotonic())
        return done()

    wait(passed)
