"""What this machine holds of a bot that was removed: it goes in one step, or not at all."""

from __future__ import annotations

import os
import shutil
from typing import Final

from the0 import files, names
from the0.errors import clip
from the0.orchestrate.data import BotFolders, Data

_GONE: Final = "~gone-"
"""Begins the name of a removed bot's folder; no id's folder is called so."""


def kept(data: Data) -> list[str]:
    """The names of the bots' folders; what is left of removed ones is cleared away."""
    found = []
    for name in os.listdir(data.bots):
        if name.startswith(_GONE):
            shutil.rmtree(os.path.join(data.bots, name), ignore_errors=True)  # the next time, then
        else:
            found.append(name)
    return found


def take_away(data: Data, folders: BotFolders) -> str | None:
    """Moves the bot's folder out of sight, for `clear`; None where there is none, or where trees were set aside in it, which are
    nowhere else. Only while nothing of the bot runs. Raises Fault (LOCAL_DISK)."""
    if _has_entries(os.path.join(folders.state, names.RESERVED_DIR, names.ASIDE)):
        return None
    gone = os.path.join(data.bots, _GONE + os.urandom(8).hex())
    try:
        os.rename(folders.path, gone)
    except FileNotFoundError:
        return None  # nothing of it was here
    except OSError as reason:
        raise files.disk_fault(reason, f"removing {clip(folders.path)}") from reason
    return gone


def clear(gone: str) -> None:
    """What is left of it goes at the next start."""
    shutil.rmtree(gone, ignore_errors=True)


def _has_entries(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False  # not there
