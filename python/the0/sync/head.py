"""HEAD: the one object of a bot's state that moves.

It names the content (which segments make which generation) and the claim (who may write). It is replaced by
compare-and-set only, and carries a new nonce each time, so that no ETag ever returns and a writer that lost
the answer to its PUT can tell whether the PUT had worked.
"""

from __future__ import annotations

import json
import os
from typing import Any

from the0 import canonical, names, statehash
from the0.errors import ExitCode, Permanent, clip
from the0.frozen import dataclass, replace
from the0.objects.store import Missing, NotModified, ObjectStore, PreconditionFailed, Unavailable

FORMAT = 1
LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SegmentRef:
    key: str
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """The state archive as we know it: its ETag, and the generation it shows."""

    etag: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One generation. `tombstone` names the lineage of a removed bot: this very lineage (the bot is removed) or
    the one that this lineage began over. `since`: the last generation that dropped segments; from there on, each one is
    a beginning of the list."""

    lineage: str
    generation: int = 0
    segments: tuple[SegmentRef, ...] = ()
    cut: bool = True
    stale: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    archive: ArchiveRef | None = None
    tombstone: str | None = None
    since: int = 0

    @property
    def removed(self) -> bool:
        return self.tombstone is not None and self.tombstone == self.lineage

    def digest(self) -> str:
        """What the tree is made of; two generations of one digest restore to the same tree."""
        parts = [self.lineage, self.generation, [[s.key, s.digest, s.bytes] for s in self.segments]]
        return statehash.digest(canonical.dumps(parts).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who may write. `import_etag`: the holder has begun to import the archive of that ETag."""

    epoch: int
    holder: str
    instance: str
    released: bool = False
    import_etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    content: Content
    claim: Claim
    nonce: str = ""

    def encode(self) -> bytes:
        body = _body(self)
        body["self_digest"] = statehash.digest(canonical.dumps(body).encode())
        return canonical.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Stored:
    """A HEAD together with the ETag under which the store holds it."""

    head: Head
    etag: str


class Conflict(Exception):
    """The swap lost: HEAD is now `stored` (None: it is gone), and that was not our doing."""

    def __init__(self, stored: Stored | None) -> None:
        super().__init__("HEAD was replaced by somebody else")
        self.stored = stored


class HeadFile:
    """HEAD of one bot in the store."""

    def __init__(self, store: ObjectStore, *, bucket: str, bot_id: str) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._key = names.head_key(bot_id)

    def read(self) -> Stored | None:
        """None where the bot has no state. Raises Permanent (STATE_DAMAGED) for a HEAD that cannot be trusted."""
        found = self.read_dated()
        return found[0] if found is not None else None

    def read_dated(self) -> tuple[Stored, float] | None:
        """The same, and when it was stored (Unix seconds by the store's clock)."""
        try:
            found = self._store.get(self._bucket, self._key, limit_bytes=LIMIT_BYTES)
        except Missing:
            return None
        return Stored(decode(found.data, bot_id=self._bot_id), found.info.etag), found.info.modified_s

    def read_if_changed(self, known: Stored) -> Stored | None:
        """`known` itself where nothing moved: a cheap look. None where HEAD is gone."""
        try:
            found = self._store.get(self._bucket, self._key, limit_bytes=LIMIT_BYTES, if_none_match=known.etag)
        except NotModified:
            return known
        except Missing:
            return None
        return Stored(decode(found.data, bot_id=self._bot_id), found.info.etag)

    def swap(self, known: Stored | None, new: Head) -> Stored:
        """Replaces HEAD if it is still `known` (None: if there is none). `new` carries its nonce already (`with_nonce`), so
        that repeating the very same swap is harmless. Raises Conflict, or Unavailable when the outcome stays unknown."""
        try:
            etag = self._store.put_if(self._bucket, self._key, new.encode(), etag=known.etag if known else None)
        except (PreconditionFailed, Unavailable) as doubt:
            # A retried or timed-out PUT may have been applied: only HEAD itself knows.
            now = self.read()
            if now is not None and now.head.nonce == new.nonce:
                return now
            if isinstance(doubt, Unavailable):
                raise
            raise Conflict(now) from doubt
        return Stored(new, etag)


