"""`state verify`: is what HEAD and its history name there, whole, and does it make a tree?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from the0 import names, statehash
from the0.errors import ExitCode, Fault, Permanent
from the0.objects.store import Missing, ObjectStore, TooLarge
from the0.sync.head import Content, HeadFile, SegmentRef, Stored
from the0.sync.history import HistoryFiles
from the0.sync.lanes import fetch_ahead
from the0.sync.restore import FETCHES, fetch_segments

TRIES = 3
"""How often a look begins again because HEAD moved under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """`problems` is empty where every digest and every reference holds. Counts are of the generation in HEAD."""

    generation: int | None
    segments: int = 0
    stored_bytes: int = 0
    files: int = 0
    bytes: int = 0
    history: int = 0
    """History entries that can be restored, with all their segments."""
    history_bytes: int = 0
    """Of segments that are there for history alone."""
    unreferenced: int = 0
    """Segments that neither HEAD nor history names: left by interrupted commits and sweeps, to be swept."""
    problems: tuple[str, ...] = ()


def verify(store: ObjectStore, *, bucket: str, bot_id: str) -> Verified:
    """Reads every byte of the stored state, checks it and writes nothing. Raises Unavailable and Denied only."""
    heads = HeadFile(store, bucket=bucket, bot_id=bot_id)
    try:
        for _ in range(TRIES - 1):
            stored = heads.read()
            found = _verify(stored, store=store, bucket=bucket, bot_id=bot_id)
            if not found.problems or stored is None or heads.read_if_changed(stored) is stored:
                return found
            # Its holder went on meanwhile, and may have removed what this HEAD still named.
        return _verify(heads.read(), store=store, bucket=bucket, bot_id=bot_id)
    except Fault as reason:
        if reason.code.name.startswith("STORE_"):
            raise
        return Verified(generation=None, problems=(reason.sentence,))


def _verify(stored: Stored | None, *, store: ObjectStore, bucket: str, bot_id: str) -> Verified:
    present = {info.key: info.size for info in store.list(bucket, names.segments_prefix(bot_id))}
    if stored is None:
        lost = ("There are segments, but no HEAD.",) if present else ()
        return Verified(generation=None, unreferenced=len(present), problems=lost)
    content = stored.head.content
    problems = [
        f"{ref.key} has {present[ref.key]} bytes, HEAD says {ref.bytes}."
        for ref in content.segments
        if ref.key in present and present[ref.key] != ref.bytes
    ]
    problems += [f"{ref.key} is missing." for ref in content.segments if ref.key not in present]
    listing = statehash.Listing()
    files = total = 0
    if not problems:
        try:
            listing = read_listing(content, store=store, bucket=bucket)
            for entry in listing.entries():
                if entry.kind == "file":
                    files += 1
                    total += entry.size
        except (statehash.FormatError, statehash.DigestError, Fault) as reason:
            problems.append(str(reason))
    named = {ref.key for ref in content.segments}
    former: dict[str, SegmentRef] = {}
    history = HistoryFiles(store, bucket=bucket, bot_id=bot_id)
    whole = 0
    for info in history.list():
        try:
            kept = history.read(info.key)
        except Permanent as reason:
            if reason.code is not ExitCode.STATE_DAMAGED:
                raise
            problems.append(reason.sentence)
            continue
        # One that lacks a segment is being swept, or was written late by a writer that was paused: nobody is offered it.
        if kept is not None and all(ref.key in present for ref in kept.segments):
            whole += 1
            former.update((ref.key, ref) for ref in kept.segments if ref.key not in named)
    problems += _wrong(former.values(), store=store, bucket=bucket)
    return Verified(
        generation=content.generation,
        segments=len(content.segments),
        stored_bytes=sum(ref.bytes for ref in content.segments),
        files=files,
        bytes=total,
        history=whole,
        history_bytes=sum(ref.bytes for ref in former.values()),
        unreferenced=sum(1 for key in present if key not in named and key not in former),
        problems=tuple(problems),
    )


def _wrong(refs: Iterable[SegmentRef], *, store: ObjectStore, bucket: str) -> list[str]:
    """What is wrong with segments that only history names."""

    def look(ref: SegmentRef) -> str | None:
        try:
            data = store.get(bucket, ref.key, limit_bytes=ref.bytes).data
        except Missing:
            return None  # swept in this moment
        except TooLarge:
            return f"{ref.key} is larger than history says."
        return None if statehash.digest(data) == ref.digest else f"{ref.key} has another digest than history says."

    return [wrong for wrong in fetch_ahead(refs, look, window=FETCHES) if wrong is not None]


def read_listing(content: Content, *, store: ObjectStore, bucket: str) -> statehash.Listing:
    """What the generation holds, every byte decoded and checked. Raises FormatError, DigestError, Permanent."""
    listing = statehash.Listing()
    for ref, data in fetch_segments(content, store=store, bucket=bucket):
        listing.apply(data, key=ref.key, digest=ref.digest)
    listing.finish()
    return listing
