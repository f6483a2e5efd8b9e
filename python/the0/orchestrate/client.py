"""What a person's command works with: the platform's data folder, its bots, its objects, and its `up`, where one runs."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Final

from the0 import names
from the0.errors import ExitCode, Fatal, clip
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.retry import Retrying
from the0.orchestrate import control_client, data
from the0.orchestrate.bots import Document
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.control_client import Control
from the0.settings import Buckets

DEADLINE_S = 15.0
STARTING_S: Final = 2.0
NOT_RUNNING: Final = "The platform is not running: `runtime up` starts it."


class Client:
    """One command's, in one thread."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Raises Fatal where there is no platform (and none is to be made), or where it cannot be read."""
        self.place = data.open_data(path, create=create)
        if not create:
            _wait_for_bots(self.place)
        self.bots = SqliteBots(self.place.bots_db, create=create)
        self.buckets = Buckets()
        self._store: Retrying | None = None

    @property
    def store(self) -> Retrying:
        if self._store is None:
            self._store = open_store(StoreSettings(folder=self.place.objects), deadline_s=DEADLINE_S)
        return self._store

    def control(self) -> Control | None:
        """The running `up`; None where none runs."""
        return control_client.connect(self.place)

    def needed_control(self, doing: str) -> Control:
        """Raises Fatal where no `up` runs; `doing` begins the sentence."""
        found = self.control()
        if found is None:
            raise Fatal(
                f"{doing} needs the platform in {clip(self.place.path)} to be running: start it with `runtime up`.",
                code=ExitCode.USAGE,
            )
        return found

    def bot(self, bot_id: str) -> Document:
        """Raises Fatal (USAGE) where there is none."""
        found = self.bots.get(bot_id)
        if found is None:
            raise Fatal(
                f"There is no bot {clip(bot_id)} in {clip(self.place.path)}: `runtime ps` lists them.",
                code=ExitCode.USAGE,
            )
        return found

    def known(self, bot_id: str) -> None:
        """Raises Fatal (USAGE) where there is no such bot and nothing was kept of a former one."""
        for bucket, prefix in (
            (self.buckets.state, names.state_prefix(bot_id)),
            (self.buckets.logs, names.logs_prefix(bot_id)),
        ):
            if next(self.store.list(bucket, prefix), None) is not None:
                return
        self.bot(bot_id)

    def all(self) -> list[Document]:
        """By id."""
        return sorted((*self.bots.list("realtime"), *self.bots.list("scheduled")), key=lambda each: each.id)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bots.close()
        if self._store is not None:
            self._store.close()


def _wait_for_bots(place: data.Data) -> None:
    """An `up` that has just begun may not have made their file yet. Raises Fatal where it runs without one."""
    deadline = time.monotonic() + STARTING_S
    while not os.path.exists(place.bots_db) and data.is_held(place):
        if time.monotonic() > deadline:
            raise Fatal(
                f"The SQLite file {place.bots_db} is gone while the platform runs: restore it from a copy, or deploy the bots "
                "again.",
                code=ExitCode.STATE_DAMAGED,
            )
        time.sleep(0.02)