def with_nonce(head: Head) -> Head:
    return replace(head, nonce=os.urandom(16).hex())


def decode(data: bytes, *, bot_id: str) -> Head:
    """Raises Permanent (STATE_DAMAGED) in one sentence: no JSON, newer format, wrong digest, another bot's segments."""
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
        _check_format(body, bot_id)
        if canonical.dumps(body).encode() != data:
            raise ValueError("it is not written as the runtime writes it")
        told = body.pop("self_digest", None)
        if told != statehash.digest(canonical.dumps(body).encode()):
            raise ValueError("its digest does not match its bytes")
        return _parse(body, bot_id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as reason:
        raise Permanent(
            f"HEAD of bot {bot_id} cannot be used ({clip(str(reason))}): nothing was started or changed; put a good copy of "
            f"{names.head_key(bot_id)} back, or choose the local tree with `runtime state adopt --local`.",
            code=ExitCode.STATE_DAMAGED,
        ) from reason


def content_body(content: Content) -> dict[str, Any]:
    body: dict[str, Any] = {
        "lineage": content.lineage,
        "generation": content.generation,
        "segments": [{"key": s.key, "digest": s.digest, "bytes": s.bytes} for s in content.segments],
        "cut": content.cut,
        "stale": list(content.stale),
        "incomplete": list(content.incomplete),
    }
    if content.archive is not None:
        body["archive"] = {"etag": content.archive.etag, "generation": content.archive.generation}
    if content.tombstone is not None:
        body["tombstone"] = content.tombstone
    if content.since:
        body["since"] = content.since
    return body


def read_content(body: dict[str, Any], *, bot_id: str) -> Content:
    """What `content_body` wrote. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    archive = body.get("archive")
    content = Content(
        lineage=_text(body["lineage"]),
        generation=_number(body["generation"]),
        segments=tuple(SegmentRef(_text(s["key"]), _text(s["digest"]), _number(s["bytes"])) for s in body["segments"]),
        cut=_truth(body["cut"]),
        stale=tuple(_text(path) for path in body["stale"]),
        incomplete=tuple(_text(path) for path in body["incomplete"]),
        archive=ArchiveRef(_text(archive["etag"]), _number(archive["generation"])) if archive else None,
        tombstone=_text(body["tombstone"]) if "tombstone" in body else None,
        since=_number(body.get("since", 0)),
    )
    prefix = names.segments_prefix(bot_id)
    for segment in content.segments:
        if not segment.key.startswith(prefix):
            raise ValueError(f"it names the segment {clip(segment.key)} of another bot")
    return content


def _body(head: Head) -> dict[str, Any]:
    claim: dict[str, Any] = {
        "epoch": head.claim.epoch,
        "holder": head.claim.holder,
        "instance": head.claim.instance,
        "released": head.claim.released,
    }
    if head.claim.import_etag is not None:
        claim["import"] = {"etag": head.claim.import_etag}
    return {"format": FORMAT, "content": content_body(head.content), "claim": claim, "nonce": head.nonce}


def _check_format(body: dict[str, Any], bot_id: str) -> None:
    found = body.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError("it has no format number")
    if found > FORMAT:
        raise Permanent(
            f"HEAD of bot {bot_id} is of format {found}, and this runtime reads up to {FORMAT}: run the newer runtime.",
            code=ExitCode.STATE_DAMAGED,
        )


def _parse(body: dict[str, Any], bot_id: str) -> Head:
    claim = body["claim"]
    importing = claim.get("import")
    return Head(
        content=read_content(body["content"], bot_id=bot_id),
        claim=Claim(
            epoch=_number(claim["epoch"]),
            holder=_text(claim["holder"]),
            instance=_text(claim["instance"]),
            released=_truth(claim["released"]),
            import_etag=_text(importing["etag"]) if importing else None,
        ),
        nonce=_text(body["nonce"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value
