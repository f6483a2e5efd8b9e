"""The one SQLite file of a platform: made whole, opened, and opened anew where it was replaced or proved damaged.

With a rollback journal rather than a write-ahead log: then there is one file to copy and to put back, no second one is mapped into
memory, and closing it writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from typing import Final

from the0.errors import ExitCode, Fatal, Fault, Transient, clip

FORMAT: Final = 2
BUSY_S: Final = 10.0
_TABLES: Final = """
CREATE TABLE bots (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, next_s INTEGER) WITHOUT ROWID;
CREATE TABLE removed (id TEXT, kind TEXT, at_s INTEGER NOT NULL, PRIMARY KEY (id, kind)) WITHOUT ROWID;
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (1);
"""
_SINCE_2: Final = """
ALTER TABLE bots ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE removed ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
CREATE INDEX bots_revision ON bots (revision);
"""
"""Format 1 is without it."""
_PASSING: Final = frozenset(
    (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT)
)
"""What says nothing against the file itself."""


class SqliteFile:
    """One connection, one thread at a time in it."""

    def __init__(self, path: str, *, create: bool) -> None:
        """Raises Fatal: USAGE where there is no file and none is to be made, STATE_DAMAGED for a file that is none of ours,
        damaged or of a newer format, LOCAL_DISK where the disk fails."""
        self.name = f"SQLite file {path}"
        self.reopened = -1
        """How often since: another number, and nothing that was read before counts any more."""
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._closed = False
        try:
            if not os.path.exists(path):
                if not create:
                    raise Fatal(
                        f"There is no platform in {clip(os.path.dirname(path))}: `runtime up` or `runtime deploy` makes one, "
                        "and --data or THE0_DATA names another folder.",
                        code=ExitCode.USAGE,
                    )
                _make(path)
            self._open()
        except (sqlite3.Error, OSError) as reason:
            raise self._fault(reason) from reason

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Raises Fault, also for what SQLite raises within."""
        with self._lock:
            try:
                yield self._connection()
            except sqlite3.Error as reason:
                if getattr(reason, "sqlite_errorcode", 0) & 0xFF not in _PASSING and not self._closed:
                    self._open_again()
                raise self._fault(reason) from reason

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises as `reading` does."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some errors have ended it already
                    with contextlib.suppress(sqlite3.Error):  # the first one says what is wrong
                        db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._closed = True
            self._leave()

    # --- open -------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        """On the very file that the path names now."""
        if self._closed:
            raise sqlite3.ProgrammingError("it is closed")
        if self._db is None or self._identity != self._look():
            self._open()
        assert self._db is not None
        self._db.execute("PRAGMA shrink_memory")  # what was read before may be written over by now
        return self._db

    def _open_again(self) -> None:
        """After an error: what is remembered of the file may be what is wrong. Raises Fault where that does not help, always with the
        same sentence for the same trouble."""
        try:
            self._open()
        except sqlite3.Error as reason:
            raise self._fault(reason) from reason

    def _open(self) -> None:
        self._leave()
        identity = self._look()
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db, self._identity = db, identity
        self.reopened += 1

    def _leave(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):  # of a damaged one nothing is wanted any more
                self._db.close()
        self._db, self._identity = None, None

    def _look(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except FileNotFoundError as reason:
            raise self._damaged("it is gone") from reason
        except OSError as reason:
            raise self._fault(reason) from reason
        return found.st_dev, found.st_ino

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found == 0:
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            raise self._damaged("it is empty" if empty else "it is another program's")
        if db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            _without_wal(db)  # as earlier versions made it
        # A stop that was confirmed survives the host's crash, too.
        db.execute("PRAGMA synchronous = FULL")
        if found == 1:
            db.execute("BEGIN IMMEDIATE")
            # Somebody else may have been quicker.
            if db.execute("PRAGMA user_version").fetchone()[0] == 1:
                _execute(db, _SINCE_2)
            db.execute("COMMIT")
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found != FORMAT:
            raise Fatal(
                f"The {self.name} has format {found}, and this version knows {FORMAT}: update the runtime.",
                code=ExitCode.STATE_DAMAGED,
            )
        db.execute("SELECT number FROM revision").fetchone()

    # --- what is wrong ----------------------------------------------------------------------------

    def _fault(self, reason: sqlite3.Error | OSError) -> Fault:
        if isinstance(reason, OSError):
            said = os.strerror(reason.errno) if reason.errno else str(reason)
            return self._disk(said, "make its folder, or let this user write there")
        code = getattr(reason, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Transient(
                f"The {self.name} is locked by another process for over {BUSY_S:g} s: look for one that is stopped.",
                code=ExitCode.LOCAL_DISK,
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            full = code == sqlite3.SQLITE_FULL
            return self._disk("it is full" if full else clip(str(reason)), "free some space" if full else "repair it")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return self._disk(clip(str(reason)), "let this user write the file and its folder")
        return self._damaged(clip(str(reason)))

    def _disk(self, said: str, remedy: str) -> Fatal:
        return Fatal(f"The disk under the {self.name} says: {said}; {remedy}.", code=ExitCode.LOCAL_DISK)

    def _damaged(self, said: str) -> Fatal:
        return Fatal(
            f"The {self.name} cannot be read: {said}; restore it from a copy, or move it away and deploy the bots again.",
            code=ExitCode.STATE_DAMAGED,
        )


def _make(path: str) -> None:
    """Whole, or not at all: an empty file is a damaged one. As its owner's only: configs hold what bots trade with."""
    made = f"{path}-new-{os.urandom(8).hex()}"
    os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            _execute(db, _TABLES + _SINCE_2)
            db.execute("COMMIT")
        with contextlib.suppress(FileExistsError):  # somebody else was quicker
            os.link(made, path)
    finally:
        os.unlink(made)


def _execute(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {FORMAT}")


def _without_wal(db: sqlite3.Connection) -> None:
    """Where nobody else has it open; else it stays for the next time."""
    db.execute("PRAGMA busy_timeout = 0")
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("PRAGMA journal_mode = DELETE")
    db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
