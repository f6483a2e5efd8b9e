from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync.logs.station import Station
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.store import ObjectStore


def _station(store: ObjectStore, base: Path, bucket: str) -> Iterator[Station]:
    made = Station(store=store, bucket=bucket, base=base)
    yield made
    made.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where fsync costs nothing, if the machine has one: it is not what these tests are about."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def station(memory: Path, buckets: Any) -> Iterator[Station]:
    """Over a folder store."""
    (memory / "objects").mkdir()
    store = open_store(StoreSettings(folder=str(memory / "objects")), deadline_s=5)
    yield from _station(store, memory, buckets.make(store))
    store.close()


@pytest.fixture(params=["folder", "minio"])
def any_station(request: pytest.FixtureRequest, tmp_path: Path, buckets: Any) -> Iterator[Station]:
    """Over each kind of store in turn."""
    if request.param == "folder":
        (tmp_path / "objects").mkdir()
        settings = StoreSettings(folder=str(tmp_path / "objects"))
    else:
        settings = request.getfixturevalue("minio_server").settings
    store = open_store(settings, deadline_s=5)
    yield from _station(store, tmp_path, buckets.make(store))
    store.close()
