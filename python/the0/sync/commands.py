"""What a person asks about a bot's state: `runtime state show | ls | verify | history | restore | adopt | aside`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Literal, TextIO

from the0 import files, names
from the0.errors import ExitCode, Fatal, clip
from the0.objects.store import ObjectStore
from the0.settings import SyncSettings
from the0.sync.adopt import adopt_local, adopt_store
from the0.sync.head import Content, HeadFile, Stored
from the0.sync.history import HistoryFiles
from the0.sync.local import Origin, StateFolder
from the0.sync.lock import hold_lock
from the0.sync.restore import restore_beside
from the0.sync.verify import read_listing, verify


def show(settings: SyncSettings, store: ObjectStore, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """The generation in the store, who holds the claim, what lies on this disk. Exit code 0, or 1 where there is no state."""
    stored = HeadFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id).read()
    body: dict[str, Any] = {"bot": settings.bot_id, "stored": _stored(stored), "local": _local(settings)}
    _print(body, as_json=as_json, out=out)
    return 0 if stored is not None else 1


def ls(
    settings: SyncSettings,
    store: ObjectStore,
    *,
    generation: int | None = None,
    lineage: str | None = None,
    as_json: bool = False,
    out: TextIO | None = None,
) -> int:
    """The files of a generation, of the newest by default. Exit code 0, or 1 where there is no state."""
    out = out or sys.stdout
    content = _content(settings, store, generation=generation, lineage=lineage)
    if content is None:
        return 1
    listing = read_listing(content, store=store, bucket=settings.buckets.state)
    for entry in listing.entries():
        path = os.fsdecode(entry.path)
        if as_json:
            row = {
                "path": path,
                "kind": entry.kind,
                "mode": f"{entry.mode:04o}",
                "size": entry.size,
                "mtime_ns": entry.mtime_ns,
                "digest": entry.digest,
            }
            print(json.dumps(row), file=out)
        else:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.mtime_ns / 1e9))
            mark = {"dir": "d", "link": "l"}.get(entry.kind, "-")
            print(f"{mark} {entry.mode:04o} {entry.size:>12} {when} {clip(path, limit=4096)}", file=out)
    return 0


def history(settings: SyncSettings, store: ObjectStore, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """The generations that can be restored, the newest first. Exit code 0, or 1 where there is no state."""
    out = out or sys.stdout
    head = _content(settings, store)
    if head is None:
        return 1
    for one in HistoryFiles(store, bucket=settings.buckets.state, bot_id=settings.bot_id).kept(head):
        if as_json:
            row = {
                "generation": one.generation,
                "lineage": one.lineage,
                "stored_s": one.stored_s,
                "segments": one.segments,
                "stored_bytes": one.bytes,
            }
            print(json.dumps(row), file=out)
        else:
            when = "-" if one.stored_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.stored_s))
            print(f"{one.generation:>8} {when:<19} {one.bytes:>12} {one.lineage}", file=out)
    return 0


def restore(
    settings: SyncSettings, store: ObjectStore, *, to: str, generation: int | None = None, lineage: str | None = None
) -> int:
    """The files of a generation into a folder of its own; the bot's state stays as it is. Exit code 0, or 1 where there is no state."""
    content = _content(settings, store, generation=generation, lineage=lineage)
    if content is None:
        return 1
    try:
        restore_beside(
            to,
            content,
            store=store,
            bucket=settings.buckets.state,
            bot_id=settings.bot_id,
            max_bytes=settings.limits.state_bytes,
        )
    except OSError as reason:
        raise files.disk_fault(reason, f"restoring generation {content.generation} into {to}") from reason
    print(f"Generation {content.generation} of bot {settings.bot_id} is in {to}.")
    return 0


