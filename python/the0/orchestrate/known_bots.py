"""The stored bots as last read: where something changed, only that is read again."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from the0 import documents
from the0.documents import BadBot, Bot, Kind
from the0.orchestrate.bots import BotStore, Changes


class KnownBots:
    """From any thread. What it gives is never edited, but replaced."""

    def __init__(self, store: BotStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._read: dict[tuple[Kind, str], Bot | BadBot] = {}
        """By collection and the store's own id, which may be another one than the document's."""
        self.revision: int | None = None
        """None: nothing was read yet."""
        self.bots: Mapping[str, Bot | BadBot] = {}
        """By id."""
        self.removed: frozenset[str] = frozenset()
        """Ids whose removal was seen."""

    def refresh(self) -> bool:
        """Whether there is anything new. Raises Fault where the store fails; then the last ones count."""
        with self._lock:
            if self._store.revision() == self.revision:
                return False
            changes = self._store.changed_since(self.revision)
            read = self._after(changes)
            if len(read) != changes.count:  # something came or went without a trace
                changes = self._store.changed_since(None)
                read = self._after(changes)
            removed = self._store.removed("realtime") | self._store.removed("scheduled")
            self._read = read
            self.bots = documents.by_id(read.values())
            self.removed = removed - self.bots.keys()
            self.revision = changes.revision
            return True

    def _after(self, changes: Changes) -> dict[tuple[Kind, str], Bot | BadBot]:
        read = {} if changes.whole else dict(self._read)
        for gone in changes.gone:
            read.pop(gone, None)
        for each in changes.documents:
            read[each.kind, each.id] = documents.read(each.body, kind=each.kind)
        return read
