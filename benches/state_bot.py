"""A bot whose state is measured, and what one piece of work on it keeps in memory: `state_bot.py tick|pack|restore TREE BOT_ID`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counting import Counting
from the0 import names, statehash
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.store import ObjectStore
from the0.settings import Buckets, Limits, Paths, Policies, SyncSettings
from the0.sync.commit import Committer
from the0.sync.head import HeadFile
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore
from the0.sync.start import start

BUCKETS = Buckets(code="bench-code", state="bench-state", logs="bench-logs")


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

    def take(self, folder: Path) -> None:
        """Moves what is in that folder into the state folder, which stays the bot's own."""
        for child in folder.iterdir():
            if child.name != names.RESERVED_DIR:
                child.rename(self.tree / child.name)

    @contextlib.contextmanager
    def committing(self) -> Iterator[Committer]:
        with StateFolder(self.settings.paths.state) as folder:
            index = folder.open_index()
            stored = HeadFile(self.store, bucket=BUCKETS.state, bot_id=self.settings.bot_id).read()  # type: ignore[arg-type]
            assert index is not None
            assert stored is not None
            yield Committer.of(self.settings, self.store, folder=folder, index=index, stored=stored)  # type: ignore[arg-type]


def peak(what: str, tree: Path, bot_id: str) -> float:
    """MiB at most resident in this process after the work."""
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


if __name__ == "__main__":
    print(peak(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