def check(settings: SyncSettings, store: ObjectStore, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """Reads all of it and checks every digest. Exit code 0, or 214 where something is missing or damaged."""
    out = out or sys.stdout
    found = verify(store, bucket=settings.buckets.state, bot_id=settings.bot_id)
    body: dict[str, Any] = {
        "bot": settings.bot_id,
        "ok": not found.problems,
        "generation": found.generation,
        "segments": found.segments,
        "stored_bytes": found.stored_bytes,
        "files": found.files,
        "bytes": found.bytes,
        "history": found.history,
        "history_bytes": found.history_bytes,
        "unreferenced": found.unreferenced,
        "problems": list(found.problems),
    }
    _print(body, as_json=as_json, out=out)
    return ExitCode.STATE_DAMAGED if found.problems else 0


def adopt(settings: SyncSettings, store: ObjectStore, *, side: Literal["local", "store"]) -> int:
    """Carries out a person's choice after a refused start. The bot must not be running here."""
    lock = hold_lock(settings.paths.state)
    try:
        print(adopt_local(settings, store) if side == "local" else adopt_store(settings, store))
    finally:
        os.close(lock)
    return 0


def aside(settings: SyncSettings, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """The set-aside trees on this disk."""
    out = out or sys.stdout
    if not os.path.isdir(settings.paths.state):
        raise Fatal(
            f"The state folder {settings.paths.state} does not exist: set STATE_PATH to the bot's.", code=ExitCode.USAGE
        )
    with StateFolder(settings.paths.state) as folder:
        found = folder.asides()
    where = os.path.join(settings.paths.state, names.RESERVED_DIR, names.ASIDE)
    if as_json:
        print(json.dumps([{"name": name, "path": os.path.join(where, name)} for name in found]), file=out)
    else:
        for name in found:
            print(clip(os.path.join(where, name), limit=4096), file=out)
    return 0


def _content(
    settings: SyncSettings, store: ObjectStore, *, generation: int | None = None, lineage: str | None = None
) -> Content | None:
    """HEAD's, or that of a former generation. None, and said, where there is no state."""
    stored = HeadFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id).read()
    if stored is None:
        print(f"Bot {settings.bot_id} has no stored state.", file=sys.stderr)
        return None
    if generation is None:
        return stored.head.content
    kept = HistoryFiles(store, bucket=settings.buckets.state, bot_id=settings.bot_id)
    return kept.content_at(stored.head.content, generation, lineage=lineage)


def _stored(stored: Stored | None) -> dict[str, Any] | None:
    if stored is None:
        return None
    content, claim = stored.head.content, stored.head.claim
    return {
        "lineage": content.lineage,
        "generation": content.generation,
        "cut": content.cut,
        "segments": len(content.segments),
        "stored_bytes": sum(segment.bytes for segment in content.segments),
        "removed": content.removed,
        "stale": list(content.stale),
        "incomplete": list(content.incomplete),
        "archive_generation": content.archive.generation if content.archive else None,
        "claim": {"epoch": claim.epoch, "holder": claim.holder, "released": claim.released},
    }


def _local(settings: SyncSettings) -> dict[str, Any] | None:
    if not os.path.isdir(settings.paths.state):
        return None
    with StateFolder(settings.paths.state) as folder:
        body: dict[str, Any] = {
            "path": settings.paths.state,
            "restoring": folder.restoring,
            "empty": not folder.children(),
            "aside": folder.asides(),
        }
        try:
            index = folder.open_index()
            origin = Origin.decode(index.meta) if index is not None else None
        except (ValueError, OSError) as reason:
            body["index"] = f"unreadable: {clip(str(reason))}"
        else:
            body["index"] = {"lineage": origin.lineage, "generation": origin.generation} if origin else None
    return body


def _print(body: dict[str, Any], *, as_json: bool, out: TextIO | None) -> None:
    out = out or sys.stdout
    if as_json:
        print(json.dumps(body), file=out)
        return
    for line in _lines(body, ""):
        print(line, file=out)


def _lines(body: dict[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in body.items():
        label = key.replace("_", " ")
        if isinstance(value, dict):
            lines += [f"{indent}{label}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{label}: {', '.join(clip(str(item)) for item in value) if value else 'none'}")
        else:
            shown = (
                {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else value
            )
            lines.append(f"{indent}{label}: {shown}")
    return lines
