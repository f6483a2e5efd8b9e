"""`state verify`: is what HEAD names there, whole, and does it make a tree?"""

from __future__ import annotations

from dataclasses import dataclass

from the0 import names, statehash
from the0.errors import Fault
from the0.objects.store import ObjectStore
from the0.sync.head import Content, HeadFile
from the0.sync.restore import fetch_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """`problems` is empty where every digest and every reference holds. Counts are of the generation in HEAD."""

    generation: int | None
    segments: int = 0
    stored_bytes: int = 0
    files: int = 0
    bytes: int = 0
    unreferenced: int = 0
    """Segments in the store that HEAD does not name: left by interrupted commits, or kept for history."""
    problems: tuple[str, ...] = ()


def verify(store: ObjectStore, *, bucket: str, bot_id: str) -> Verified:
    """Reads every byte of the stored state, checks it and writes nothing. Raises Unavailable and Denied only."""
    try:
        stored = HeadFile(store, bucket=bucket, bot_id=bot_id).read()
    except Fault as reason:
        if reason.code.name.startswith("STORE_"):
            raise
        return Verified(generation=None, problems=(reason.sentence,))
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
    return Verified(
        generation=content.generation,
        segments=len(content.segments),
        stored_bytes=sum(ref.bytes for ref in content.segments),
        files=files,
        bytes=total,
        unreferenced=sum(1 for key in present if key not in named),
        problems=tuple(problems),
    )


def read_listing(content: Content, *, store: ObjectStore, bucket: str) -> statehash.Listing:
    """What the generation holds, every byte decoded and checked. Raises FormatError, DigestError, Permanent."""
    listing = statehash.Listing()
    for ref, data in fetch_segments(content, store=store, bucket=bucket):
        listing.apply(data, key=ref.key, digest=ref.digest)
    listing.finish()
    return listing
