"""A small commit machine over the core: scan, pack, stage, confirm; and restoring what it stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from the0 import statehash as sh

Stored = tuple[str, str, bytes]
"""(key, digest, bytes) of a segment."""
_NUMBERS = count(1)


@contextmanager
def folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def pack(
    root: Path,
    index: sh.Index,
    *,
    carry: list[str] | None = None,
    meanwhile: Sequence[Callable[[], None]] = (),
    **options: int,
) -> tuple[sh.Pack, list[Stored]]:
    """`meanwhile`: what happens to the tree after each look at it; it is folded in."""
    with folder(root) as fd:
        scan = sh.scan(fd, index)
        packing = sh.Pack(fd, index, scan.carry(index, carry) if carry else scan, **options)
        stored = []
        for happens in (*meanwhile, None):
            while (segment := packing.next()) is not None:
                assert sh.digest(segment) == segment.digest
                assert len(memoryview(segment)) == segment.size == len(segment)
                stored.append((f"segment-{next(_NUMBERS)}-{segment.digest[:12]}", segment.digest, bytes(segment)))
            if happens is not None:
                happens()
                packing.fold()
    return packing, stored


def commit(root: Path, index: sh.Index, meta: bytes = b"", **options: int) -> list[Stored]:
    packing, stored = pack(root, index, **options)
    index.stage(packing, [key for key, _, _ in stored], meta)
    index.confirm(meta)
    return stored


def clean(
    root: Path,
    index: sh.Index,
    segments: list[Stored],
    carry: list[str],
    *,
    meanwhile: Sequence[Callable[[], None]] = (),
    **options: int,
) -> list[Stored]:
    """A commit that carries; returns the segments that are listed afterwards."""
    packing, stored = pack(root, index, carry=carry, meanwhile=meanwhile, **options)
    dropped = packing.dropped
    assert set(dropped) <= set(carry)
    index.stage(packing, [key for key, _, _ in stored], b"")
    index.confirm(b"")
    left = [one for one in segments if one[0] not in dropped] + stored
    assert [key for key, _, _, _ in index.segments()] == [key for key, _, _ in left]
    return left


def restore(dest: Path, segments: list[Stored]) -> sh.Index:
    dest.mkdir()
    with folder(dest) as fd:
        restoring = sh.Restore(fd)
        for key, digest, data in segments:
            restoring.apply(data, key=key, digest=digest)
        restoring.finish()
        return restoring.index(fd)


def listing(segments: list[Stored]) -> sh.Listing:
    listed = sh.Listing()
    for key, digest, data in segments:
        listed.apply(data, key=key, digest=digest)
    listed.finish()
    return listed


def entries(of: sh.Index | sh.Listing) -> list[tuple[bytes, str, int, int, int, str]]:
    return [(e.path, e.kind, e.mode, e.size, e.mtime_ns, e.digest) for e in of.entries()]
