"""What a start of a bot does without: each module costs it milliseconds, and memory for as long as the bot runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

COSTLY = {
    *(
        "argparse",
        "asyncio",
        "dataclasses",
        "datetime",
        "gzip",
        "hashlib",
        "http",
        "inspect",
        "logging",
        "pathlib",
        "random",
    ),
    *("shutil", "socket", "sqlite3", "subprocess", "tempfile", "threading", "urllib", "uuid", "zipfile"),
}


def loaded(modules: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys, {modules}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(told.stdout.split())


def test_the_supervisor_before_the_first_process_is_launched() -> None:
    assert not loaded("the0.cli, the0.execute.run") & COSTLY


def test_a_query_before_its_state_is_there() -> None:
    assert not loaded("the0.cli, the0.execute.queries, the0.execute.serving, the0.execute.query_sidecar") & COSTLY


@pytest.mark.parametrize("prepares", ["the0.execute.prepare_query", "the0.execute.prepare, the0.sync.start"])
def test_what_prepares_from_a_folder(prepares: str) -> None:
    allowed = {"hashlib", "threading"}
    assert not loaded(f"{prepares}, the0.objects.folder") & (COSTLY - allowed)


def test_what_prepares_loads_one_client_only_when_it_connects() -> None:
    allowed = {"datetime", "threading"}
    assert not loaded("the0.execute.prepare, the0.objects.s3, the0.sync.start") & (
        COSTLY - allowed | {"the0.runs", "obstore", "minio"}
    )
