"""A restore: the segments of one generation become the tree. All or nothing, also over kill -9.

The tree is built in `.the0/restore`, before anything that is there is touched, and renamed into place child by child under the mark
`index.restoring`; the index is written last. A start that finds the mark wipes and does it again.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator

from the0 import files, names, statehash
from the0.errors import ExitCode, Fatal, Permanent, clip
from the0.objects.store import Bytes, Missing, ObjectStore, TooLarge
from the0.sync.head import Content, SegmentRef
from the0.sync.lanes import fetch_ahead
from the0.sync.local import Origin, StateFolder

FETCHES = 8
"""Segments under way at once, while they are small."""
FETCHED_BYTES = 64 << 20
"""Of large ones: with the one being applied, they bound the memory of a restore."""


class StoppedEarly(Fatal):
    """A stop was asked for before the bot had started."""

    def __init__(self) -> None:
        super().__init__("A stop was asked for before the bot had started.", code=ExitCode.STOPPED_EARLY)


def restore(
    folder: StateFolder,
    content: Content,
    *,
    store: ObjectStore,
    bucket: str,
    bot_id: str,
    origin: Origin,
    max_bytes: int,
    stop: threading.Event,
    make_way: Callable[[], None] = lambda: None,
) -> statehash.Index:
    """Puts `content` into the folder and returns its saved index. `make_way` is called when all is built: it removes the present
    tree, which is untouched up to then.

    Raises Permanent (STATE_DAMAGED) where a segment is missing or not what HEAD names, STATE_LIMIT where the tree would
    be too large, StoppedEarly, OSError of the local disk. The tree is as it was, empty, or marked afterwards, never half and unmarked.
    """
    built: statehash.Restore | None = None
    build_fd = folder.fresh_folder(names.RESTORE)
    try:
        if content.segments:
            # Half-way through a generation, files that grew may be there beside those that are to shrink.
            built = statehash.Restore(build_fd, max_bytes=2 * max_bytes)
            _apply(built, content, store=store, bucket=bucket, bot_id=bot_id, stop=stop)
            if built.bytes > max_bytes:
                raise _over_limit(content, bot_id, f"it holds {built.bytes} bytes")
        make_way()
        folder.mark_restoring()
        folder.drop_index()
        folder.move_in(build_fd)
    finally:
        os.close(build_fd)
    index = built.index(folder.root_fd) if built is not None else statehash.Index()
    index.set_meta(origin.at(content).encode())
    folder.save_index(index)
    folder.unmark_restoring()
    return index


def restore_beside(
    path: str, content: Content, *, store: ObjectStore, bucket: str, bot_id: str, max_bytes: int
) -> None:
    """Puts the files of `content` into a folder of its own, which is made or must be empty; claims nothing and keeps no index. For people.

    Raises Fatal (USAGE) for a folder that is not empty, else as `restore`; what is there after an error is a part.
    """
    os.makedirs(path, exist_ok=True)
    if os.listdir(path):
        raise Fatal(f"{path} is not empty: name a new folder.", code=ExitCode.USAGE)
    fd = files.open_root(path)
    try:
        if content.segments:
            built = statehash.Restore(fd, max_bytes=2 * max_bytes)
            _apply(built, content, store=store, bucket=bucket, bot_id=bot_id, stop=threading.Event(), movable=False)
    finally:
        os.close(fd)


def _apply(
    built: statehash.Restore,
    content: Content,
    *,
    store: ObjectStore,
    bucket: str,
    bot_id: str,
    stop: threading.Event,
    movable: bool = True,
) -> None:
    try:
        for segment, data in fetch_segments(content, store=store, bucket=bucket):
            if stop.is_set():
                raise StoppedEarly
            built.apply(data, key=segment.key, digest=segment.digest)
            del data  # before the next one is waited for
        built.finish(movable=movable)
    except statehash.LimitError as reason:
        raise _over_limit(content, bot_id, clip(str(reason))) from reason
    except (statehash.FormatError, statehash.DigestError) as reason:
        raise Permanent(
            f"Generation {content.generation} of bot {bot_id} is damaged in the store ({clip(str(reason))}): nothing was started; "
            "`runtime state verify` lists what is wrong, `runtime state adopt --local` takes a local tree instead.",
            code=ExitCode.STATE_DAMAGED,
        ) from reason


def _over_limit(content: Content, bot_id: str, reason: str) -> Permanent:
    return Permanent(
        f"Generation {content.generation} of bot {bot_id} is over MAX_STATE_SIZE_MB ({reason}): raise the limit.",
        code=ExitCode.STATE_LIMIT,
    )


def fetch_segments(content: Content, *, store: ObjectStore, bucket: str) -> Iterator[tuple[SegmentRef, Bytes]]:
    """The segments of a generation with their bytes, in order. Raises Permanent (STATE_DAMAGED) for a missing or swollen one."""

    def fetch(segment: SegmentRef) -> tuple[SegmentRef, Bytes]:
        # Streamed to where it stays: a client's own buffers would hold it two times more.
        fd = os.memfd_create("segment", os.MFD_CLOEXEC)
        try:
            store.get_to_file(bucket, segment.key, fd, limit_bytes=segment.bytes)
            return segment, mmap.mmap(fd, 0, prot=mmap.PROT_READ) if os.fstat(fd).st_size else b""
        except (Missing, TooLarge) as reason:
            wrong = "not in" if isinstance(reason, Missing) else "larger than it says in"
            raise Permanent(
                f"The segment {segment.key} that HEAD names is {wrong} bucket {bucket}: nothing was started; "
                "put it back from a copy of the bucket, or choose a local tree with `runtime state adopt --local`.",
                code=ExitCode.STATE_DAMAGED,
            ) from reason
        finally:
            os.close(fd)

    return fetch_ahead(
        content.segments, fetch, window=FETCHES, size=lambda segment: segment.bytes, budget_bytes=FETCHED_BYTES
    )
