"""Servers start only when a selected test asks for them, once a session, and stop with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.buckets import Buckets
from rig.minio_server import Running, minio
from rig.seaweed_server import seaweed
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.retry import Retrying


def pytest_configure(config: pytest.Config) -> None:
    # A terminated run ends as an interrupted one does: fixtures are torn down, servers stopped.
    del config
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def minio_server() -> Iterator[Running]:
    with minio() as running:
        yield running


@pytest.fixture(scope="session")
def seaweed_server() -> Iterator[Running]:
    with seaweed() as running:
        yield running


@pytest.fixture
def buckets() -> Buckets:
    return Buckets()


@pytest.fixture(params=["folder", "minio", "seaweed"])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    """Of each kind of store in turn."""
    if request.param == "folder":
        (tmp_path / "objects").mkdir()
        return StoreSettings(folder=str(tmp_path / "objects"))
    running: Any = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(running, Running)
    return running.settings


@pytest.fixture
def store(store_settings: StoreSettings) -> Iterator[Retrying]:
    opened = open_store(store_settings, deadline_s=10)
    yield opened
    opened.close()


@pytest.fixture
def bucket(store: Retrying, buckets: Buckets, request: pytest.FixtureRequest) -> str:
    """A new one; its name begins with the kind of store."""
    return buckets.make(store, request.node.callspec.params["store_settings"])
