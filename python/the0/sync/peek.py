"""The newest stored state, read only: for questions about a bot that runs elsewhere, or not now. Claims nothing, imports nothing,
and writes nothing but the folder it is given."""

from __future__ import annotations

import os
import threading

from the0 import files, names
from the0.errors import ExitCode, Permanent
from the0.objects.store import ObjectStore
from the0.settings import SyncSettings
from the0.sync.head import Head, HeadFile
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore

TRIES = 3
"""How often a generation is read that was replaced, and cleaned away, while it was read."""
_UNPACKED = "unpacked"


def restore_newest(settings: SyncSettings, store: ObjectStore, path: str, *, stop: threading.Event) -> int:
    """Makes the folder `path`, which must be empty, the newest stored generation, and returns its number; 0 and an empty folder for
    a bot without state. A state archive of the earlier layout that no bot run has imported yet counts as generation 0; one that was
    edited since the last run does not count before the next run.

    Raises Permanent (STATE_DAMAGED, STATE_LIMIT), StoppedEarly, Unavailable, Denied, Fatal (LOCAL_DISK).
    """
    heads = HeadFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id)
    try:
        with StateFolder(path) as folder:
            for left in reversed(range(TRIES)):
                stored = heads.read()
                head = stored.head if stored is not None else None
                try:
                    return _restore(settings, store, folder, head, stop=stop)
                except Permanent as reason:
                    if left == 0 or stored is None or reason.code != ExitCode.STATE_DAMAGED:
                        raise
                    if heads.read_if_changed(stored) is stored:
                        raise
    except OSError as reason:
        raise files.disk_fault(reason, f"restoring the state of bot {settings.bot_id} to {path}") from reason
    raise AssertionError("the last try returns or raises")


def _restore(
    settings: SyncSettings, store: ObjectStore, folder: StateFolder, head: Head | None, *, stop: threading.Event
) -> int:
    if head is None or (head.content.generation == 0 and head.claim.import_etag is not None):
        _unpack(settings, store, folder)
        return 0
    content = head.content
    if content.removed:
        return 0
    restore(
        folder,
        content,
        store=store,
        bucket=settings.buckets.state,
        bot_id=settings.bot_id,
        origin=Origin(),
        max_bytes=settings.limits.state_bytes,
        stop=stop,
    )
    return content.generation


def _unpack(settings: SyncSettings, store: ObjectStore, folder: StateFolder) -> None:
    from the0.sync import archive  # only where there is no HEAD
    from the0.sync.archive import ArchiveFile

    bucket, bot_id = settings.buckets.state, settings.bot_id
    stored = ArchiveFile(store, bucket=bucket, bot_id=bot_id)
    etag, ours = stored.look()
    if ours or next(iter(store.list(bucket, names.segments_prefix(bot_id))), None) is not None:
        raise Permanent(
            f"Bot {bot_id} has stored state, but its {names.head_key(bot_id)} is gone: put a copy of it back, "
            "or choose with `runtime state adopt` where the bot ran last.",
            code=ExitCode.STATE_DAMAGED,
        )
    if etag is None:
        return
    max_bytes = settings.limits.state_bytes
    unpacked_fd = folder.fresh_folder(_UNPACKED)
    try:
        spool_fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder.reserved_fd)
        try:
            stored.fetch(spool_fd, limit_bytes=max_bytes)
            archive.extract(spool_fd, unpacked_fd, max_bytes=max_bytes, name=names.archive_key(bot_id))
        finally:
            os.close(spool_fd)
        folder.move_in(unpacked_fd)
    finally:
        os.close(unpacked_fd)
