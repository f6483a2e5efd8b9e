"""A bot that numbers its work, on MinIO behind a proxy that keeps every HEAD that was sent; and the judge of what is left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bot_place import CODE_KEY, Ended, Place, Running, archive, eventually

from faults.disk import Disk
from rig.buckets import Buckets
from rig.fault_table import Row
from rig.minio_server import Running as MinIO
from rig.proxy import Proxy, Request
from the0 import names, settings
from the0.errors import Fault
from the0.objects.open import open_store
from the0.sync import commands
from the0.sync.head import Head, HeadFile, decode
from the0.sync.restore import restore_beside

SOAK = bool(os.environ.get("THE0_SOAK"))
RING = 20
SLOW_S = 120.0
"""For what takes a second or so on a machine that is not busy."""
WRITER = """
    import hashlib, os, time

    def write(path, number):
        text = f"{number} {time.time()}"
        with open(path + ".new", "w") as file:
            file.write(f"{text} {hashlib.sha256(text.encode()).hexdigest()}")
        os.rename(path + ".new", path)

    def main(bot_id, config):
        root = os.path.dirname(os.environ["STATE_DIR"])
        number = 0
        if os.path.exists(f"{root}/work"):
            with open(f"{root}/work") as file:
                number = int(file.read().split()[0])
        with open(config["ledger"], "a", buffering=1) as ledger:
            ledger.write(f"found {number}\\n")
            while True:
                number += 1
                try:
                    write(f"{root}/ring-{number % 20}", number)
                    write(f"{root}/work", number)
                    ledger.write(f"{number} {time.time()}\\n")
                except OSError:
                    number -= 1  # not done: once more
                time.sleep(0.05)
