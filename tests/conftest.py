"""Servers start only when a selected test asks for them, once a session, and stop with it. The table of faults ends a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.buckets import Buckets
from rig.fault_table import Row, Table, write_into
from rig.minio_server import Running, minio
from rig.seaweed_server import seaweed
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.retry import Retrying

FAULTS = pytest.StashKey[Table]()
FAULT_SEED = int(os.environ.get("FAULT_SEED") or int.from_bytes(os.urandom(4)))


def pytest_configure(config: pytest.Config) -> None:
    # A terminated run ends as an interrupted one does: fixtures are torn down, servers stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "fault(tried, survived): a row of the table of faults, counted by the fixture `fault`"
    )
    config.stash[FAULTS] = Table()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash[FAULTS]
    if not table.rows:
        return
    terminalreporter.section(f"faults (FAULT_SEED={FAULT_SEED})")
    for line in table.lines(width=max(terminalreporter._tw.fullwidth, 140)):
        terminalreporter.write_line(line)
    if target := os.environ.get("THE0_FAULT_TABLE"):
        write_into(Path(target), table.rows.values())


@pytest.fixture
def fault_seed() -> int:
    """What the instants of faults are drawn from; FAULT_SEED repeats a run's."""
    print(f"FAULT_SEED={FAULT_SEED}")
    return FAULT_SEED


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The row that this test is; it counts its tries there. In the table once the test has passed."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "a test that counts tries says of what: @pytest.mark.fault(tried, survived)"
    row = Row(*mark.args)
    failed = request.session.testsfailed
    yield row
    if request.session.testsfailed == failed:
        assert row.tries, "a row of which nothing was tried"
        request.config.stash[FAULTS].add(row)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fault") is not None and "fault" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(
                f"{item.nodeid} is a row of the table of faults, and does not count its tries (fixture `fault`)"
            )


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
