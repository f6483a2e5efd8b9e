"""Control groups for bots: memory and CPU limits where the kernel lets us make groups below our own, version 1 or 2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from the0.documents import Resources

ROOT: Final = "/sys/fs/cgroup"
PERIOD_US: Final = 100_000
_OURS: Final = "the0"
_CONTROLLERS: Final = ("memory", "cpu")


@dataclass(frozen=True, slots=True)
class Groups:
    """Where groups for bots can be made."""

    version: int
    """0: nowhere."""
    parents: tuple[str, ...]
    """Folders: one for each controller of version 1, one of version 2."""
    reason: str = ""
    """Why nowhere."""

    def make(self, name: str, limits: Resources) -> tuple[str, ...]:
        """The bot's own groups, limited and empty; their folders. OSError where the kernel refuses a limit."""
        made = []
        for parent in self.parents:
            folder = os.path.join(parent, name)
            os.makedirs(folder, exist_ok=True)
            made.append(folder)
            for file, value in _settings(self.version, limits):
                path = os.path.join(folder, file)
                if os.path.exists(path):
                    _write(path, value)
        return tuple(made)


def find(key: str) -> Groups:
    """Tries it. `key` keeps the platforms of one machine apart."""
    try:
        controllers = _own()
        if "" in controllers and os.path.exists(f"{ROOT}/cgroup.controllers"):
            return _version_2(ROOT + controllers[""], key)
        if "memory" in controllers:
            return _version_1(controllers, key)
    except OSError as reason:
        return Groups(0, (), f"{reason.strerror} ({reason.filename})")
    return Groups(0, (), "the kernel shows no memory controller")


def _own() -> dict[str, str]:
    """By controller (version 2: ""), the path of the group that we are in."""
    found = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path if path != "/" else ""
    return found


def _version_1(controllers: dict[str, str], key: str) -> Groups:
    parents = []
    for controller in _CONTROLLERS:
        base = f"{ROOT}/{controller}{controllers.get(controller, '')}"
        if not os.path.isdir(base):
            base = f"{ROOT}/{controller}"
        if controller in controllers and os.path.isdir(base):
            parent = os.path.join(base, f"{_OURS}-{key}")
            os.makedirs(parent, exist_ok=True)
            parents.append(parent)
    return Groups(1, tuple(dict.fromkeys(os.path.realpath(parent) for parent in parents)))


def _version_2(own: str, key: str) -> Groups:
    # A group with processes hands no controllers down: our own goes into a leaf first.
    leaf = os.path.join(own, f"{_OURS}-up-{key}")
    parent = os.path.join(own, f"{_OURS}-{key}")
    os.makedirs(leaf, exist_ok=True)
    os.makedirs(parent, exist_ok=True)
    _write(os.path.join(leaf, "cgroup.procs"), "0")
    for folder in (own, parent):
        _write(os.path.join(folder, "cgroup.subtree_control"), "+memory +cpu")
    return Groups(2, (parent,))


def _settings(version: int, limits: Resources) -> list[tuple[str, str]]:
    found = []
    memory, cores = limits.memory_bytes, limits.cpu_cores
    quota_us = max(int(cores * PERIOD_US), 1000) if cores else None
    if version == 2:
        found.append(("memory.max", str(memory) if memory else "max"))
        found.append(("cpu.max", f"{quota_us or 'max'} {PERIOD_US}"))
        found.append(("memory.swap.max", "0" if memory else "max"))
    else:
        found.append(("memory.limit_in_bytes", str(memory or -1)))
        found.append(("cpu.cfs_period_us", str(PERIOD_US)))
        found.append(("cpu.cfs_quota_us", str(quota_us or -1)))
    return found


def remove(folders: Sequence[str]) -> None:
    """Groups in which nothing runs any more; one that is not empty stays for the next time."""
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            pass  # an orphan of the bot's is in it, or it is gone


def end(folders: Sequence[str], number: int) -> None:
    """Signals all that is in the groups."""
    for folder in folders:
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                pids = [int(line) for line in file if line.strip() != "0"]
        except OSError:
            continue  # it is gone
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has just ended


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
