"""Growth: thousands of small commits over a large tree, and trees of up to a million files. Draws the curves into docs/.

`growth.py [commits] [files] [--commits N] [--mib N] [--files N] [--no-pictures]`. On the folder store, in this process; local work and
the store's time are told apart by timing the store's methods.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import place  # noqa: E402
from chart import Axis, draw  # noqa: E402
from report import ROOT, Figure, keep, show  # noqa: E402
from the0 import names, statehash  # noqa: E402
from the0.objects.credentials import StoreSettings  # noqa: E402
from the0.objects.open import open_store  # noqa: E402
from the0.objects.store import ObjectStore  # noqa: E402
from the0.settings import Buckets, Limits, Paths, Policies, SyncSettings  # noqa: E402
from the0.sync import sweep  # noqa: E402
from the0.sync.cleaning import Bounds  # noqa: E402
from the0.sync.commit import Committer  # noqa: E402
from the0.sync.head import HeadFile  # noqa: E402
from the0.sync.local import Origin, StateFolder  # noqa: E402
from the0.sync.restore import restore  # noqa: E402
from the0.sync.start import start  # noqa: E402

MIB = 1 << 20
DOCS = ROOT / "docs"


class Timed:
    """A store that adds up the time spent in it, and what was sent."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.seconds = 0.0
        self.puts = 0
        self.sent = 0

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._store, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun
                if attribute.startswith("put"):
                    self.puts += 1
                    self.sent += memoryview(args[2]).nbytes

        return timed