"""


@dataclass(frozen=True)
class Work:
    number: int
    at_s: float


def read_work(path: Path) -> Work:
    """Raises AssertionError where the file is not whole."""
    number, at_s, checksum = path.read_text().split()
    assert checksum == hashlib.sha256(f"{number} {at_s}".encode()).hexdigest(), f"{path} is torn"
    return Work(int(number), float(at_s))


@dataclass
class Field:
    minio: MinIO
    root: Path
    row: Row
    bot_id: str = "bot-1"
    hosts: int = 0
    places: list[Place] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = open_store(self.minio.settings, deadline_s=30)
        self.buckets = {name: Buckets().make(self.store, name) for name in ("code", "state", "logs", "results")}
        self.store.put(self.buckets["code"], CODE_KEY, archive({"main.py": WRITER}))
        self.proxy = Proxy(self.minio.settings.endpoint)
        head = f"/{self.buckets['state']}/{names.head_key(self.bot_id)}"
        self.proxy.keep = lambda request: request.method == "PUT" and request.path.split("?")[0] == head

    def close(self) -> None:
        for place in self.places:
            place.close()
        for disk in self.disks:
            disk.close()
        self.proxy.close()
        self.store.close()

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    def disk(self, *, journal: bool = True) -> Disk:
        """For the next host."""
        disk = Disk(self.root / f"host-{self.hosts + 1}", journal=journal)
        self.disks.append(disk)
        return disk

    def host(self) -> Place:
        """A machine with an empty disk. The former one is known to be gone."""
        self.hosts += 1
        root = self.root / f"host-{self.hosts}"
        root.mkdir(exist_ok=True)
        place = Place(root)
        place.env |= {
            **self.minio.environ,
            "OBJECT_STORE_DIR": None,
            "MINIO_ENDPOINT": self.proxy.endpoint,
            "MINIO_CODE_BUCKET": self.buckets["code"],
            "MINIO_STATE_BUCKET": self.buckets["state"],
            "MINIO_LOGS_BUCKET": self.buckets["logs"],
            "MINIO_QUERY_RESULTS_BUCKET": self.buckets["results"],
            "BOT_CONFIG": self.config(),
            "STOP_GRACE_S": "3",
        }
        self.places.append(place)
        self.known_ended(place)
        return place

    def known_ended(self, place: Place) -> None:
        """Whoever holds the claim is known to have ended, so that a start there need not wait."""
        head = self.head
        if head is not None:
            place.env["THE0_ENDED"] = head.claim.instance

    @property
    def head(self) -> Head | None:
        stored = HeadFile(self.store, bucket=self.buckets["state"], bot_id=self.bot_id).read()
        return stored.head if stored else None

    def config(self, **more: object) -> str:
        return json.dumps({"ledger": str(self.ledger), **more})

    @contextmanager
    def stored_nothing(self) -> Iterator[None]:
        """Meanwhile the store holds back each request."""
        free = threading.Event()

        def wait(_: Request) -> None:
            free.wait()

        self.proxy.fail(wait)
        try:
            yield
        finally:
            free.set()
            self.proxy.heal()

    @contextmanager
    def as_stored(self) -> Iterator[Path]:
        """What HEAD's generation restores to."""
        head = self.head_there()
        target = Path(tempfile.mkdtemp(dir=self.root)) / "restored"
        restore_beside(
            str(target),
            head.content,
            store=self.store,
            bucket=self.buckets["state"],
            bot_id=self.bot_id,
            max_bytes=1 << 30,
        )
        try:
            yield target
        finally:
            shutil.rmtree(target)

    def generation(self) -> int:
        head = self.head
        return head.content.generation if head else 0

    def head_there(self) -> Head:
        head = self.head
        assert head is not None, "state was stored, and there is no HEAD"
        return head

    def keys(self, *, bot_id: str) -> list[str]:
        """Of its segments."""
        return [info.key for info in self.store.list(self.buckets["state"], names.segments_prefix(bot_id))]

    def read(self, key: str) -> bytes:
        return self.store.get(self.buckets["state"], key, limit_bytes=1 << 27).data

    def write(self, key: str, data: bytes | None) -> None:
        """None removes it."""
        if data is None:
            self.store.delete(self.buckets["state"], key)
        else:
            self.store.put(self.buckets["state"], key, data)

    def verify(self) -> tuple[int, str]:
        """`runtime state verify`: its exit code and what it says."""
        asked = settings.read_sync({**self.places[-1].environment(), **self.minio.environ}, bot_id=self.bot_id)
        with redirect_stdout(io.StringIO()) as told:
            try:
                code = commands.check(asked, self.store)
            except Fault as reason:
                return int(reason.code), reason.sentence
        return code, told.getvalue()

    def until(self, done: Callable[[], bool]) -> None:
        eventually(done, "what was waited for", within_s=SLOW_S)

    def works(self, run: Running) -> None:
        """Until this run has worked, and a generation after that was stored."""
        told = self.ledger.read_text().count("found") if self.ledger.exists() else 0
        eventually(lambda: self.started() >= max(told, 1) or run.process.poll() is not None, "work", within_s=SLOW_S)
        assert run.process.poll() is None, run.end().err
        self.goes_on()

    def started(self) -> int:
        return self.ledger.read_text().count("found") if self.ledger.exists() else 0

    def goes_on(self) -> None:
        seen = self.generation()
        eventually(lambda: self.generation() > seen + 1, "two more generations", within_s=SLOW_S)

    def finished(self) -> Work:
        """The newest work that was."""
        lines = [line for line in self.ledger.read_text().splitlines() if not line.startswith("found")]
        number, at_s = lines[-1].split()
        return Work(int(number), float(at_s))

    def works_now(self) -> bool:
        """Whether a bot has done any work within the last half second."""
        return time.time() - self.finished().at_s < 0.5

    def done(self) -> int:
        return self.finished().number

    def found(self) -> int:
        return [int(line.split()[1]) for line in self.ledger.read_text().splitlines() if line.startswith("found")][-1]

    def kill_all(self, run: Running) -> None:
        """Supervisor, bot and sync at once. The disk stays."""
        pids = [run.process.pid, *run.children().values()]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.communicate()

    def loses_host(self, run: Running, place: Place) -> Work:
        """Everything is killed and the disk is gone: the judge, and what was lost."""
        self.kill_all(run)
        shutil.rmtree(place.state, ignore_errors=True)
        return self.lost()

    def lost(self) -> Work:
        """The judge, where what is stored is all that is left; the seconds of work between that and the newest finished."""
        work, finished = self.judge(), self.finished()
        self.row.judged(finished.at_s - work.at_s if work.number < finished.number else 0.0, tries=0)
        return work

    def starts_again(self, place: Place) -> Running:
        """On the disk that stayed; until the bot has found its work."""
        starts = self.started()
        run = place.start()
        eventually(lambda: self.started() > starts or run.process.poll() is not None, "another start", within_s=SLOW_S)
        assert run.process.poll() is None, run.end().err
        return run

    def finds_all(self, place: Place) -> Running:
        """The same; nothing was lost on that disk."""
        finished = self.finished()
        run = self.starts_again(place)
        # Killed between a work and its line in the ledger, at most.
        assert self.found() in (finished.number, finished.number + 1)
        self.row.judged(0.0, tries=0)
        return run

    def stops(self, run: Running) -> None:
        """A clean stop: all work is stored then."""
        run.send(signal.SIGTERM)
        ended = run.end(within_s=SLOW_S)
        assert self.lost().number >= self.done(), ended.err

    def told(self, text: str) -> None:
        """Until the stored log says so."""

        def said() -> bool:
            bucket = self.buckets["logs"]
            keys = [info.key for info in self.store.list(bucket, f"logs/{self.bot_id}/")]
            return any(text in self.store.get(bucket, key, limit_bytes=1 << 24).data.decode() for key in keys)

        eventually(said, f"{text!r} in the stored log", within_s=SLOW_S)

    def is_refused(self, place: Place, *codes: int) -> Ended:
        """A start that ends with one of our codes, before the bot is started."""
        starts = self.started()
        ended = place.start().end(within_s=SLOW_S)
        assert ended.code in codes, (ended.code, ended.err)
        assert self.started() == starts, "the bot must not start"
        return ended

    def judge(self) -> Work:
        """What is stored is a generation whose HEAD was sent, none older than the last one reported, whole, and of one instant."""
        head = self.head_there()
        sent = [(kept.status, decode(kept.body, bot_id=self.bot_id)) for kept in list(self.proxy.sent)]
        assert head.content.digest() in {one.content.digest() for _, one in sent}, "a generation that nobody sent"
        reported = [one.content.generation for status, one in sent if status == 200]
        assert head.content.generation >= max(reported, default=0), "older than the last one reported"
        code, told = self.verify()
        assert code == 0, told
        with self.as_stored() as tree:
            work = read_work(tree / "work")
            for slot in range(RING if head.content.cut else 0):
                newest = work.number - (work.number - slot) % RING
                allowed = {newest, newest + RING} if newest + RING == work.number + 1 else {newest}
                if newest > 0:
                    assert read_work(tree / f"ring-{slot}").number in allowed, "not of one instant"
        self.row.judged()
        return work
