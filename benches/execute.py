"""`runtime execute`: how long a start and a stop take, and what stays in memory beside the bot.

Whole processes against MinIO on this machine. Before each run a bare interpreter is started and timed in the same way,
so that a machine that is slow today shows.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from place import (
    BARE,
    BUCKETS,
    FILLS,
    FIRST,
    STAYS,
    BenchError,
    Place,
    archive,
    base,
    clean,
    launch,
    until,
    write_files,
)
from report import ROOT, Figure, keep, show, table, wait_for_quiet
from rig.minio_server import VERSION, minio
from the0.objects.open import open_store
from the0.objects.store import ObjectStore

CODE = {
    "bench/first/1": lambda: archive(FIRST),
    "bench/stays/1": lambda: archive(STAYS),
    "bench/fills/1": lambda: archive(FILLS),
    "bench/bytes/1": lambda: archive(FIRST, total_bytes=30_000_000, files=2000),
    "bench/text/1": lambda: archive(FIRST, total_bytes=30_000_000, files=2000, text=True),
}
SETTLED_S = 2.0
"""Memory has settled when it has not moved by more than 0.1 MB for so long."""
MB = 1e6


@dataclass
class Bench:
    store: ObjectStore
    environ: Mapping[str, str]
    runs: int
    traced: bool = True
    ids: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))
    idle: list[float] = field(default_factory=list)
    breakdowns: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def place(self, *, bot_id: str | None = None, code: str = "first", config: str = "{}") -> Place:
        name = bot_id or f"bench-{os.getpid()}-{next(self.ids)}"
        return Place(self.store, self.environ, name, config=config, code_file=f"bench/{code}/1")

    def bare_ms(self) -> float:
        """A bare interpreter's exec to its first line, on a machine that is quiet if others let it."""
        self.idle.append(wait_for_quiet())
        with self.place() as place:
            process = launch(BARE, env={"PATH": os.environ.get("PATH", "")}, err_path=place.root / "stderr")
            took_ms = process.first_ms()
            process.end()
        return took_ms

    def disk_ms(self, files: int, *, size: int) -> float:
        """What this disk takes for so many new files, written by nothing but a loop."""
        with self.place() as place:
            return write_files(place.root / "files", files, size=size)

    def starts(
        self,
        start: Callable[[Path | None], float],
        *,
        name: str,
        runs: int,
        files: int = 0,
        size: int = 4096,
        **row: Any,
    ) -> Figure:
        """`start(trace file)` begins a bot once and returns the ms to its first line. Runs with a trace come after the others.
        `files` of `size` bytes are what it writes to the disk."""
        bare, took, disk = [], [], []
        for _ in range(runs):
            bare.append(self.bare_ms())
            if files:
                disk.append(self.disk_ms(files, size=size))
            took.append(start(None))
        if self.traced:
            for _ in range(min(runs, 7)):
                self.bare_ms()
                with _trace_file() as path:
                    start(path)
                    self.breakdowns.setdefault(name, []).append(_steps(path))
        return Figure(name=name, unit="ms", runs=took, bare=bare, notes={"disk_ms": disk} if disk else {}, **row)

    def seed(self, files: int) -> str:
        """A bot whose stored state has so many files of 4 KiB; its id. Its claim is released."""
        with self.place(code="fills", config=f'{{"files": {files}}}') as place:
            process = place.execute()
            process.line("filled")
            process.end()
            place.verify()
            return place.bot_id


# --- the figures ------------------------------------------------------------------------------------


def first_start(bench: Bench) -> list[Figure]:
    def start(trace: Path | None) -> float:
        with bench.place() as place:
            return _once(place, trace)

    return [
        bench.starts(
            start,
            name="start, 1 KB archive, no state",
            runs=3 * bench.runs,
            target=100,
            over_bare=85,
            earlier="105 ms",
        )
    ]


def large_archive(bench: Bench) -> list[Figure]:
    figures = []
    for code, what in (("bytes", "30 MB archive, 2,000 files"), ("text", "2,000 files of text, 30 MB unpacked")):

        def start(trace: Path | None, code: str = code) -> float:
            with bench.place(code=code) as place:
                return _once(place, trace)

        figures.append(
            bench.starts(
                start, name=f"start, {what}", runs=bench.runs, files=2000, size=15_000, target=300, earlier="414 ms"
            ),
        )
    return figures