class Bot:
    """One bot's folder and store, committed by hand."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.buckets = Buckets()
        self.state = base / "state"
        (base / "store").mkdir()
        self.plain = open_store(StoreSettings(folder=str(base / "store")), deadline_s=60.0)
        for bucket in (self.buckets.state, self.buckets.logs):
            self.plain.ensure_bucket(bucket)
        self.store = Timed(self.plain)
        settings = SyncSettings(
            bot_id="bench",
            store=StoreSettings(folder=str(base / "store")),
            buckets=self.buckets,
            limits=Limits(),
            policies=Policies(),
            paths=Paths(
                code=str(base / "code"),
                state=str(self.state),
                logs=str(base / "logs"),
                sdk_state=str(self.state / names.SDK_STATE_DIR),
                run=str(base / "run"),
            ),
        )
        start(settings, self.plain, instance="bench")
        stored = HeadFile(self.plain, bucket=self.buckets.state, bot_id="bench").read()
        assert stored is not None
        self.folder = StateFolder(str(self.state))
        index = self.folder.open_index()
        assert index is not None
        self.committer = Committer.of(settings, self.store, folder=self.folder, index=index, stored=stored)  # type: ignore[arg-type]

    def commit(self) -> tuple[float, float, int]:
        """Local seconds of tick and commit, seconds of the tick alone, segments dropped."""
        self.store.seconds = 0.0
        begun = time.perf_counter()
        scan = self.committer.scan()
        tick_s = time.perf_counter() - begun
        done = self.committer.commit(scan)
        return time.perf_counter() - begun - self.store.seconds, tick_s, done.dropped

    def sweep(self) -> sweep.Swept:
        claim = self.committer.stored.head.claim
        return sweep.Sweeper(
            self.plain,
            bucket=self.buckets.state,
            bot_id="bench",
            epoch=claim.epoch,
            instance=claim.instance,
            limits=sweep.Limits(age_s=-1.0),
        ).sweep(live_bytes=self.committer.live_bytes(), stop=threading.Event())

    def restored(self) -> float:
        """Seconds of a restore of HEAD's generation into a new folder, ended by a sync. Of the former ones the large files go, the
        small ones stay: where many inodes were just freed, the next ones take long (README.md, "The disk")."""
        former = list(place.base().glob("restored-*"))
        for one in former:
            shutil.rmtree(one / "large", ignore_errors=True)
        os.sync()
        with StateFolder(str(place.base() / f"restored-{len(former)}")) as folder:
            begun = time.perf_counter()
            restore(
                folder,
                self.committer.content,
                store=self.plain,
                bucket=self.buckets.state,
                bot_id="bench",
                origin=Origin(),
                max_bytes=1 << 40,
                stop=threading.Event(),
            )
            os.sync()
            return time.perf_counter() - begun


def change(bot: Bot, luck: random.Random, number: int, files: int, *, page: int = 4096) -> None:
    """One small commit's worth: a file that is always written, and a page of a large one, a new small one, or one less."""
    (bot.state / "hot").write_bytes(b"%d" % number)
    kind = luck.random()
    if kind < 0.5:
        path = bot.state / f"large/{luck.randrange(files)}"
        with path.open("r+b") as file:
            file.seek(luck.randrange(path.stat().st_size // page) * page)
            file.write(luck.randbytes(page))
    else:
        path = bot.state / f"small/{luck.randrange(100)}/{luck.randrange(100)}"
        if kind < 0.8:
            path.write_bytes(luck.randbytes(luck.randrange(4096)))
        else:
            path.unlink(missing_ok=True)


def commits(base: Path, *, count: int, mib: int, pictures: bool) -> list[Figure]:
    bot = Bot(base)
    luck = random.Random(1)
    (bot.state / "large").mkdir()
    for number in range(100):
        (bot.state / f"small/{number}").mkdir(parents=True)
    for number in range(mib):
        (bot.state / f"large/{number}").write_bytes(luck.randbytes(MIB))
    bot.commit()
    rows: list[dict[str, float]] = []
    plain_ms: list[float] = []
    clean_ms: list[float] = []
    bot.store.sent = bot.store.puts = 0
    for number in range(1, count + 1):
        change(bot, luck, number, mib)
        local_s, tick_s, dropped = bot.commit()
        (clean_ms if dropped else plain_ms).append((local_s - tick_s) * 1e3)
        if number % max(count // 20, 1) == 0:
            bot.sweep()
        if number % max(count // 200, 1) == 0:
            rows.append(sample(bot, number))
        if number % max(count // 10, 1) == 0:
            print(f"  {number} commits: {rows[-1]}", file=sys.stderr, flush=True)
    sent = bot.store.sent
    fresh_base = base / "fresh"
    fresh_base.mkdir()
    fresh = Bot(fresh_base)
    shutil.rmtree(fresh.state)
    shutil.copytree(bot.state, fresh.state, ignore=shutil.ignore_patterns(names.RESERVED_DIR), symlinks=True)
    fresh = _again(fresh_base)
    fresh.commit()
    pairs = [(bot.restored(), fresh.restored()) for _ in range(7)]
    grown, plain = [one for one, _ in pairs], [other for _, other in pairs]
    limit = [(0, 64.0), (count, 64.0)]
    if pictures:
        draw(
            DOCS / "growth-head.svg",
            f"HEAD over {count} small commits to a tree of {mib} MiB",
            {"HEAD, KiB": [(r["commit"], r["head_kib"]) for r in rows], "limit": limit},
            x=Axis(label="commits"),
            y=Axis(label="KiB"),
        )
        draw(
            DOCS / "growth-storage.svg",
            f"Storage over {count} small commits to a tree of {mib} MiB",
            {
                "listed by HEAD": [(r["commit"], r["listed_mib"]) for r in rows],
                "live": [(r["commit"], r["live_mib"]) for r in rows],
                "history": [(r["commit"], r["history_mib"]) for r in rows],
                "limit: 2x live": [(r["commit"], 2 * r["live_mib"]) for r in rows],
            },
            x=Axis(label="commits"),
            y=Axis(label="MiB"),
        )
    last = rows[-1]
    return [
        Figure(name="HEAD, largest", unit="KiB", runs=[max(r["head_kib"] for r in rows)], target=64),
        Figure(name="segments listed, most", unit="", runs=[max(r["segments"] for r in rows)]),
        Figure(
            name="listed by HEAD / live, most",
            unit="x",
            runs=[max(r["listed_mib"] / r["live_mib"] for r in rows)],
            target=2,
        ),
        Figure(
            name="history / live, most",
            unit="x",
            runs=[max(r["history_mib"] / r["live_mib"] for r in rows)],
            target=1.05,
        ),
        Figure(
            name="restore / restore of a fresh base", unit="x", runs=[one / other for one, other in pairs], target=1.5
        ),
        Figure(name="restore", unit="s", runs=grown),
        Figure(name="restore of a fresh base", unit="s", runs=plain),
        Figure(name="local work of a commit beyond the tick", unit="ms", runs=plain_ms),
        Figure(name="the same of a commit that cleans", unit="ms", runs=clean_ms),
        Figure(name="commits that clean, of 1,000", unit="", runs=[1000 * len(clean_ms) / count]),
        Figure(name="sent in all", unit="MiB", runs=[sent / MIB], notes=last),
    ]


def _again(base: Path) -> Bot:
    shutil.rmtree(base / "store")
    state = base / "state"
    shutil.rmtree(state / names.RESERVED_DIR, ignore_errors=True)
    kept = base / "kept"
    state.rename(kept)
    bot = Bot(base)
    for child in kept.iterdir():
        child.rename(bot.state / child.name)
    return bot


def sample(bot: Bot, commit: int) -> dict[str, float]:
    content = bot.committer.content
    listed = {ref.key for ref in content.segments}
    stored = {info.key: info.size for info in bot.plain.list(bot.buckets.state, names.segments_prefix("bench"))}
    return {
        "commit": commit,
        "segments": len(content.segments),
        "head_kib": len(bot.committer.stored.head.encode()) / 1024,
        "listed_mib": sum(ref.bytes for ref in content.segments) / MIB,
        "live_mib": bot.committer.live_bytes() / MIB,
        "history_mib": sum(size for key, size in stored.items() if key not in listed) / MIB,
    }


def files(base: Path, *, most: int, pictures: bool) -> list[Figure]:
    """A tree that grows tenfold at a time."""
    root, home = base / "tree", base / "home"
    root.mkdir()
    home.mkdir()
    counts = [n for n in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if n <= most]
    rows: list[dict[str, float]] = []
    made = 0
    root_fd, home_fd = os.open(root, os.O_RDONLY), os.open(home, os.O_RDONLY)
    index = statehash.Index()
    index.save(home_fd, "index")
    for count in counts:
        while made < count:
            folder = root / f"{made // 1000}"
            folder.mkdir()
            for number in range(1000):
                (folder / f"{number}").write_bytes(b"%d" % (made + number))
            made += 1000
        _commit(root_fd, index)
        time.sleep(0.05)
        _commit(root_fd, index)
        index.save(home_fd, "index")
        rows.append({"files": count, **_measure(root, root_fd, home_fd)})
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    os.close(root_fd)
    os.close(home_fd)
    if pictures:
        draw(
            DOCS / "growth-files.svg",
            "A tick, loading the index, and one commit, by the number of files",
            {
                name: [(r["files"], r[key]) for r in rows]
                for name, key in (
                    ("tick", "tick_ms"),
                    ("all is new", "walk_ms"),
                    ("index loaded", "load_ms"),
                    ("commit", "commit_ms"),
                )
            },
            x=Axis(label="files", log=True),
            y=Axis(label="ms", log=True),
        )
        draw(
            DOCS / "growth-index.svg",
            "The index by the number of files",
            {"index": [(r["files"], r["index_bytes"] / MIB) for r in rows]},
            x=Axis(label="files", log=True),
            y=Axis(label="MiB", log=True),
        )
    first, last = rows[len(rows) // 2], rows[-1]
    scale = last["files"] / first["files"]
    return [
        Figure(name=f"{what}, {int(last['files'])} files", unit=unit, runs=[last[key]], notes={"rows": rows})
        for what, unit, key in (
            ("tick", "ms", "tick_ms"),
            ("all is new", "ms", "walk_ms"),
            ("index loaded", "ms", "load_ms"),
            ("commit beyond the tick", "ms", "commit_ms"),
            ("index", "bytes", "index_bytes"),
        )
    ] + [
        Figure(
            name=f"{what}: times that of {int(first['files'])} files, by file",
            unit="x",
            runs=[last[key] / first[key] / scale],
            target=1.5,
        )
        for what, key in (("tick", "tick_ms"), ("index loaded", "load_ms"), ("index", "index_bytes"))
    ]


def _commit(root_fd: int, index: statehash.Index, scan: statehash.Scan | None = None) -> None:
    pack = statehash.Pack(root_fd, index, statehash.scan(root_fd, index) if scan is None else scan)
    keys: list[str] = []
    while pack.next() is not None:
        keys.append(f"{time.monotonic_ns()}")
    index.stage(pack, keys, b"m" * 4096)
    index.confirm(b"m" * 4096)


def _measure(root: Path, root_fd: int, home_fd: int) -> dict[str, float]:
    def timed(work: Any, runs: int = 5) -> float:
        taken = []
        for _ in range(runs):
            gc.collect()
            begun = time.perf_counter()
            work()
            taken.append((time.perf_counter() - begun) * 1e3)
        return statistics.median(taken)

    opened = statehash.Index.open(home_fd, "index")
    nothing = statehash.Index()

    def commit() -> float:
        """Milliseconds from the end of the scan on, one small file changed."""
        (root / "0/1").write_bytes(b"%d" % time.monotonic_ns())
        scan = statehash.scan(root_fd, opened)
        begun = time.perf_counter()
        _commit(root_fd, opened, scan)
        opened.segments()
        return (time.perf_counter() - begun) * 1e3

    tick_ms = timed(lambda: statehash.scan(root_fd, opened))
    return {
        "tick_ms": tick_ms,
        # Against an empty index all is new: the walk, and a list of it.
        "walk_ms": timed(lambda: statehash.scan(root_fd, nothing)),
        "load_ms": timed(lambda: statehash.Index.open(home_fd, "index")),
        "commit_ms": statistics.median(commit() for _ in range(9)),
        "index_bytes": float(os.stat("index", dir_fd=home_fd).st_size),
    }


def run(*, parts: tuple[str, ...] = ("commits", "files"), count: int, mib: int, most: int, pictures: bool) -> bool:
    good = True
    for part in parts:
        base = Path(tempfile.mkdtemp(prefix="growth-", dir=place.base()))
        try:
            if part == "commits":
                figures = commits(base, count=count, mib=mib, pictures=pictures)
                show(f"{count} small commits over {mib} MiB (bounds: {Bounds()})", figures)
            else:
                figures = files(base, most=most, pictures=pictures)
                show(f"up to {most} files", figures)
        finally:
            place.clean()
        keep(f"growth-{part}", figures)
        good &= all(figure.verdict != "MISSED" for figure in figures)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures growth and draws it into docs/.")
    parser.add_argument("parts", nargs="*", choices=["commits", "files", []], default=["commits", "files"])
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--no-pictures", action="store_true")
    told = parser.parse_args()
    good = run(
        parts=tuple(told.parts), count=told.commits, mib=told.mib, most=told.files, pictures=not told.no_pictures
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
