"""What is written down of a bot's process, so that an `up` that starts later knows it: `bots/<id>/process.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from the0 import canonical, files, names
from the0.errors import ExitCode, clip
from the0.orchestrate.data import BotFolders
from the0.orchestrate.engine import Exit, Instance
from the0.orchestrate.processes import Identity

FORMAT: Final = 1
LIMIT_BYTES: Final = 1 << 20
LINES: Final = 20
_LINE: Final = 500
_TAIL_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    instance: Instance
    process: Identity | None
    """None: it was about to be started."""
    query_port: int | None = None
    cgroups: tuple[str, ...] = ()
    """Folders of its control groups."""

    def with_instance(self, **changes: Any) -> Record:
        return replace(self, instance=replace(self.instance, **changes))


def write(folders: BotFolders, record: Record) -> None:
    """Not durable: after a boot nothing of it runs any more. OSError where the disk refuses."""
    with files.folder(folders.path) as fd:
        told = {"format": FORMAT, "folder": _identity(fd), **asdict(record)}
        files.write_atomic(fd, os.path.basename(folders.process), json.dumps(told).encode(), mode=0o600, durable=False)


def read(folders: BotFolders) -> Record | None:
    """None where there is none, or none that makes sense: the lock on the state folder still keeps two copies apart. Neither does
    one that came with a copy of the folder: what it tells of belongs to the original."""
    try:
        with files.folder(folders.path) as fd:
            data = files.read_beneath(fd, os.path.basename(folders.process), limit_bytes=LIMIT_BYTES)
            here = _identity(fd)
        told = json.loads(data)
        if told.get("format") != FORMAT or told.get("folder", here) != here:
            return None
        instance = dict(told["instance"])
        instance["exit"] = _exit(instance["exit"])
        instance["previous"] = _exit(instance["previous"])
        return Record(
            instance=Instance(**instance),
            process=Identity(**told["process"]) if told["process"] is not None else None,
            query_port=told["query_port"],
            cgroups=tuple(told["cgroups"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _identity(folder_fd: int) -> list[int]:
    """Of a folder on this machine; a copy has another one."""
    found = os.fstat(folder_fd)
    return [found.st_dev, found.st_ino]


def _exit(told: Mapping[str, Any] | None) -> Exit | None:
    return Exit(**{**told, "lines": tuple(told["lines"])}) if told is not None else None


def read_exit(folders: BotFolders, *, code: int | None, at_s: float) -> Exit:
    """How the run ended whose process has ended with `code` (None: it was no child of ours). `execute` wrote down who
    ended it; without that, it was killed itself, or refused before it began, which it then said on stderr."""
    lines = last_lines(folders)
    told = _told(folders)
    if told is not None:
        return Exit(code=told[0], by=told[1], reason=told[2], instance=told[3], at_s=at_s, lines=lines)
    said = _said(folders)
    if code is None:
        reason = said or "The runtime's supervisor of the bot ended while nobody watched, and left no record."
        return Exit(code=int(ExitCode.INTERNAL), by="runtime", reason=reason, at_s=at_s, lines=lines)
    if code > 128 and code not in set(ExitCode):
        reason = f"The runtime's supervisor of the bot was killed by signal {code - 128}."
    else:
        reason = said or f"The runtime's supervisor of the bot ended with exit code {code}."
    return Exit(code=code, by="runtime", reason=reason, at_s=at_s, lines=lines)


def _told(folders: BotFolders) -> tuple[int, Any, str, str | None] | None:
    """code, by, reason, instance. A bot may have written there: only its shape is believed."""
    try:
        with files.folder(folders.run) as fd:
            told = canonical.loads_object(files.read_beneath(fd, names.EXIT_RECORD, limit_bytes=64 << 10))
    except (OSError, ValueError):
        return None
    code, by, reason, instance = told.get("code"), told.get("by"), told.get("reason"), told.get("instance")
    if not isinstance(code, int) or by not in ("bot", "runtime") or not isinstance(reason, str):
        return None
    return code, by, clip(reason, limit=1000), instance if isinstance(instance, str) else None


def _said(folders: BotFolders) -> str:
    """The last sentence of our own on stderr."""
    found = [line for line in _tail(folders.path, os.path.basename(folders.said)) if line.startswith("the0: ")]
    return clip(found[-1].removeprefix("the0: "), limit=1000) if found else ""


def last_lines(folders: BotFolders) -> tuple[str, ...]:
    """Of what the bot printed."""
    return tuple(clip(line, limit=_LINE) for line in _tail(folders.logs, names.BOT_LOG)[-LINES:])


def _tail(folder: str, name: str) -> list[str]:
    try:
        with files.folder(folder) as folder_fd:
            fd = files.open_beneath(folder_fd, name)
    except OSError:
        return []  # nothing was ever said
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
    finally:
        os.close(fd)
    lines = data.decode("utf-8", "replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:]
    return [line for line in lines if line.strip()]
