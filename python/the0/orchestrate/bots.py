"""Where bots are stored: one protocol over SQLite (one machine) and MongoDB (with other programs beside us).

A store keeps documents as they came and judges nothing; `documents.py` reads them. A bot is in one collection only.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from the0.documents import Kind


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    kind: Kind
    body: Mapping[str, Any]
    """The whole document, unknown fields and `next_execution_time` included. Not to be changed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the stored bots since a revision. Of one moment."""

    revision: int
    """Of that moment."""
    documents: list[Document]
    """Those that were inserted, updated or moved, as they are now."""
    gone: frozenset[tuple[Kind, str]]
    """Those that left their collection; they may be among `documents` with the other one."""
    count: int
    """How many documents there are in all. Who knows another number by now has missed something, and asks for all of them."""
    whole: bool
    """`documents` are all there are."""


class BotStore(Protocol):
    """Every method may be called from any thread, and raises a `Fault` where the store fails."""

    @property
    def name(self) -> str:
        """What to call this store before a person."""
        ...

    def revision(self) -> int:
        """Cheap. The same value as before: no bot was inserted, updated or removed since, by any process."""
        ...

    def changed_since(self, revision: int | None) -> Changes:
        """None: all. A store that cannot tell what changed may always answer with all; so does any for a revision that it does not
        know (any more)."""
        ...

    def list(self, kind: Kind) -> builtins.list[Document]:
        """By id. Of one moment."""
        ...

    def get(self, bot_id: str) -> Document | None:
        """From whichever collection it is in."""
        ...

    def removed(self, kind: Kind) -> frozenset[str]:
        """Ids that somebody removed from this collection (also by moving them to the other one) within the last 30 days
        and that are not back: a bot that is missing and not named here is missing for another reason."""
        ...

    def insert(self, document: Document) -> bool:
        """False where the id is in that collection already: it never overwrites. From the other one the bot moves here."""
        ...

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
        """Sets what is given and leaves all other fields as they are; `next_execution_time` goes when the schedule
        changes and none is given. From the other collection the bot moves here. A missing bot is inserted, or, without
        `upsert`, False is returned. Idempotent: what changes nothing is no new revision."""
        ...

    def set_enabled(self, bot_id: str, enabled: bool) -> bool:
        """Also corrects a `config.enabled` that says otherwise, and ends a pause. Slots that went by while it was stopped or
        paused are nobody's: `next_execution_time` goes when it is started. False: no such bot. Idempotent."""
        ...

    def set_paused(self, bot_id: str, paused: bool) -> bool:
        """When a pause ends, `next_execution_time` goes. False: no such bot. Idempotent."""
        ...

    def remove(self, bot_id: str) -> bool:
        """False: no such bot. Idempotent."""
        ...

    def set_nexts(self, nexts: Mapping[str, int]) -> None:
        """What the scheduler notes for others, Unix seconds by bot; no new revision. A missing bot is no error."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


def changed_body(
    body: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None,
    custom: Mapping[str, Any] | None,
    next_execution_time: int | None,
) -> dict[str, Any]:
    """A document after `update`."""
    changed = dict(body)
    if config is not None:
        if _schedule(config) != _schedule(body.get("config")):
            changed.pop("next_execution_time", None)
        changed["config"] = dict(config)
    if custom is not None:
        changed["custom"] = dict(custom)
    if next_execution_time is not None:
        changed["next_execution_time"] = next_execution_time
    return changed


def _schedule(config: object) -> object:
    return config.get("schedule") if isinstance(config, Mapping) else None
