"""Whether the kernel killed for lack of memory: the counters of our own control group, where they can be read."""

from __future__ import annotations

from the0.frozen import dataclass

_ROOT = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Memory:
    """A look at our control group."""

    kills: int | None
    """How often the kernel killed in it for lack of memory; None if that cannot be known."""
    limit_bytes: int | None

    def killed_since(self, former: Memory) -> bool:
        return self.kills is not None and former.kills is not None and self.kills > former.kills

    @property
    def limit(self) -> str:
        """` of N MiB`, or nothing where it is not known."""
        return f" of {self.limit_bytes >> 20} MiB" if self.limit_bytes is not None else ""


def look() -> Memory:
    """Version 2's memory.events, else version 1's memory.oom_control; as a container sees its own group, then as the host does."""
    for folder in _folders():
        kills = _counter(f"{folder}/memory.events", "oom_kill")
        if kills is not None:
            return Memory(kills=kills, limit_bytes=_number(f"{folder}/memory.max"))
        kills = _counter(f"{folder}/memory.oom_control", "oom_kill")
        if kills is not None:
            return Memory(kills=kills, limit_bytes=_number(f"{folder}/memory.limit_in_bytes"))
    return Memory(kills=None, limit_bytes=None)


def _folders() -> list[str]:
    folders = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders += [_ROOT + path, f"{_ROOT}/unified{path}", _ROOT]
        elif "memory" in controllers.split(","):
            folders += [f"{_ROOT}/memory{path}", f"{_ROOT}/memory"]
    return folders


def _counter(path: str, name: str) -> int | None:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None


def _number(path: str) -> int | None:
    text = _read(path).strip()
    # Without a limit, version 1 shows a number near 2^63.
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""  # not this version, or not shown to us