def restores(bench: Bench) -> list[Figure]:
    figures = []
    for files, target, earlier in ((1000, 200, "254 ms"), (10_000, 900, "1,550 ms")):
        bot_id = bench.seed(files)

        def start(trace: Path | None, bot_id: str = bot_id, files: int = files) -> float:
            with bench.place(bot_id=bot_id) as place:
                took_ms = _once(place, trace)
                found = sum(1 for path in place.state.rglob("files/*/*"))
                if found != files:
                    raise BenchError(f"{found} files were restored, not {files}")
                return took_ms

        name = f"start, {files:,} x 4 KiB of state to restore"
        figures.append(bench.starts(start, name=name, runs=bench.runs, files=files, target=target, earlier=earlier))
    return figures


def restart(bench: Bench) -> list[Figure]:
    with bench.place(bot_id=bench.seed(10_000)) as place:
        _once(place, None)
        one = next(place.state.rglob("files/*/*"))
        inode = one.stat().st_ino

        def start(trace: Path | None) -> float:
            took_ms = _once(place, trace)
            if one.stat().st_ino != inode:
                raise BenchError("the state was downloaded again")
            return took_ms

        return [
            bench.starts(
                start,
                name="restart, 10,000 files still on the disk",
                runs=2 * bench.runs,
                target=150,
                earlier="1,550 ms",
            )
        ]


