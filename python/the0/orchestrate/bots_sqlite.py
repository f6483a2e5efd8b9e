"""Bots in one SQLite file, shared by all processes of one machine's platform.

The file counts its revisions: asking whether anything changed reads one row, and each bot has the revision of its last change, so
that asking what changed reads only that. `next_execution_time` has a column of its own, since the scheduler notes it at every slot,
which changes no bot.
"""

from __future__ import annotations

import builtins
import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Final

from the0.documents import Kind, is_enabled
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate.bots import Changes, Document, changed_body
from the0.orchestrate.sqlite_file import SqliteFile

REMEMBERED_S: Final = 30 * 86400
"""How long a removal is remembered."""
_NEXT: Final = "next_execution_time"
_REOPENED: Final = 1 << 40
"""How far apart revisions are that were read from the file before and after it was opened anew."""


class SqliteBots:
    """From any thread."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Raises Fatal as SqliteFile does."""
        self._file = SqliteFile(path, create=create)
        self.name = self._file.name

    def revision(self) -> int:
        with self._file.reading() as db:
            return self._revision(db)

    def changed_since(self, revision: int | None) -> Changes:
        with self._file.reading() as db:
            db.execute("BEGIN")  # of one moment
            try:
                number = self._revision(db)
                # A file that was opened anew may be another one.
                whole = revision is None or revision > number or revision // _REOPENED != number // _REOPENED
                since = -1 if revision is None or whole else revision % _REOPENED
                rows = db.execute(
                    "SELECT id, kind, body, next_s FROM bots WHERE revision > ? ORDER BY id", (since,)
                ).fetchall()
                gone = db.execute("SELECT kind, id FROM removed WHERE revision > ?", (since,)).fetchall()
                count = len(rows) if whole else int(db.execute("SELECT count(*) FROM bots").fetchone()[0])
            finally:
                if db.in_transaction:  # some errors have ended it already
                    db.execute("COMMIT")
        documents = [self._document(row) for row in rows]
        return Changes(number, documents, frozenset(gone), count, whole)

    def list(self, kind: Kind) -> builtins.list[Document]:
        with self._file.reading() as db:
            rows = db.execute("SELECT id, kind, body, next_s FROM bots WHERE kind = ? ORDER BY id", (kind,)).fetchall()
        return [self._document(row) for row in rows]

    def get(self, bot_id: str) -> Document | None:
        with self._file.reading() as db:
            return self._get(db, bot_id)

    def removed(self, kind: Kind) -> frozenset[str]:
        since_s = int(time.time()) - REMEMBERED_S
        with self._file.reading() as db:
            rows = db.execute("SELECT id FROM removed WHERE kind = ? AND at_s > ?", (kind, since_s)).fetchall()
        return frozenset(str(row[0]) for row in rows)

    def insert(self, document: Document) -> bool:
        with self._file.writing() as db:
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
        with self._file.writing() as db:
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
        with self._file.writing() as db:
            there = self._get(db, bot_id)
            if there is None:
                return False
            db.execute("DELETE FROM bots WHERE id = ?", (bot_id,))
            self._remember(db, there, revision=_next_revision(db))
        return True

    def set_nexts(self, nexts: Mapping[str, int]) -> None:
        with self._file.writing() as db:
            db.executemany(
                "UPDATE bots SET next_s = ? WHERE id = ?", ((at_s, bot_id) for bot_id, at_s in nexts.items())
            )

    def damage(self) -> str | None:
        """Reads the whole file: what is wrong with it, None for nothing."""
        with self._file.reading() as db:
            said = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        return None if said == "ok" else said

    def close(self) -> None:
        self._file.close()

    # --- within a transaction ---------------------------------------------------------------------

    def _change(self, bot_id: str, change: Any) -> bool:
        with self._file.writing() as db:
            there = self._get(db, bot_id)
            if there is None:
                return False
            body = dict(there.body)
            change(body)
            self._put(db, Document(bot_id, there.kind, body), former=there)
        return True

    def _revision(self, db: sqlite3.Connection) -> int:
        return self._file.reopened * _REOPENED + int(db.execute("SELECT number FROM revision").fetchone()[0])

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
