"""Former generations. HEAD's list gives each generation since the last cleaning: those of its segments that are not younger.

A commit that drops segments first writes the list as it was to `history/<lineage>/<generation>`, which gives the generations before it
in the same way, back to the cleaning before. Entries are never changed; `sweep` removes the oldest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from the0 import canonical, names, statehash
from the0.errors import ExitCode, Permanent, clip
from the0.frozen import dataclass, replace
from the0.objects.store import Missing, ObjectInfo, ObjectStore
from the0.sync.head import LIMIT_BYTES, Content, content_body, read_content

FORMAT = 1


class NotKept(Permanent):
    """That generation never was, or is not kept any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A generation that can be restored. `stored_s`: when its last segment was stored, by the store's clock; `bytes` of its segments."""

    lineage: str
    generation: int
    stored_s: float | None
    segments: int
    bytes: int


class HistoryFiles:
    """The history entries of one bot in the store."""

    def __init__(self, store: ObjectStore, *, bucket: str, bot_id: str) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id

    def write(self, content: Content) -> None:
        """Idempotent: a generation of a lineage has one content."""
        body = {"format": FORMAT, "content": content_body(content)}
        body["self_digest"] = statehash.digest(canonical.dumps(body).encode())
        key = names.history_key(self._bot_id, lineage=content.lineage, generation=content.generation)
        self._store.put(self._bucket, key, canonical.dumps(body).encode())

    def list(self) -> list[ObjectInfo]:
        """Entries in order of lineage and generation."""
        found = self._store.list(self._bucket, names.history_prefix(self._bot_id))
        return [info for info in found if names.numbered(info.key) is not None]

    def read(self, key: str) -> Content | None:
        """None where it is gone meanwhile. Raises Permanent (STATE_DAMAGED) for one that cannot be trusted."""
        try:
            data = self._store.get(self._bucket, key, limit_bytes=LIMIT_BYTES).data
        except Missing:
            return None
        return decode(data, key=key, bot_id=self._bot_id)

    def content_at(self, head: Content, generation: int, *, lineage: str | None = None) -> Content:
        """What that generation was, by HEAD or an entry. Raises NotKept, Permanent (STATE_DAMAGED)."""
        lineage = lineage or head.lineage
        if lineage == head.lineage and (found := prefix(head, generation)) is not None:
            return found
        for info in self.list():
            if names.numbered(info.key) >= (lineage, generation):  # type: ignore[operator]
                entry = self.read(info.key)
                if entry is not None and entry.lineage == lineage and (found := prefix(entry, generation)) is not None:
                    return found
                break
        raise NotKept(
            f"Generation {generation} of bot {self._bot_id} is not kept: `runtime state history` lists those that are.",
            code=ExitCode.USAGE,
        )

    def kept(self, head: Content) -> Iterator[Kept]:
        """All generations that can be restored, newest first; those of other lineages last."""
        stored_s = {
            info.key: info.modified_s for info in self._store.list(self._bucket, names.segments_prefix(self._bot_id))
        }
        yield from _generations(head, stored_s)
        infos = sorted(self.list(), key=lambda info: by_age(info, head.lineage), reverse=True)
        for info in infos:
            entry = self.read(info.key)
            if entry is None or (entry.lineage == head.lineage and entry.generation >= head.since):
                continue  # gone, or HEAD's own list gives the same
            if all(ref.key in stored_s for ref in entry.segments):
                yield from _generations(entry, stored_s)


def prefix(content: Content, generation: int) -> Content | None:
    """The generation as the list of a later one gives it; None where it does not."""
    if not content.since <= generation <= content.generation or generation < 1:
        return None
    if generation == content.generation:
        return content
    segments = tuple(ref for ref in content.segments if _generation(ref.key) <= generation)
    # What else HEAD said of it then is not known any more.
    return replace(content, generation=generation, segments=segments, cut=False, stale=(), incomplete=(), archive=None)


def decode(data: bytes, *, key: str, bot_id: str) -> Content:
    """Raises Permanent (STATE_DAMAGED) in one sentence."""
    try:
        body = json.loads(data)
        told = body.pop("self_digest", None)
        if body["format"] != FORMAT:
            raise ValueError(f"it is of format {body['format']}, and this runtime reads {FORMAT}")
        # Those that `adopt` wrote at first have none.
        if told is not None and told != statehash.digest(canonical.dumps(body).encode()):
            raise ValueError("its digest does not match its bytes")
        content = read_content(body["content"], bot_id=bot_id)
        if names.history_key(bot_id, lineage=content.lineage, generation=content.generation) != key:
            raise ValueError("it is of another generation")
        return content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as reason:
        raise Permanent(
            f"The history entry {key} cannot be used ({clip(str(reason))}): delete it, unless a good copy can be put back.",
            code=ExitCode.STATE_DAMAGED,
        ) from reason


def _generations(content: Content, stored_s: dict[str, float]) -> Iterator[Kept]:
    refs = sorted(content.segments, key=lambda ref: _generation(ref.key))
    total = sum(ref.bytes for ref in refs)
    for generation in range(content.generation, max(content.since, 1) - 1, -1):
        newest = None
        count = len(refs)
        if refs and _generation(refs[-1].key) == generation:
            newest = stored_s.get(refs[-1].key)
        yield Kept(lineage=content.lineage, generation=generation, stored_s=newest, segments=count, bytes=total)
        while refs and _generation(refs[-1].key) >= generation:
            total -= refs.pop().bytes


def _generation(key: str) -> int:
    found = names.numbered(key)
    return found[1] if found is not None else 0


def by_age(info: ObjectInfo, lineage: str) -> tuple[bool, float, int]:
    """For an order of age: entries of the present lineage are the newest, and in order of their generations."""
    found = names.numbered(info.key)
    assert found is not None
    return (True, 0.0, found[1]) if found[0] == lineage else (False, info.modified_s, found[1])
