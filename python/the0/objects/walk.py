"""The keys below a folder, in byte order, one folder in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from the0 import files
from the0.objects.keys import check_key
from the0.objects.store import Refused


def walk(root_fd: int, prefix: str, *, after: str | None, reserved: str) -> Iterator[str]:
    """Keys that begin with prefix and come after `after`. Links, special files and names that are no keys are passed
    over; so is the reserved folder, and what goes away meanwhile."""
    parent, _, _ = prefix.rpartition("/")
    yield from _walk(root_fd, f"{parent}/" if parent else "", prefix=prefix, after=after, reserved=reserved)


def folders(root_fd: int, prefix: str, *, reserved: str) -> list[str]:
    """The folders just below prefix (empty, or ending in `/`) that hold a key, as full keys with their `/`."""
    return [
        name
        for name in _entries(root_fd, prefix, reserved=reserved)
        if name.endswith("/") and next(walk(root_fd, name, after=None, reserved=reserved), None) is not None
    ]


def _walk(root_fd: int, folder: str, *, prefix: str, after: str | None, reserved: str) -> Iterator[str]:
    for name in _entries(root_fd, folder, reserved=reserved):
        if not name.startswith(prefix) and not prefix.startswith(name):
            continue
        if name.endswith("/"):
            # All of a folder comes before `after` where its own name does, unless `after` lies in it.
            if after is None or name > after or after.startswith(name):
                yield from _walk(root_fd, name, prefix=prefix, after=after, reserved=reserved)
        elif name.startswith(prefix) and (after is None or name > after):
            yield name


def _entries(root_fd: int, folder: str, *, reserved: str) -> list[str]:
    """Full keys of the files, and of the folders with a `/` at their end; sorted as keys are (code points sort as their
    UTF-8 does)."""
    found: list[str] = []
    try:
        fd = files.open_folder_beneath(root_fd, folder.rstrip("/"))
    except (FileNotFoundError, NotADirectoryError):
        return found
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                key = f"{folder}{entry.name}"
                if key == reserved:
                    continue
                with suppress(Refused, FileNotFoundError):
                    check_key(key)
                    if entry.is_dir(follow_symlinks=False):
                        found.append(f"{key}/")
                    elif entry.is_file(follow_symlinks=False):
                        found.append(key)
    finally:
        os.close(fd)
    found.sort()
    return found
