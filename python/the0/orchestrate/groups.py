"""Control groups for bots: limits of memory, CPU and processes where the kernel lets us make groups below our own, version 1 or 2;
and a way to end all that a bot has left behind, whatever session it moved to."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from the0.documents import Resources

ROOT: Final = "/sys/fs/cgroup"
PERIOD_US: Final = 100_000
PROCESSES: Final = 1024
"""So many processes and threads a bot may have, ours beside it included."""
_OURS: Final = "the0"
_CONTROLLERS: Final = ("memory", "cpu", "pids")
_FILES: Final = {
    "memory": ("memory.max", "memory.limit_in_bytes"),
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
    "pids": ("pids.max",),
}


@dataclass(frozen=True, slots=True)
class Groups:
    """Where groups for bots can be made."""

    version: int
    """0: nowhere."""
    parents: tuple[str, ...]
    """Folders: one for each controller of version 1, one of version 2."""
    reason: str = ""
    """Why nowhere."""

    def keeps(self) -> frozenset[str]:
        """Of "memory", "cpu" and "pids" what can be limited."""
        return frozenset(
            name
            for name, files in _FILES.items()
            if any(os.path.exists(os.path.join(parent, file)) for parent in self.parents for file in files)
        )

    def made(self) -> tuple[str, ...]:
        """All folders that finding this has made: what `remove` takes, once nobody is in them."""
        ours = (_leaf(parent) for parent in self.parents if self.version == 2)
        return (*self.parents, *(leaf for leaf in ours if os.path.isdir(leaf)))

    def make(self, name: str, limits: Resources) -> tuple[str, ...]:
        """The bot's own groups, limited and empty; their folders. OSError where the kernel refuses a limit."""
        made = []
        for parent in self.parents:
            told = [
                (file, value)
                for file, value in settings(self.version, limits)
                if os.path.exists(os.path.join(parent, file))
            ]
            if self.version == 1 and not told:
                continue  # nothing is limited here
            folder = os.path.join(parent, name)
            os.makedirs(folder, exist_ok=True)
            made.append(folder)
            for file, value in told:
                _write(os.path.join(folder, file), value)
        return tuple(made)

    def made_with(self, prefix: str) -> list[str]:
        """The folders of the groups whose names begin so, whoever made them."""
        return [
            os.path.join(parent, name)
            for parent in self.parents
            for name in os.listdir(parent)
            if name.startswith(prefix)
        ]


def find(key: str, *, root: str = ROOT) -> Groups:
    """Tries it; on version 2, this process may move to a group of its own. `key` keeps the platforms of one machine apart."""
    try:
        controllers = _own()
        if "" in controllers and os.path.exists(f"{root}/cgroup.controllers"):
            return _version_2(root, controllers[""], key)
        if "memory" in controllers:
            return _version_1(root, controllers, key)
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


def _version_1(root: str, controllers: dict[str, str], key: str) -> Groups:
    parents = []
    for controller in _CONTROLLERS:
        base = f"{root}/{controller}{controllers.get(controller, '')}"
        if not os.path.isdir(base):
            base = f"{root}/{controller}"
        if controller in controllers and os.path.isdir(base):
            parent = os.path.join(base, f"{_OURS}-{key}")
            os.makedirs(parent, exist_ok=True)
            parents.append(parent)
    return Groups(1, tuple(dict.fromkeys(os.path.realpath(parent) for parent in parents)))


def _version_2(root: str, own: str, key: str) -> Groups:
    """Below our own group, where nobody else is in it; else, as root may, beside all others."""
    try:
        return Groups(2, (_below(root + own, key, leaf=bool(own)),))
    except OSError:
        if not own:
            raise
        return Groups(2, (_below(root, key, leaf=False),))


def _below(above: str, key: str, *, leaf: bool) -> str:
    parent = os.path.join(above, f"{_OURS}-{key}")
    ours = _leaf(parent)
    try:
        os.makedirs(parent, exist_ok=True)
        if leaf:  # a group with processes hands no controllers down: our own goes elsewhere first
            os.makedirs(ours, exist_ok=True)
            _write(os.path.join(ours, "cgroup.procs"), "0")
        for folder in (above, parent):
            with open(os.path.join(folder, "cgroup.controllers"), encoding="ascii") as file:
                there = file.read().split()
            wanted = " ".join(f"+{each}" for each in _CONTROLLERS if each in there)
            if wanted:
                _write(os.path.join(folder, "cgroup.subtree_control"), wanted)
    except OSError:
        if os.path.isdir(ours):
            _write(os.path.join(above, "cgroup.procs"), "0")
        remove((ours, parent))
        raise
    return parent


def _leaf(parent: str) -> str:
    """Where our own process is on version 2."""
    return f"{parent}-up"


def settings(version: int, limits: Resources) -> list[tuple[str, str]]:
    """Files of a group and what to write there. A group of version 2 holds all limits, so that those there are not are told, too."""
    memory, cores = limits.memory_bytes, limits.cpu_cores
    quota_us = max(int(cores * PERIOD_US), 1000) if cores else None
    found = [("pids.max", str(PROCESSES))]
    if version == 2:
        found.append(("memory.max", str(memory) if memory else "max"))
        found.append(("cpu.max", f"{quota_us or 'max'} {PERIOD_US}"))
        found.append(("memory.swap.max", "0" if memory else "max"))
        return found
    if memory:
        found.append(("memory.limit_in_bytes", str(memory)))
    if quota_us:
        found += [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota_us))]
    return found


def remove(folders: Sequence[str]) -> None:
    """Groups in which nothing runs any more; one that is not empty stays for the next time."""
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            pass  # an orphan of the bot's is in it, or it is gone


def clear(folders: Sequence[str]) -> bool:
    """Kills all that is in the groups and lets nothing be started there; False: look again, they are not empty yet."""
    left = [folder for folder in folders if _processes(folder)]
    for folder in left:
        for file, value in (("pids.max", "0"), ("cgroup.kill", "1")):
            try:
                with open(os.path.join(folder, file), "r+", encoding="ascii") as told:
                    told.write(value)
            except OSError:
                pass  # another version or kernel: killing one after the other will do
    end(left, signal.SIGKILL)
    return not left


def end(folders: Sequence[str], number: int) -> None:
    """Signals all that is in the groups."""
    for folder in folders:
        for pid in _processes(folder):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has just ended


def _processes(folder: str) -> list[int]:
    try:
        with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
            return [int(line) for line in file if line.strip() != "0"]
    except OSError:
        return []  # it is gone


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
