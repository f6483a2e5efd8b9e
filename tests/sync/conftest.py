"""A world with a folder store; no server is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World

from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.settings import Buckets


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    buckets = Buckets()
    (tmp_path / "store").mkdir()
    store = open_store(StoreSettings(folder=str(tmp_path / "store")), deadline_s=5.0)
    for bucket in (buckets.code, buckets.state, buckets.logs, buckets.query_results):
        store.ensure_bucket(bucket)
    yield World(store=store, buckets=buckets, base=tmp_path)
    store.close()
