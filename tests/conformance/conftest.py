from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.platform_under_test import Platform, Up, chosen


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    found = chosen()
    if found is not None:
        yield found
        return
    up = Up(tmp_path_factory.mktemp("platform"))
    try:
        yield up.platform()
    finally:
        code = up.close()
    assert code == 0, up.told


@pytest.fixture
def bot_id(platform: Platform) -> Iterator[str]:
    """An id that no other test has; its bot is removed afterwards."""
    made = f"conform-{secrets.token_hex(4)}"
    yield made
    platform.run("rm", made, "--purge", ok=False)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bot's folder from file names and texts."""

    def make(name: str, **files: str) -> Path:
        made = tmp_path / name
        made.mkdir(exist_ok=True)
        for file, text in files.items():
            (made / file.replace("_yaml", ".yaml").replace("_py", ".py")).write_text(text)
        return made

    return make
