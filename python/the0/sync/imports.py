"""Importing what somebody else wrote into the state archive, at the start of a bot run and under its claim.

The claim carries `import: {etag}` until the commit of the imported generation removes it, so that a start which finds it begins
the import again. Every step here may be repeated.
"""

from __future__ import annotations

import os

from the0 import canonical, files, names
from the0.objects.store import PreconditionFailed
from the0.sync import archive
from the0.sync.archive import ArchiveFile
from the0.sync.commit import Committer
from the0.sync.head import ArchiveRef
from the0.sync.local import StateFolder

_UNPACKED = "import"


def import_archive(
    folder: StateFolder, committer: Committer, stored: ArchiveFile, *, max_bytes: int, bot_id: str
) -> list[str]:
    """Brings the archive into the tree and commits it. Returns sentences for the bot's log. Raises Permanent where the archive is
    damaged or too large (the tree is untouched then), Fenced, Unavailable, OSError."""
    name = names.archive_key(bot_id)
    unpacked_fd = folder.fresh_folder(_UNPACKED)
    try:
        spool_fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder.reserved_fd)
        try:
            etag = stored.fetch(spool_fd, limit_bytes=max_bytes)
            archive.extract(spool_fd, unpacked_fd, max_bytes=max_bytes, name=name)
        finally:
            os.close(spool_fd)
        whole = any(child != names.SDK_STATE_DIR for child in os.listdir(unpacked_fd))
        keys = archive.digest_keys(unpacked_fd)
        bring = _replace_tree if whole else _merge_keys
        notes = bring(folder, committer, unpacked_fd, stored)
        committer.commit(committer.scan(), imported_etag=etag)
        folder.unmark_restoring()
        stored.write_base(etag=etag, keys=keys)
    finally:
        os.close(unpacked_fd)
        files.remove_tree(folder.reserved_fd, _UNPACKED)
    return [*notes, f"The state archive {name}, written from outside, was imported."]


def clear_sdk_state(folder: StateFolder, committer: Committer, stored: ArchiveFile) -> None:
    """The archive that HEAD records is gone: the SDK state becomes empty in a new generation, and an empty archive is written."""
    files.remove_tree(folder.root_fd, names.SDK_STATE_DIR)
    committer.commit(committer.scan())
    try:
        publish(folder, committer, stored, former_etag=None)
    except PreconditionFailed:
        pass  # somebody wrote one in this very moment: it is foreign, and the next start imports it


def publish(folder: StateFolder, committer: Committer, stored: ArchiveFile, *, former_etag: str | None) -> bool:
    """Writes the archive of the SDK state as it is now, records it in HEAD, then its digests beside it. False where the SDK state is over
    what the API takes. Raises PreconditionFailed where somebody else wrote the archive since."""
    built = archive.build(folder.root_fd)
    if built is None:
        return False
    data, keys = built
    generation = committer.content.generation
    try:
        etag = stored.put(data, former_etag=former_etag, generation=generation)
    except PreconditionFailed:
        # Our own former attempt may be there, written and not yet recorded: ours are known by their metadata.
        found, ours = stored.look()
        if not ours:
            raise
        etag = stored.put(data, former_etag=found, generation=generation)
    committer.record(archive=ArchiveRef(etag, generation))
    stored.write_base(etag=etag, keys=keys)
    return True


def _replace_tree(folder: StateFolder, committer: Committer, unpacked_fd: int, _: ArchiveFile) -> list[str]:
    """The earlier layout: the archive is the whole state. The mark stays until it is committed."""
    committer.commit(committer.scan())  # work that was not stored yet becomes history first
    folder.mark_restoring()
    folder.wipe()
    folder.move_in(unpacked_fd)
    return ["It replaced the whole state; the former generations stay in the store's history."]


def _merge_keys(folder: StateFolder, committer: Committer, unpacked_fd: int, stored: ArchiveFile) -> list[str]:
    # Digests of an archive that this lineage never wrote say nothing about its keys.
    base = stored.read_base()[1] if committer.content.archive is not None else {}
    plan = archive.merge(base=base, theirs=archive.digest_keys(unpacked_fd), ours=archive.digest_keys(folder.root_fd))
    for key in plan.delete:
        _delete_key(folder.root_fd, key)
    kept = [*plan.kept]
    for key in plan.take:
        try:
            _take_key(unpacked_fd, folder.root_fd, key)
        except (IsADirectoryError, NotADirectoryError):
            kept.append(key)  # the bot has a folder where the archive has a key, or the other way round
    if not kept:
        return []
    return [f"Keys changed both by the bot and from outside keep the bot's value: {canonical.dumps(kept[:20])}."]


def _take_key(unpacked_fd: int, root_fd: int, key: str) -> None:
    """By rename, so that a crash leaves no half key and no temporary file in the tree."""
    parent, _, leaf = f"{names.SDK_STATE_DIR}/{key}".rpartition("/")
    source = files.open_folder_beneath(unpacked_fd, parent)
    try:
        target = files.open_folder_beneath(root_fd, parent, create=True)
        try:
            os.rename(leaf, leaf, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _delete_key(root_fd: int, key: str) -> None:
    parent, _, leaf = f"{names.SDK_STATE_DIR}/{key}".rpartition("/")
    try:
        fd = files.open_folder_beneath(root_fd, parent)
    except FileNotFoundError:
        return
    try:
        files.remove_tree(fd, leaf)
    finally:
        os.close(fd)
