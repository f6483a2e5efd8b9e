"""`state adopt`: what a person chooses when a start refused, the local tree or the store's state.

Neither choice destroys the other side: a local tree is set aside, a stored generation stays listed in history.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from the0 import files, names, statehash
from the0.errors import ExitCode, Fatal, Fault
from the0.objects.store import ObjectStore, PreconditionFailed
from the0.settings import SyncSettings
from the0.sync import lease
from the0.sync.archive import ArchiveFile
from the0.sync.commit import Committer
from the0.sync.head import ArchiveRef, Claim, Content, Head, HeadFile, with_nonce
from the0.sync.history import HistoryFiles
from the0.sync.local import Origin, StateFolder


def adopt_store(settings: SyncSettings, store: ObjectStore) -> str:
    """The next start restores what the store holds; the local tree is set aside. Returns a sentence. The caller holds the lock."""
    stored = HeadFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id).read()
    if stored is None:
        raise Fatal(
            f"The store has no HEAD for bot {settings.bot_id}: there is nothing to adopt from it; put HEAD back, or use --local.",
            code=ExitCode.REFUSED,
        )
    with StateFolder(settings.paths.state) as folder:
        aside = folder.set_aside("adopted-store")
    kept = f"; the local tree is kept as {names.RESERVED_DIR}/{names.ASIDE}/{aside}" if aside else ""
    return f"The next start of bot {settings.bot_id} restores generation {stored.head.content.generation}{kept}."


def adopt_local(settings: SyncSettings, store: ObjectStore) -> str:
    """Makes the local tree generation 1 of a new lineage, over whatever HEAD there is. Returns a sentence. The caller holds the lock.

    Raises Fatal (FENCED) where HEAD moved meanwhile, and what a commit raises.
    """
    bucket, bot_id = settings.buckets.state, settings.bot_id
    with StateFolder(settings.paths.state) as folder:
        if folder.restoring:
            raise Fatal(
                f"What stands in {settings.paths.state} is half of a restore from the store: put a whole tree there (`runtime state "
                f"aside` lists those set aside) and remove {names.RESERVED_DIR}/{names.RESTORING}, then adopt it.",
                code=ExitCode.REFUSED,
            )
    heads = HeadFile(store, bucket=bucket, bot_id=bot_id)
    info = store.head(bucket, names.head_key(bot_id))
    try:
        former = heads.read()
    except Fault as reason:
        if reason.code is not ExitCode.STATE_DAMAGED:
            raise
        former = None
    archive_etag, _ = ArchiveFile(store, bucket=bucket, bot_id=bot_id).look()
    if former is not None and former.head.content.generation:
        HistoryFiles(store, bucket=bucket, bot_id=bot_id).write(former.head.content)
    content = Content(
        lineage=secrets.token_hex(8), archive=ArchiveRef(archive_etag, 0) if archive_etag is not None else None
    )
    # Epochs only grow; where the former one cannot be read, the clock is far ahead of any count.
    epoch = former.head.claim.epoch + 1 if former else (int(time.time()) if info else 1)
    instance = secrets.token_hex(16)
    head = with_nonce(
        Head(
            content=content,
            claim=Claim(epoch=epoch, holder=lease.holder_here(), instance=instance),
        )
    )
    try:
        store.put_if(bucket, names.head_key(bot_id), head.encode(), etag=info.etag if info else None)
    except PreconditionFailed as reason:
        raise Fatal(
            f"HEAD of bot {bot_id} moved meanwhile: another instance runs; stop it, then adopt again.",
            code=ExitCode.FENCED,
        ) from reason
    stored = heads.read()
    if stored is None or stored.head.nonce != head.nonce:
        raise Fatal(f"HEAD of bot {bot_id} moved meanwhile: stop the other instance first.", code=ExitCode.FENCED)
    with StateFolder(settings.paths.state) as folder:
        index = statehash.Index()
        index.set_meta(Origin(instances=(instance,)).at(content).encode())
        folder.save_index(index)
        committer = Committer(
            store=store,
            bucket=bucket,
            bot_id=bot_id,
            folder=folder,
            index=index,
            stored=stored,
            max_bytes=settings.limits.state_bytes,
            max_file_bytes=None,
        )
        try:
            committer.commit(committer.scan())
        except OSError as reason:
            raise files.disk_fault(reason, f"adopting the local state of bot {bot_id}") from reason
        committer.record(release=True)
        index.set_meta(replace(Origin.decode(index.meta), instances=()).encode())
    return f"The local tree of bot {bot_id} is generation {committer.content.generation} of the new lineage {content.lineage}."
