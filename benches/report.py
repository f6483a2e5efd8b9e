"""What benches have in common: figures, the table of them, and the raw results kept in .cache/bench."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUIET_IDLE = 0.8
"""The share of all CPUs that must be idle for a measurement to begin, if that comes within QUIET_WITHIN_S."""
QUIET_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row. `runs` in order; the median of them is the figure."""

    name: str
    unit: str
    runs: Sequence[float]
    target: float | None = None
    """At most that much."""
    earlier: str = ""
    """What the earlier runtime takes, as text."""
    bare: Sequence[float] = ()
    """A bare interpreter's start (ms), one for each run, measured right before it."""
    over_bare: float | None = None
    """At most that much above the bare interpreter as well."""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    @property
    def bound(self) -> float | None:
        """The tighter of both targets."""
        bounds = [] if self.target is None else [self.target]
        if self.over_bare is not None and self.bare:
            bounds.append(statistics.median(self.bare) + self.over_bare)
        return min(bounds) if bounds else None

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return ""
        return "ok" if self.value <= self.bound else "MISSED"

    def row(self) -> tuple[str, ...]:
        bare = f"{statistics.median(self.bare):.0f}" if self.bare else ""
        target = "" if self.target is None else f"<= {self.target:.4g}"
        if self.over_bare is not None:
            target += f", bare + {self.over_bare:g}"
        digits = 1 if self.value < 100 else 0
        spread = f"{min(self.runs):.{digits}f} .. {max(self.runs):.{digits}f}"
        value = f"{self.value:.{digits}f} {self.unit}"
        return (self.name, value, spread, str(len(self.runs)), bare, target, self.earlier, self.verdict)


HEADER = ("figure", "median", "all runs", "runs", "bare", "target", "earlier", "")


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def show(title: str, figures: Sequence[Figure]) -> None:
    print(f"\n{title}\n")
    print(table([figure.row() for figure in figures], HEADER))


def tally(figures: Sequence[Figure]) -> str:
    """One line: how many targets there were, and which were missed."""
    missed = [figure.name for figure in figures if figure.verdict == "MISSED"]
    reached = sum(figure.verdict == "ok" for figure in figures)
    told = f"{reached} of {reached + len(missed)} targets reached."
    return f"{told} MISSED: {'; '.join(missed)}." if missed else told


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says on stderr what is being done, and how long it took."""
    print(f"  {what} …", end="", file=sys.stderr, flush=True)
    began_s = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - began_s:.1f} s", file=sys.stderr, flush=True)


def keep(name: str, figures: Sequence[Figure], *, more: Mapping[str, Any] | None = None) -> Path:
    """Writes all that was measured to .cache/bench/<time>-<name>.json."""
    folder = Path(os.environ.get("THE0_CACHE") or ROOT / ".cache") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{name}.json"
    told = {
        "bench": name,
        "command": shlex.join(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "figures": [
            {**asdict(figure), "median": figure.value, "bound": figure.bound, "verdict": figure.verdict}
            for figure in figures
        ],
        **(more or {}),
    }
    path.write_text(json.dumps(told, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ":").partition(":")[2]
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0 0").split()[1]
    return {
        "cpu": cpu.strip(),
        "cpus": os.cpu_count(),
        "memory_kib": int(memory),
        "kernel": platform.release(),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("the0", "obstore")},
        "commit": _commit(),
    }


def wait_for_quiet() -> float:
    """Waits a little for others to leave the CPUs alone; the share that was idle in the end."""
    deadline = time.monotonic() + QUIET_WITHIN_S
    while True:
        idle = _idle_share(0.1)
        if idle >= QUIET_IDLE or time.monotonic() > deadline:
            return idle


def _idle_share(within_s: float) -> float:
    total, idle = _cpu_times()
    time.sleep(within_s)
    later, idle_later = _cpu_times()
    return (idle_later - idle) / max(1, later - total)


def _cpu_times() -> tuple[int, int]:
    """All ticks so far, and the idle ones among them."""
    ticks = [int(text) for text in _lines("/proc/stat")[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
