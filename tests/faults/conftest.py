"""MinIO of this suite's own, which it may kill, and the bot whose work is judged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.field import Field
from rig.fault_table import Row
from rig.minio_server import Running, minio


@pytest.fixture(scope="session")
def own_minio() -> Iterator[Running]:
    with minio() as running:
        yield running


@pytest.fixture
def luck(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    return random.Random(f"{fault_seed} {request.node.name}")


@pytest.fixture
def bot(fault: Row, own_minio: Running, tmp_path: Path) -> Iterator[Field]:
    made = Field(own_minio, tmp_path, fault)
    yield made
    made.close()
