"""The table of faults at the end of a run, and MinIO of this suite's own, which it may kill."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.field import Field
from faults.table import Row, Table
from rig.minio_server import Running, minio

TABLE = pytest.StashKey[Table]()
SEED = int(os.environ.get("FAULT_SEED") or int.from_bytes(os.urandom(4)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(tried, survived): a row of the table of faults")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, None)
    if table is not None and table.rows:
        terminalreporter.section(f"faults (FAULT_SEED={SEED})")
        for line in table.lines(width=max(terminalreporter._tw.fullwidth, 140)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def own_minio() -> Iterator[Running]:
    with minio() as running:
        yield running


@pytest.fixture
def luck(request: pytest.FixtureRequest) -> random.Random:
    print(f"FAULT_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def bot(request: pytest.FixtureRequest, own_minio: Running, tmp_path: Path) -> Iterator[Field]:
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "each test here is a row of the table"
    row = Row(*mark.args)
    made = Field(own_minio, tmp_path, row)
    failed = request.session.testsfailed
    yield made
    made.close()
    if request.session.testsfailed == failed and row.tries:
        request.config.stash.setdefault(TABLE, Table()).rows.append(row)
