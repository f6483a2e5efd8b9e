"""State on large trees, beside plain work of the system and two rivals in the same run: `state.py [SHAPE…] [--runs N] [--no-rivals]`.

S is a plain walk (`statx` of every entry, one thread), R a plain read of every byte. "Local" is the whole time less what was spent
waiting for the store. Each measurement takes turns with what it is held against. All on MinIO, caches warm.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ is None and str(Path(__file__).resolve().parent.parent / "tests") not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import rivals
from counting import Counting
from report import ROOT, Figure, keep, show, wait_for_quiet
from rig.minio_server import Running, minio
from the0 import statehash
from the0.objects.open import open_store
from the0.objects.store import ObjectStore
from the0.settings import Buckets, Limits, Paths, Policies, SyncSettings
from the0.sync.commit import Committer
from the0.sync.head import HeadFile
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore
from the0.sync.start import start
from trees import SHAPES, Plain, Shape, change_page, make
from wake import wakes

BUCKETS = Buckets(code="bench-code", state="bench-state", logs="bench-logs")
PLAIN_BUCKET = "bench-plain"
PEAK = "print(int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1]) / 1024)"
"""What a bare interpreter has had resident at most, in MiB."""


class Bot:
    """One bot's state folder on one store."""

    def __init__(self, bot_id: str, base: Path, store: ObjectStore, settings: Any) -> None:
        self.store = Counting(store)
        self.root = base / bot_id
        self.settings = SyncSettings(
            bot_id=bot_id,
            store=settings,
            buckets=BUCKETS,
            limits=Limits(),
            policies=Policies(),
            paths=Paths(
                code=str(self.root / "code"),
                state=str(self.root / "state"),
                logs=str(self.root / "logs"),
                sdk_state=str(self.root / "state" / ".the0-state"),
                run=str(self.root / "run"),
            ),
        )

    @property
    def tree(self) -> Path:
        return Path(self.settings.paths.state)

    def claim(self) -> None:
        self.tree.mkdir(parents=True, exist_ok=True)
        start(self.settings, self.store, instance="bench")  # type: ignore[arg-type]

    @contextlib.contextmanager
    def committing(self) -> Iterator[Committer]:
        with StateFolder(self.settings.paths.state) as folder:
            index = folder.open_index()
            stored = HeadFile(self.store, bucket=BUCKETS.state, bot_id=self.settings.bot_id).read()  # type: ignore[arg-type]
            assert index is not None
            assert stored is not None
            yield Committer.of(self.settings, self.store, folder=folder, index=index, stored=stored)  # type: ignore[arg-type]


def ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def turns(runs: int, *works: Callable[[], float]) -> list[list[float]]:
    """Each work returns its milliseconds; they take turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, took in zip(works, times, strict=True):
            took.append(work())
    return times


class Bench:
    def __init__(self, running: Running, base: Path, *, runs: int, with_rivals: bool) -> None:
        self.figures: list[Figure] = []
        self._running = running
        self._base = base
        self._runs = runs
        self._with_rivals = with_rivals
        self._plain = Plain()
        self._store = open_store(running.settings, deadline_s=60.0)
        for bucket in (BUCKETS.code, BUCKETS.state, BUCKETS.logs, PLAIN_BUCKET):
            self._store.ensure_bucket(bucket)

    def close(self) -> None:
        self._plain.close()
        self._store.close()

    def measure(self, shape: Shape) -> None:
        wait_for_quiet()
        bot = Bot(f"tree-{shape.name}", self._base, self._store, self._running.settings)
        bot.claim()
        source = self._base / f"source-{shape.name}"
        make(shape, source)
        for child in source.iterdir():
            child.rename(bot.tree / child.name)
        source.rmdir()
        os.sync()
        self._plain.read_ms(bot.tree)
        with bot.committing() as committer:
            self._first_upload(shape, bot, committer)
            time.sleep(0.05)  # older than the clock's granularity, as any tree at rest
            committer.commit(committer.scan())
            self._ticks(shape, bot, committer)
            self._small_change(shape, bot, committer)
            if shape.large_bytes:
                self._page(shape, bot, committer)
            self._wakes(shape, bot, committer)
        if shape.name in "bcd":
            self._restores(shape, bot)
        self._memory(shape, bot)
        if self._with_rivals:
            self._rivals(shape, bot)
        shutil.rmtree(bot.root)

    def _add(
        self, shape: Shape, name: str, unit: str, runs: Sequence[float], target: float | None = None, **notes: Any
    ) -> None:
        self.figures.append(
            Figure(name=f"{shape.name}: {name}", unit=unit, runs=list(runs), target=target, notes=notes)
        )

    def _first_upload(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        pack = min(self._plain.pack_ms(bot.tree) for _ in range(3))
        bot.store.reset()
        took = ms(lambda: committer.commit(committer.scan()))
        content = committer.content
        segments = [self._store.get(BUCKETS.state, ref.key, limit_bytes=ref.bytes).data for ref in content.segments]

        def put() -> None:
            for number, data in enumerate(segments):
                self._store.put(PLAIN_BUCKET, f"{shape.name}/{number}", data)

        puts = min(ms(put) for _ in range(3))
        if shape.name in "bcd":
            bound = 1.3 * max(pack, puts)
            told = {"pack_ms": pack, "puts_ms": puts, "bytes": sum(map(len, segments))}
            self._add(shape, "first upload (1.3 x the slower of packing and PUTs)", "ms", [took], bound, **told)

    def _ticks(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        index = committer.index
        with StateFolder(bot.settings.paths.state) as folder:

            def tick(threads: int) -> float:
                took = ms(lambda: statehash.scan(folder.root_fd, index, threads=threads))
                assert not statehash.scan(folder.root_fd, index)
                return took

            def opened() -> float:
                return ms(lambda: statehash.scan(folder.root_fd, folder.open_index() or index))

            def hashed() -> float:
                return ms(lambda: statehash.differences(folder.root_fd, index))

            runs = self._runs if shape.name != "d" else 3
            walk, one, anew, two = turns(
                self._runs, lambda: self._plain.walk_ms(bot.tree), lambda: tick(1), opened, lambda: tick(2)
            )
            (everything,) = turns(min(3, runs), hashed)
        s = statistics.median(walk)
        bound = max(1.15 * s, s + 1)
        self._add(shape, "plain walk S", "ms", walk)
        self._add(shape, "tick, nothing changed, 1 thread", "ms", one, bound)
        self._add(shape, "the same, index opened anew", "ms", anew, bound)
        self._add(shape, "the same, 2 threads", "ms", two, 0.75 * s if shape.name in "bc" else None)
        self._add(shape, "everything hashed each tick, 2 threads", "ms", everything)
        bot.store.reset()
        assert not committer.due(committer.scan())
        self._add(shape, "requests of a tick without change", "", [len(bot.store.requests)], 0)

    def _small_change(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        local, sent, puts, ticks = [], [], [], []
        for number in range(self._runs):
            (bot.tree / "changing").write_bytes(f"content {number}".encode())
            time.sleep(0.02)
            ticks.append(ms(committer.scan))
            bot.store.reset()
            took = ms(lambda: committer.commit(committer.scan()))
            local.append(took - bot.store.waited_ms)
            sent.append(bot.store.sent_bytes / 1024)
            puts.append(sum(name.startswith("put") for name in bot.store.requests))
        more = {"b": 2.0, "c": 15.0}.get(shape.name)
        bound = statistics.median(ticks) + more if more is not None else None
        self._add(shape, "one small file changed, local work", "ms", local, bound)
        self._add(shape, "the same, sent", "KiB", sent, 16)
        self._add(shape, "the same, PUTs", "", puts, 2)

    def _wakes(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        def change(number: int) -> None:
            (bot.tree / "changing").write_bytes(f"woken {number}".encode())

        with StateFolder(bot.settings.paths.state) as folder:
            found = wakes(bot.settings, bot.store, folder, committer, runs=self._runs, change=change)
        self._add(shape, "woken by inotify, one file changed, local work", "ms", [wake.local_ms for wake in found], 5)
        self._add(shape, "the same, waiting for the store", "ms", [wake.store_ms for wake in found])
        self._add(shape, "the same, CPU with the wait for quiet", "ms", [wake.cpu_ms for wake in found])

    def _page(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        local, sent, read = [], [], []
        for number in range(3):
            read.append(self._plain.read_ms(bot.tree))
            change_page(bot.tree, number)
            bot.store.reset()
            took = ms(lambda: committer.commit(committer.scan()))
            local.append(took - bot.store.waited_ms)
            sent.append(bot.store.sent_bytes / 1024)
        self._add(shape, "plain read R", "ms", read)
        self._add(shape, "one page changed, local work (2.5 R)", "ms", local, 2.5 * statistics.median(read))
        self._add(shape, "the same, sent", "KiB", sent, 128)

    def _restores(self, shape: Shape, bot: Bot) -> None:
        stored = HeadFile(self._store, bucket=BUCKETS.state, bot_id=bot.settings.bot_id).read()
        assert stored is not None
        content = stored.head.content
        local = open_store(replace(self._running.settings, folder=str(self._base / "folder-store")), deadline_s=60.0)
        local.ensure_bucket(BUCKETS.state)
        for ref in content.segments:
            data = self._store.get(BUCKETS.state, ref.key, limit_bytes=ref.bytes).data
            local.put(BUCKETS.state, ref.key, data)

        def back(store: ObjectStore) -> float:
            dest = self._base / "restored"
            dest.mkdir()
            os.sync()
            with StateFolder(str(dest)) as folder:
                took = ms(
                    lambda: (
                        restore(
                            folder,
                            content,
                            store=store,
                            bucket=BUCKETS.state,
                            bot_id=bot.settings.bot_id,
                            origin=Origin(),
                            max_bytes=1 << 40,
                            stop=threading.Event(),
                        ),
                        subprocess.run(["sync", "-f", dest], check=True),
                    )
                )
            shutil.rmtree(dest)
            return took

        def copy() -> float:
            dest = self._base / "copied"
            os.sync()
            took = ms(
                lambda: (
                    subprocess.run(["cp", "-a", bot.tree, dest], check=True),
                    subprocess.run(["sync", "-f", dest], check=True),
                )
            )
            shutil.rmtree(dest)
            return took

        def gets() -> float:
            return ms(lambda: [self._store.get(BUCKETS.state, r.key, limit_bytes=r.bytes) for r in content.segments])

        runs = 3 if shape.name == "d" else 5
        copied, from_folder, got, from_minio = turns(runs, copy, lambda: back(local), gets, lambda: back(self._store))
        cp = statistics.median(copied)
        self._add(shape, "cp -a and syncfs", "ms", copied)
        times = 2.5 if shape.name == "d" else 2.0
        self._add(shape, f"restore from a folder ({times:g} x cp -a)", "ms", from_folder, times * cp)
        bound = 1.25 * (statistics.median(got) + cp)
        self._add(shape, "restore from MinIO (1.25 x (GETs + cp -a))", "ms", from_minio, bound, gets_ms=got)
        local.close()
        shutil.rmtree(self._base / "folder-store")

    def _memory(self, shape: Shape, bot: Bot) -> None:
        def peak(what: str) -> float:
            told = subprocess.run(
                [sys.executable, __file__, "--peak", what, str(bot.tree), bot.settings.bot_id],
                env={**os.environ, **self._running.environ},
                capture_output=True,
                text=True,
                check=True,
            )
            return float(told.stdout)

        alone = subprocess.run([sys.executable, "-I", "-c", PEAK], capture_output=True, text=True, check=True)
        bare = float(alone.stdout)
        if shape.name == "c":
            self._add(shape, "memory of a tick above the interpreter", "MiB", [peak("tick") - bare], 40)
        self._add(shape, "memory of packing all, above the interpreter", "MiB", [peak("pack") - bare], 128)
        self._add(shape, "memory of a restore, above the interpreter", "MiB", [peak("restore") - bare], 128)

    def _rivals(self, shape: Shape, bot: Bot) -> None:
        for number, rival in enumerate(rivals.ALL):
            if not rival.there():
                print(f"{rival.name} is not installed: left out.", file=sys.stderr)
                continue
            one = rival(self._running, self._base, bot.tree)
            self._add(shape, f"{rival.name}: first", "ms", [ms(one.save)])
            times = [ms(one.save) for _ in range(3)]
            self._add(shape, f"{rival.name}: nothing changed", "ms", times)
            requests, sent = one.counted()
            self._add(shape, f"{rival.name}: nothing changed, requests", "", [requests], sent_kib=sent / 1024)
            (bot.tree / "changing").write_bytes(os.urandom(9))
            requests, sent = one.counted()
            self._add(shape, f"{rival.name}: one small file changed, sent", "KiB", [sent / 1024], requests=requests)
            if shape.large_bytes:
                # Another content for each: one that was there before is found to be the same and not sent.
                change_page(bot.tree, 99 + number)
                _, sent = one.counted()
                self._add(shape, f"{rival.name}: one page changed, sent", "KiB", [sent / 1024])
            one.remove()


def peak(what: str, tree: Path, bot_id: str) -> float:
    """MiB at most resident in this process after the work."""
    from the0.objects.credentials import StoreSettings

    environ = os.environ
    settings = StoreSettings(
        endpoint=environ["MINIO_ENDPOINT"],
        access_key=environ["MINIO_ACCESS_KEY"],
        secret_key=environ["MINIO_SECRET_KEY"],
        use_ssl=environ["MINIO_USE_SSL"] == "true",
        region=environ["MINIO_REGION"],
    )
    with StateFolder(str(tree)) as folder:
        index = folder.open_index()
        assert index is not None
        if what == "tick":
            statehash.scan(folder.root_fd, index)
        elif what == "pack":
            empty = statehash.Index()
            pack = statehash.Pack(folder.root_fd, empty, statehash.scan(folder.root_fd, empty))
            while (segment := pack.next()) is not None:
                del segment
        else:
            store = open_store(settings, deadline_s=60.0)
            stored = HeadFile(store, bucket=BUCKETS.state, bot_id=bot_id).read()
            assert stored is not None
            with tempfile.TemporaryDirectory(dir=tree.parent) as dest, StateFolder(dest) as there:
                restore(
                    there,
                    stored.head.content,
                    store=store,
                    bucket=BUCKETS.state,
                    bot_id=bot_id,
                    origin=Origin(),
                    max_bytes=1 << 40,
                    stop=threading.Event(),
                )
    hwm = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(hwm.split()[1]) / 1024


def run(*, runs: int, shapes: Sequence[str] = tuple(SHAPES), with_rivals: bool = True) -> bool:
    cache = ROOT / ".cache"
    with minio() as running, tempfile.TemporaryDirectory(dir=cache, prefix="bench-") as base:
        bench = Bench(running, Path(base), runs=runs, with_rivals=with_rivals)
        try:
            for name in shapes:
                print(f"{name}: {SHAPES[name].told}", file=sys.stderr)
                bench.measure(SHAPES[name])
        finally:
            bench.close()
    show("State on large trees", bench.figures)
    print(keep("state", bench.figures))
    return all(figure.verdict != "MISSED" for figure in bench.figures)


def main() -> int:
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--no-rivals", action="store_true")
    arguments = parser.parse_args()
    good = run(runs=arguments.runs, shapes=arguments.shapes or tuple(SHAPES), with_rivals=not arguments.no_rivals)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
