"""Bots in one SQLite file, shared by all processes of one machine's platform.

The file counts its revisions: asking whether anything changed reads one row, and each bot has the revision of its last change, so
that asking what changed reads only that. `next_execution_time` has a column of its own, since the scheduler notes it at every slot,
which changes no bot.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from the0.documents import Kind, is_enabled
from the0.errors import ExitCode, Fatal, Fault, Transient, clip
from the0.orchestrate.bots import Changes, Document, changed_body

FORMAT: Final = 2
BUSY_S: Final = 10.0
REMEMBERED_S: Final = 30 * 86400
"""How long a removal is remembered."""
_NEXT: Final = "next_execution_time"
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


class SqliteBots:
    """One connection, one thread at a time in it."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Raises Fatal: USAGE where there is no file and none is to be made, STATE_DAMAGED for a file that is none of ours,
        damaged or of a newer format, LOCAL_DISK where the disk fails."""
        self.name = f"SQLite file {path}"
        self._path = path
        self._lock = threading.Lock()
        if not create and not os.path.exists(path):
            raise Fatal(
                f"There is no platform in {clip(os.path.dirname(path))}: `runtime up` or `runtime deploy` makes one, "
                "and --data or THE0_DATA names another folder.",
                code=ExitCode.USAGE,
            )
        try:
            self._db = self._open(create=create)
        except (sqlite3.Error, OSError) as reason:
            raise self._fault(reason) from reason

    def revision(self) -> int:
        with self._reading() as db:
            return int(db.execute("SELECT number FROM revision").fetchone()[0])

    def changed_since(self, revision: int | None) -> Changes:
        with self._reading() as db:
            db.execute("BEGIN")  # of one moment
            try:
                number = int(db.execute("SELECT number FROM revision").fetchone()[0])
                whole = revision is None or revision > number
                since = -1 if revision is None or whole else revision
                rows = db.execute(
                    "SELECT id, kind, body, next_s FROM bots WHERE revision > ? ORDER BY id", (since,)
                ).fetchall()
                gone = db.execute("SELECT kind, id FROM removed WHERE revision > ?", (since,)).fetchall()
                count = len(rows) if whole else int(db.execute("SELECT count(*) FROM bots").fetchone()[0])
            finally:
                db.execute("COMMIT")
        documents = [self._document(row) for row in rows]
        return Changes(number, documents, frozenset(gone), count, whole)

    def list(self, kind: Kind) -> builtins.list[Document]:
        with self._reading() as db:
            rows = db.execute("SELECT id, kind, body, next_s FROM bots WHERE kind = ? ORDER BY id", (kind,)).fetchall()
        return [self._document(row) for row in rows]

    def get(self, bot_id: str) -> Document | None:
        with self._reading() as db:
            return self._get(db, bot_id)

    def removed(self, kind: Kind) -> frozenset[str]:
        since_s = int(time.time()) - REMEMBERED_S
        with self._reading() as db:
            rows = db.execute("SELECT id FROM removed WHERE kind = ? AND at_s > ?", (kind, since_s)).fetchall()
        return frozenset(str(row[0]) for row in rows)

    def insert(self, document: Document) -> bool:
        with self._writing() as db:
            there = self._get(db, document.id)
            if there is not None and there.kind == document.kind:
                return False
            self._put(db, document, former=there)
        return True

    def update(
        self,
        bot_id: str,
        kind: Kind,
        *,
        config: Mapping[str, Any] | None = None,
        custom: Mapping[str, Any] | None = None,
        next_execution_time: int | None = None,
        upsert: bool = True,
    ) -> bool:
        with self._writing() as db:
            there = self._get(db, bot_id)
            if there is None and not upsert:
                return False
            before = dict(there.body) if there is not None else {"id": bot_id, "enabled": True}
            if there is not None and there.kind != kind:
                before.pop(_NEXT, None)
            body = changed_body(before, config=config, custom=custom, next_execution_time=next_execution_time)
            self._put(db, Document(bot_id, kind, body), former=there)
        return True

    def set_enabled(self, bot_id: str, enabled: bool) -> bool:
        def change(body: dict[str, Any]) -> None:
            if enabled and not (is_enabled(body) and not body.get("paused")):
                body.pop(_NEXT, None)
            body.pop("paused", None)
            body["enabled"] = enabled
            if enabled and not is_enabled(body):
                body["config"] = {**body["config"], "enabled": True}

        return self._change(bot_id, change)

    def set_paused(self, bot_id: str, paused: bool) -> bool:
        def change(body: dict[str, Any]) -> None:
            was = body.pop("paused", None)
            if paused:
                body["paused"] = True
            elif was:
                body.pop(_NEXT, None)

        return self._change(bot_id, change)

    def remove(self, bot_id: str) -> bool:
        with self._writing() as db:
            there = self._get(db, bot_id)
            if there is None:
                return False
            db.execute("DELETE FROM bots WHERE id = ?", (bot_id,))
            self._remember(db, there, revision=_next_revision(db))
        return True

    def set_nexts(self, nexts: Mapping[str, int]) -> None:
        with self._writing() as db:
            db.executemany(
                "UPDATE bots SET next_s = ? WHERE id = ?", ((at_s, bot_id) for bot_id, at_s in nexts.items())
            )

    def damage(self) -> str | None:
        """Reads the whole file: what is wrong with it, None for nothing."""
        with self._reading() as db:
            said = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        return None if said == "ok" else said

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- within a transaction ---------------------------------------------------------------------

    def _change(self, bot_id: str, change: Any) -> bool:
        with self._writing() as db:
            there = self._get(db, bot_id)
            if there is None:
                return False
            body = dict(there.body)
            change(body)
            self._put(db, Document(bot_id, there.kind, body), former=there)
        return True

    def _get(self, db: sqlite3.Connection, bot_id: str) -> Document | None:
        row = db.execute("SELECT id, kind, body, next_s FROM bots WHERE id = ?", (bot_id,)).fetchone()
        return self._document(row) if row is not None else None

    @staticmethod
    def _document(row: tuple[str, Kind, str, int | None]) -> Document:
        bot_id, kind, text, next_s = row
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            body = {"id": bot_id}  # which `documents.read` calls bad: an error on that bot alone
        if next_s is not None:
            body[_NEXT] = next_s
        return Document(bot_id, kind, body)

    def _put(self, db: sqlite3.Connection, document: Document, *, former: Document | None) -> None:
        if former == document:
            return
        body = dict(document.body)
        next_s = body.pop(_NEXT, None)
        revision = _next_revision(db)
        db.execute(
            "INSERT INTO bots (id, kind, body, next_s, revision) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET kind = excluded.kind, body = excluded.body, next_s = excluded.next_s, revision = excluded.revision",
            (document.id, document.kind, _text(document.id, body), _whole(next_s), revision),
        )
        db.execute("DELETE FROM removed WHERE id = ? AND kind = ?", (document.id, document.kind))
        if former is not None and former.kind != document.kind:
            self._remember(db, former, revision=revision)

    def _remember(self, db: sqlite3.Connection, document: Document, *, revision: int) -> None:
        now_s = int(time.time())
        db.execute(
            "INSERT OR REPLACE INTO removed (id, kind, at_s, revision) VALUES (?, ?, ?, ?)",
            (document.id, document.kind, now_s, revision),
        )
        db.execute("DELETE FROM removed WHERE at_s < ?", (now_s - REMEMBERED_S,))

    # --- the file ---------------------------------------------------------------------------------

    def _open(self, *, create: bool) -> sqlite3.Connection:
        if create:
            # As its owner's only: configs hold what bots trade with.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found == 0:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise self._damaged("it is another program's")
            db.execute("PRAGMA journal_mode = WAL")
        # A stop that was confirmed survives the host's crash, too.
        db.execute("PRAGMA synchronous = FULL")
        if found in (0, 1):
            db.execute("BEGIN IMMEDIATE")
            # Somebody else may have been quicker.
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
            for statement in {0: _TABLES + _SINCE_2, 1: _SINCE_2}.get(found, "").split(";\n"):
                db.execute(statement)
            if found in (0, 1):
                db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found != FORMAT:
            raise Fatal(
                f"The {self.name} has format {found}, and this version knows {FORMAT}: update the runtime.",
                code=ExitCode.STATE_DAMAGED,
            )
        db.execute("SELECT number FROM revision").fetchone()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as reason:
                raise self._fault(reason) from reason

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some errors have ended it already
                    db.execute("ROLLBACK")
                raise

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


def _next_revision(db: sqlite3.Connection) -> int:
    db.execute("UPDATE revision SET number = number + 1")
    return int(db.execute("SELECT number FROM revision").fetchone()[0])


def _text(bot_id: str, body: Mapping[str, Any]) -> str:
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as reason:
        raise Fatal(
            f"The document of bot {clip(bot_id)} is no JSON: {clip(str(reason))}; correct it.", code=ExitCode.USAGE
        ) from reason


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
