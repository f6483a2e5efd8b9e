"""A bot that numbers its work, on MinIO behind a proxy that keeps every HEAD that was sent; and the judge of what is left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from bot_place import CODE_KEY, Place, Running, archive, eventually

from rig.buckets import Buckets
from rig.fault_table import Row
from rig.minio_server import Running as MinIO
from rig.proxy import Proxy
from the0 import names, settings
from the0.objects.open import open_store
from the0.sync import commands
from the0.sync.head import Head, HeadFile, decode
from the0.sync.restore import restore_beside

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
                write(f"{root}/ring-{number % 20}", number)
                write(f"{root}/work", number)
                ledger.write(f"{number} {time.time()}\\n")
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
        self.proxy.close()
        self.store.close()

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    def host(self) -> Place:
        """A machine with an empty disk. The former one is known to be gone."""
        self.hosts += 1
        root = self.root / f"host-{self.hosts}"
        root.mkdir()
        place = Place(root)
        place.env |= {
            **self.minio.environ,
            "OBJECT_STORE_DIR": None,
            "MINIO_ENDPOINT": self.proxy.endpoint,
            "MINIO_CODE_BUCKET": self.buckets["code"],
            "MINIO_STATE_BUCKET": self.buckets["state"],
            "MINIO_LOGS_BUCKET": self.buckets["logs"],
            "MINIO_QUERY_RESULTS_BUCKET": self.buckets["results"],
            "BOT_CONFIG": json.dumps({"ledger": str(self.ledger)}),
            "STOP_GRACE_S": "3",
        }
        head = self.head
        if head is not None:
            place.env["THE0_ENDED"] = head.claim.instance
        self.places.append(place)
        return place

    @property
    def head(self) -> Head | None:
        stored = HeadFile(self.store, bucket=self.buckets["state"], bot_id=self.bot_id).read()
        return stored.head if stored else None

    def generation(self) -> int:
        head = self.head
        return head.content.generation if head else 0

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

    def done(self) -> int:
        """The newest work that was finished."""
        lines = [line for line in self.ledger.read_text().splitlines() if not line.startswith("found")]
        return int(lines[-1].split()[0])

    def found(self) -> int:
        return [int(line.split()[1]) for line in self.ledger.read_text().splitlines() if line.startswith("found")][-1]

    def lose_host(self, run: Running, place: Place) -> float:
        """Everything is killed and the disk is gone; when that was."""
        pids = [run.process.pid, *run.children().values()]
        at_s = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        run.process.communicate()
        shutil.rmtree(place.state, ignore_errors=True)
        return at_s

    def judge(self, at_s: float) -> Work:
        """What is stored is a generation whose HEAD was sent, none older than the last one reported, whole, and of one instant."""
        head = self.head
        assert head is not None, "state was stored, and there is no HEAD"
        sent = [(kept.status, decode(kept.body, bot_id=self.bot_id)) for kept in list(self.proxy.sent)]
        assert head.content.digest() in {one.content.digest() for _, one in sent}, "a generation that nobody sent"
        reported = [one.content.generation for status, one in sent if status == 200]
        assert head.content.generation >= max(reported, default=0), "older than the last one reported"
        with redirect_stdout(io.StringIO()) as told:
            asked = settings.read_sync({**self.places[-1].environment(), **self.minio.environ}, bot_id=self.bot_id)
            assert commands.check(asked, self.store) == 0, told.getvalue()
        target = Path(tempfile.mkdtemp(dir=self.root)) / "restored"
        restore_beside(
            str(target),
            head.content,
            store=self.store,
            bucket=self.buckets["state"],
            bot_id=self.bot_id,
            max_bytes=1 << 30,
        )
        work = read_work(target / "work")
        if head.content.cut:
            for slot in range(RING):
                newest = work.number - (work.number - slot) % RING
                allowed = {newest, newest + RING} if newest + RING == work.number + 1 else {newest}
                if newest > 0:
                    assert read_work(target / f"ring-{slot}").number in allowed, "not of one instant"
        shutil.rmtree(target)
        self.row.judged(max(0.0, at_s - work.at_s) if work.number < self.done() else 0.0)
        return work
