"""State on large trees, beside plain work of the system and two rivals in the same run: `state.py [SHAPE…] [--runs N] [--no-rivals]`.

S is a plain walk (`statx` of every entry, one thread), R a plain read of every byte. "Local" is the whole time less what was spent
waiting for the store. Each measurement takes turns with what it is held against. All on MinIO, caches warm. Trees that were
measured stay until the end, see README.md, "The disk"; so this takes 20 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ is None and str(Path(__file__).resolve().parent.parent / "tests") not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import rivals
from place import base, clean, spread
from report import Figure, keep, show, step, tally, wait_for_quiet
from rig.minio_server import Running, minio
from rig.server import cache
from state_bot import BUCKETS, Bot
from the0 import statehash
from the0.objects.open import open_store
from the0.objects.store import ObjectStore
from the0.sync.commit import Committer
from the0.sync.head import HeadFile
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore
from trees import SHAPES, Plain, Shape, change_page, make
from wake import wakes

PEAK = "print(int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1]) / 1024)"
"""What a bare interpreter has had resident at most, in MiB."""
PLAIN_BUCKET = "bench-plain"
RIVALS_UNTIL_S = 780
"""What the rivals have not done so long after the bench began is left out, and named."""


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
    def __init__(self, running: Running, base: Path, *, runs: int) -> None:
        self.figures: list[Figure] = []
        self.left_out: list[str] = []
        self._trees: list[tuple[Shape, Bot]] = []
        self._running = running
        self._base = base
        self._runs = runs
        self._plain = Plain()
        self._store = open_store(running.settings, deadline_s=60.0)
        for bucket in (BUCKETS.code, BUCKETS.state, BUCKETS.logs, PLAIN_BUCKET):
            self._store.ensure_bucket(bucket)

    def close(self) -> None:
        self._plain.close()
        self._store.close()

    def measure(self, shape: Shape) -> None:
        wait_for_quiet()
        tree = self._base / f"source-{shape.name}"
        with step(f"{shape.name}: {shape.told}"):
            make(shape, tree)
            os.sync()
            self._plain.read_ms(tree)
        with step(f"{shape.name}: first upload"):
            bot = self._first_uploads(shape, tree)
        with bot.committing() as committer:
            time.sleep(0.05)  # older than the clock's granularity, as any tree at rest
            committer.commit(committer.scan())
            with step(f"{shape.name}: ticks"):
                self._ticks(shape, bot, committer)
            with step(f"{shape.name}: small changes"):
                self._small_change(shape, bot, committer)
                if shape.large_bytes:
                    self._page(shape, bot, committer)
                self._wakes(shape, bot, committer)
        if shape.name in "bcd":
            with step(f"{shape.name}: restores"):
                self._restores(shape, bot)
        with step(f"{shape.name}: memory"):
            self._memory(shape, bot)
        self._trees.append((shape, bot))

    def measure_rivals(self, *, until_s: float) -> None:
        """On all trees that were measured, the one of most files last. By that monotonic time it is over: what is not done then is
        named in `left_out`."""
        for shape, bot in sorted(self._trees, key=lambda tree: tree[0].files):
            self._rivals(shape, bot, until_s)

    def _add(
        self, shape: Shape, name: str, unit: str, runs: Sequence[float], target: float | None = None, **notes: Any
    ) -> None:
        self.figures.append(
            Figure(name=f"{shape.name}: {name}", unit=unit, runs=list(runs), target=target, notes=notes)
        )

    def _first_uploads(self, shape: Shape, tree: Path) -> Bot:
        """Uploads the tree as the first state of one bot after the other, to whose state folders it moves. Returns the last."""
        bots: list[Bot] = []
        sizes: list[int] = []

        def pack() -> float:
            return self._plain.pack_ms(bots[-1].tree if bots else tree)

        def upload() -> float:
            bot = Bot(f"tree-{shape.name}-{len(bots)}", self._base, self._store, self._running.settings)
            bot.claim()
            bot.take(bots[-1].tree if bots else tree)
            bots.append(bot)
            os.sync()
            with bot.committing() as committer:
                return ms(lambda: committer.commit(committer.scan()))

        def puts() -> float:
            with bots[-1].committing() as committer:
                refs = committer.content.segments
            segments = [self._store.get(BUCKETS.state, ref.key, limit_bytes=ref.bytes).data for ref in refs]
            sizes.append(sum(map(len, segments)))
            return ms(
                lambda: [
                    self._store.put(PLAIN_BUCKET, f"{shape.name}/{len(bots)}/{number}", data)
                    for number, data in enumerate(segments)
                ]
            )

        packed, took, put = turns(3 if shape.name in "bcd" else 1, pack, upload, puts)
        bound = 1.3 * max(statistics.median(packed), statistics.median(put)) if shape.name in "bcd" else None
        told = {"bytes": sizes[-1]}
        self._add(shape, "read, BLAKE3, zstd on 2 threads, no store", "ms", packed)
        self._add(shape, "PUTs of the same bytes", "ms", put)
        self._add(shape, "first upload (1.3 x the slower of both)", "ms", took, bound, **told)
        return bots[-1]

    def _ticks(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        index = committer.index
        with StateFolder(bot.settings.paths.state) as folder:

            def tick(threads: int) -> float:
                found: list[statehash.Scan] = []
                took = ms(lambda: found.append(statehash.scan(folder.root_fd, index, threads=threads)))
                assert not found[0]
                return took

            def opened() -> float:
                return ms(lambda: statehash.scan(folder.root_fd, folder.open_index() or index))

            def hashed() -> float:
                return ms(lambda: statehash.differences(folder.root_fd, index))

            walk, one, anew, two = turns(
                self._runs, lambda: self._plain.walk_ms(bot.tree), lambda: tick(1), opened, lambda: tick(2)
            )
            (everything,) = turns(min(3, self._runs), hashed)
        s = statistics.median(walk)
        bound = max(1.15 * s, s + 1)
        self._add(shape, "plain walk S", "ms", walk)
        self._add(shape, "tick, nothing changed, 1 thread (1.15 S or S + 1)", "ms", one, bound)
        self._add(shape, "the same, index opened anew", "ms", anew, bound)
        self._add(shape, "the same, 2 threads (0.75 S)", "ms", two, 0.75 * s if shape.name in "bc" else None)
        self._add(shape, "everything hashed each tick, 2 threads", "ms", everything)
        bot.store.reset()
        assert not committer.due(committer.scan())
        self._add(shape, "requests of a tick without change", "", [len(bot.store.requests)], 0)

    def _small_change(self, shape: Shape, bot: Bot, committer: Committer) -> None:
        local, sent, puts, ticks = [], [], [], []
        for number in range(self._runs):
            content = f"content {number}".encode()
            (bot.tree / "changing").write_bytes(content)
            time.sleep(0.02)
            ticks.append(ms(committer.scan))
            bot.store.reset()
            took = ms(lambda: committer.commit(committer.scan()))
            local.append(took - bot.store.waited_ms)
            sent.append((bot.store.sent_bytes - len(content)) / 1024)
            puts.append(sum(name.startswith("put") for name in bot.store.requests))
        more = {"b": 2.0, "c": 15.0}.get(shape.name)
        bound = statistics.median(ticks) + more if more is not None else None
        told = f" (tick + {more:g})" if more is not None else ""
        self._add(shape, f"one small file changed, full tick, local work{told}", "ms", local, bound, ticks_ms=ticks)
        self._add(shape, "the same, sent beyond the content", "KiB", sent, 16)
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
        for number in range(self._runs):
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
        folder_store = self._base / f"folder-store-{shape.name}"
        local = open_store(replace(self._running.settings, folder=str(folder_store)), deadline_s=60.0)
        local.ensure_bucket(BUCKETS.state)
        for ref in content.segments:
            data = self._store.get(BUCKETS.state, ref.key, limit_bytes=ref.bytes).data
            local.put(BUCKETS.state, ref.key, data)
        copies = self._base / f"copies-{shape.name}"
        copies.mkdir()
        names = iter(range(1000))

        def target() -> Path:
            for old in copies.iterdir():
                if shape.files < 1000:  # else creating the next ones would take the longer, see README.md, "The disk"
                    shutil.rmtree(old)
            os.sync()
            return copies / f"{next(names)}"

        def back(store: ObjectStore) -> float:
            dest = target()
            dest.mkdir()
            with StateFolder(str(dest)) as folder:
                return ms(
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

        def copy() -> float:
            dest = target()
            return ms(
                lambda: (
                    subprocess.run(["cp", "-a", bot.tree, dest], check=True),
                    subprocess.run(["sync", "-f", dest], check=True),
                )
            )

        def gets() -> float:
            return ms(lambda: [self._store.get(BUCKETS.state, r.key, limit_bytes=r.bytes) for r in content.segments])

        runs = 3 if shape.name in "cd" else 5
        copied, from_folder, got, from_minio = turns(runs, copy, lambda: back(local), gets, lambda: back(self._store))
        cp = statistics.median(copied)
        self._add(shape, "cp -a and syncfs", "ms", copied)
        times = 2.5 if shape.name == "d" else 2.0
        self._add(shape, f"restore from a folder ({times:g} x cp -a)", "ms", from_folder, times * cp)
        bound = 1.25 * (statistics.median(got) + cp)
        self._add(shape, "restore from MinIO (1.25 x (GETs + cp -a))", "ms", from_minio, bound, gets_ms=got)
        local.close()

    def _memory(self, shape: Shape, bot: Bot) -> None:
        def peak(what: str) -> float:
            program = Path(__file__).with_name("state_bot.py")
            told = subprocess.run(
                [sys.executable, program, what, str(bot.tree), bot.settings.bot_id],
                env={**os.environ, **self._running.environ},
                capture_output=True,
                text=True,
                check=True,
            )
            return float(told.stdout)

        alone = subprocess.run([sys.executable, "-I", "-c", PEAK], capture_output=True, text=True, check=True)
        bare = float(alone.stdout)
        self._add(
            shape,
            "memory of a tick above the interpreter",
            "MiB",
            [peak("tick") - bare],
            40 if shape.name == "c" else None,
        )
        self._add(shape, "memory of packing all, above the interpreter", "MiB", [peak("pack") - bare], 128)
        self._add(shape, "memory of a restore, above the interpreter", "MiB", [peak("restore") - bare], 128)

    def _rivals(self, shape: Shape, bot: Bot, until_s: float) -> None:
        def change() -> None:
            (bot.tree / "changing").write_bytes(os.urandom(9))

        for number, rival in enumerate(rivals.ALL):
            if not rival.there():
                if rival.missing not in self.left_out:
                    self.left_out.append(rival.missing)
                continue
            # Another content for each: one that was there before is found to be the same and not sent.
            page = partial(change_page, bot.tree, 9999 + number) if shape.large_bytes else None
            try:
                one = rival(self._running, self._base / f"{rival.name}-{shape.name}", bot.tree, until_s=until_s)
                for told, unit, runs, notes in rivals.measured(one, told=shape.name, change=change, page=page):
                    self._add(shape, f"{rival.name}: {told}", unit, runs, **notes)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as reason:
                late = isinstance(reason, subprocess.TimeoutExpired)
                why = f"not done {RIVALS_UNTIL_S} s after the bench began" if late else f"failed: {reason}"
                self.left_out.append(f"{shape.name}: {rival.name} {why}: what it lacks above is left out")


def run(*, runs: int, shapes: Sequence[str] = tuple(SHAPES), with_rivals: bool = True) -> bool:
    began_s = time.monotonic()
    servers = cache() / "run"
    servers.mkdir(exist_ok=True)
    spread(servers)
    try:
        with minio() as running:
            bench = Bench(running, base(), runs=runs)
            try:
                for name in shapes:
                    bench.measure(SHAPES[name])
                if with_rivals:
                    bench.measure_rivals(until_s=began_s + RIVALS_UNTIL_S)
            finally:
                bench.close()
            show("State on large trees", bench.figures)
            print(*bench.left_out, sep="\n")
            print(tally(bench.figures), f"Measuring took {time.monotonic() - began_s:.0f} s.")
            print(keep("state", bench.figures), flush=True)
    finally:
        with step("removing what was written"):
            clean()
    return all(figure.verdict != "MISSED" for figure in bench.figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--no-rivals", action="store_true")
    arguments = parser.parse_args()
    good = run(runs=arguments.runs, shapes=arguments.shapes or tuple(SHAPES), with_rivals=not arguments.no_rivals)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