def memory(bench: Bench) -> list[Figure]:
    if os.geteuid() != 0:
        print("Memory is left out: that of processes that hide theirs is shown to root only.")
        return []
    rest: list[dict[str, float]] = []
    after: list[dict[str, float]] = []
    for _ in range(max(2, bench.runs // 3)):
        with bench.place(code="stays") as place:
            process = place.execute()
            process.line("first")
            until(lambda place=place: place.head() is not None, "the claim")
            rest.append(_settled(process.pid))
            process.stop()
        with bench.place(code="fills", config='{"files": 10000, "stays": true}') as place:
            process = place.execute()
            process.line("filled")
            until(lambda place=place: _files_stored(place, 10_000), "the upload of 10,000 files")
            after.append(_settled(process.pid))
            process.stop()
            place.verify()

    def figure(name: str, found: list[dict[str, float]], **row: Any) -> Figure:
        return Figure(name=name, unit="MB", runs=[sum(one.values()) for one in found], notes={"parts": found}, **row)

    return [
        figure("PSS, supervisor + sync, at rest", rest, target=28, earlier="24 MB"),
        figure("PSS after a first upload of 10,000 files", after, target=32, earlier="620 to 980 MB"),
    ]


def stops(bench: Bench) -> list[Figure]:
    clean: list[float] = []
    for _ in range(bench.runs):
        with bench.place(code="stays") as place:
            process = place.execute()
            process.line("first")
            logs = f"logs/{place.bot_id}/"
            # Its line is stored: nothing is unsynced.
            until(
                lambda logs=logs: any(bench.store.list(BUCKETS["MINIO_LOGS_BUCKET"], logs)), "the storing of its line"
            )
            bench.idle.append(wait_for_quiet())
            clean.append(process.stop())
    full: list[float] = []
    for _ in range(bench.runs):
        with bench.place(code="stays") as place, bench.place() as elsewhere:
            # They appear all at once, so that no pass of the daemon stores some before.
            write_files(elsewhere.root / "files", 10_000)
            process = place.execute()
            process.line("first")
            until(lambda place=place: place.head() is not None, "the claim")
            bench.idle.append(wait_for_quiet())
            os.rename(elsewhere.root / "files", place.state / "files")
            full.append(process.stop())
            if not _files_stored(place, 10_000):
                raise BenchError("the final sync did not store the 10,000 files")
            place.verify()
    return [
        Figure(name="SIGTERM to exit, nothing unsynced", unit="ms", runs=clean, target=150, earlier="2.1 s"),
        Figure(name="SIGTERM to exit, 10,000 files unsynced", unit="ms", runs=full, target=1500, earlier="8 s"),
    ]


PARTS: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "first": first_start,
    "archive": large_archive,
    "restore": restores,
    "restart": restart,
    "memory": memory,
    "stop": stops,
}


def run(*, runs: int = 9, parts: tuple[str, ...] = (), traced: bool = True) -> bool:
    """Measures, prints and keeps all figures, or those of `parts`. Whether all reach their targets."""
    try:
        return _run(runs, parts or tuple(PARTS), traced=traced)
    finally:
        clean()


def _run(runs: int, parts: tuple[str, ...], *, traced: bool) -> bool:
    with minio() as running:
        store = open_store(running.settings, deadline_s=30)
        for bucket in BUCKETS.values():
            store.ensure_bucket(bucket)
        for key, make in CODE.items():
            store.put(BUCKETS["MINIO_CODE_BUCKET"], key, make())
        bench = Bench(store, running.environ, runs=runs, traced=traced)
        _warm_up(bench)
        figures: list[Figure] = []
        for name in parts:
            figures += PARTS[name](bench)
    show("runtime execute, MinIO on this machine; from exec to the first line of a Python bot's main", figures)
    for name, steps in bench.breakdowns.items():
        _show_breakdown(name, steps)
    for figure in figures:
        if disk := figure.notes.get("disk_ms"):
            print(f"{figure.name}: writing those files alone takes {statistics.median(disk):.0f} ms on this disk.")
    busy = sum(1 for idle in bench.idle if idle < 0.8)
    print(f"\n{busy} of {len(bench.idle)} measurements began while other programs kept the CPUs busy.")
    path = keep(
        "execute",
        figures,
        more={"minio": VERSION, "idle": bench.idle, "breakdowns": bench.breakdowns},
    )
    print(f"Raw results: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return all(figure.verdict != "MISSED" for figure in figures)


# --- parts --------------------------------------------------------------------------------------------


def _once(place: Place, trace: Path | None) -> float:
    """One run of a bot that ends at once; the ms from exec to its first line."""
    process = place.execute(trace=trace)
    took_ms = process.first_ms()
    process.end()
    if trace is not None:
        _note(trace, process.began_ns, "exec")
        _note(trace, int(process.line("first")[1]), "bot: first line of main")
    return took_ms


def _warm_up(bench: Bench) -> None:
    """Byte code is compiled and files are in the page cache, as on a machine that has run a bot before."""
    for _ in range(2):
        with bench.place() as place:
            _once(place, None)


def _files_stored(place: Place, files: int) -> bool:
    stored = place.head()
    return stored is not None and sum(segment.bytes for segment in stored.head.content.segments) >= files * 4096


def _settled(pid: int) -> dict[str, float]:
    """PSS in MB of the supervisor and its sync process, once it moves no more."""
    deadline = time.monotonic() + 40
    last, since = _rollups(pid, "Private_Dirty"), time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        time.sleep(0.1)
        now = _rollups(pid, "Private_Dirty")  # PSS also moves when other programs come and go
        if abs(sum(now.values()) - sum(last.values())) > 0.1:
            last, since = now, time.monotonic()
        if time.monotonic() > deadline:
            raise BenchError(f"the memory does not settle: {now}")
    return _rollups(pid, "Pss")


def _rollups(pid: int, what: str) -> dict[str, float]:
    found = {"supervisor": _rollup(pid, what)}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "the0-sync":
            found["sync"] = _rollup(int(child), what)
    return found


def _rollup(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024 / MB


@contextmanager
def _trace_file() -> Iterator[Path]:
    path = base() / "trace"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


SLOT = 128
"""Bytes of one note in a trace, as `traced.py` writes them."""
PROCESSES = {0: "supervisor", 1: "prepare", 3: "sync"}
"""By the count of forks before; the second is the bot, which notes nothing."""


def _note(path: Path, at_ns: int, what: str) -> None:
    with open(path, "ab") as file:
        file.write(f"{at_ns} -1 {what}\n".encode().ljust(SLOT, b"\0"))


def _steps(path: Path) -> dict[str, float]:
    """ms after exec of the first time of each step."""
    found: list[tuple[int, str]] = []
    data = path.read_bytes()
    for at in range(0, len(data), SLOT):
        told = data[at : at + SLOT].partition(b"\n")[0].decode(errors="replace").split(" ", 2)
        if len(told) == 3 and told[0].isdigit():
            process = PROCESSES.get(int(told[1]))
            found.append((int(told[0]), f"{process}: {told[2]}" if process else told[2]))
    found.sort()
    steps: dict[str, float] = {}
    for now_ns, what in found:
        steps.setdefault(what, (now_ns - found[0][0]) / 1e6)
    return steps


def _show_breakdown(name: str, runs: list[dict[str, float]]) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    for steps in runs:
        for what, at_ms in steps.items():
            times[what].append(at_ms)
    usual = {what: statistics.median(found) for what, found in times.items() if len(found) * 2 > len(runs)}
    first = usual.get("bot: first line of main", 0.0)
    rows = [(what, f"{at_ms:.1f}") for what, at_ms in sorted(usual.items(), key=lambda one: one[1]) if at_ms <= first]
    print(f"\n{name}: ms after exec (medians of {len(runs)} traced runs)\n")
    print(table(rows, ("step (> begins, < has ended)", "ms")))
