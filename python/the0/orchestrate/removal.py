"""`runtime rm`: takes a bot out of the platform, and with `--purge` all that was kept of it, for ever."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, Final

from the0 import files, names
from the0.errors import ExitCode, Fatal, clip
from the0.objects.store import ObjectStore
from the0.orchestrate.client import Client
from the0.orchestrate.deploy import code_prefix
from the0.orchestrate.listing import still_running
from the0.orchestrate.tables import Screen, plural, size
from the0.sync import lease, lock
from the0.sync.head import Conflict, Content, HeadFile, with_nonce

ENDED_S: Final = 120.0
"""How long a purge waits for the bot to end, final sync included."""


def rm(client: Client, screen: Screen, bot_id: str, *, purge: bool, dry_run: bool) -> int:
    """Exit code 0. Repeating it is harmless: a purge that was interrupted goes on."""
    found = client.bots.get(bot_id)
    kept = _kept(client, bot_id)
    if found is None and not (purge and kept["objects"]):
        client.bot(bot_id)
    code = [info.key for info in client.store.list(client.buckets.code, code_prefix(bot_id))]
    told = {
        "id": bot_id,
        "removed": not dry_run,
        "archives": len(code),
        "purged": purge and not dry_run,
        "state_bytes": kept["state_bytes"],
        "logs_bytes": kept["logs_bytes"],
    }
    if not screen.as_json:
        _say(screen, bot_id, told, purge=purge, dry_run=dry_run)
    if dry_run:
        if screen.as_json:
            screen.json(told)
        return 0
    client.bots.remove(bot_id)
    control = client.control()
    if control is not None:
        control.changed()
    if purge:
        _wait_for_end(client, bot_id)
        _purge(client, bot_id)
    for key in code:
        client.store.delete(client.buckets.code, key)
    if screen.as_json:
        screen.json(told)
    return 0


def _say(screen: Screen, bot_id: str, told: dict[str, Any], *, purge: bool, dry_run: bool) -> None:
    verb = "would be" if dry_run else "is"
    screen.say(f"Bot {clip(bot_id)} {verb} stopped and removed, and {plural(told['archives'], 'archive')} of its code.")
    what = f"state ({size(told['state_bytes'])}), its logs ({size(told['logs_bytes'])}) and the records of its runs"
    if purge:
        screen.say(f"Its {what} {'would be' if dry_run else 'are'} deleted for ever.")
    else:
        screen.say(f"Its {what} stay: a bot of the same id goes on with them, and `runtime rm --purge` deletes them.")


def _kept(client: Client, bot_id: str) -> dict[str, int]:
    state = list(client.store.list(client.buckets.state, names.state_prefix(bot_id)))
    logs = list(client.store.list(client.buckets.logs, names.logs_prefix(bot_id)))
    return {
        "objects": len([info for info in state if info.key != names.head_key(bot_id)]) + len(logs),
        "state_bytes": sum(info.size for info in state),
        "logs_bytes": sum(info.size for info in logs),
    }


def _wait_for_end(client: Client, bot_id: str) -> None:
    deadline = time.monotonic() + ENDED_S
    while _is_there(client, bot_id):
        if client.control() is None or time.monotonic() > deadline:
            raise Fatal(
                f"Bot {clip(bot_id)} is removed but still runs, so its state was left as it is: when it has ended, repeat "
                "`runtime rm --purge`.",
                code=ExitCode.RUNNING_HERE,
            )
        time.sleep(0.05)


def _is_there(client: Client, bot_id: str) -> bool:
    control = client.control()
    if control is not None and control.ps([bot_id], usage=False):
        return True
    return still_running(client, bot_id) or not lock.is_free(client.place.bot(bot_id).state)


def _purge(client: Client, bot_id: str) -> None:
    """First HEAD becomes a tombstone, so that no writer that slept through it can go on; then everything else goes."""
    folders = client.place.bot(bot_id)
    _bury(client.store, client.buckets.state, bot_id)
    head = names.head_key(bot_id)
    for bucket, prefix in (
        (client.buckets.state, names.state_prefix(bot_id)),
        (client.buckets.logs, names.logs_prefix(bot_id)),
    ):
        for info in list(client.store.list(bucket, prefix)):
            if info.key != head:
                client.store.delete(bucket, info.key)
    try:
        if os.path.isdir(client.place.bots):
            with files.folder(client.place.bots) as fd:
                files.remove_tree(fd, os.path.basename(folders.path))
    except OSError as reason:
        raise files.disk_fault(reason, f"removing {clip(folders.path)}") from reason


def _bury(store: ObjectStore, bucket: str, bot_id: str) -> None:
    file = HeadFile(store, bucket=bucket, bot_id=bot_id)
    for _ in range(5):
        stored = file.read()
        if stored is None or stored.head.content.removed:
            return
        claimed = lease.claimed(stored.head, holder="runtime rm", instance=os.urandom(8).hex())
        lineage = stored.head.content.lineage
        content = Content(lineage=lineage, generation=stored.head.content.generation, tombstone=lineage)
        try:
            file.swap(stored, with_nonce(replace(lease.released(claimed), content=content)))
        except Conflict:
            continue
        return
    raise Fatal(f"Bot {clip(bot_id)} is being written by somebody else: stop it there first.", code=ExitCode.FENCED)
