from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk.bots import BotFolder


@pytest.fixture
def bot(tmp_path: Path) -> Iterator[BotFolder]:
    folder = BotFolder(tmp_path, [])
    folder.code.mkdir()
    yield folder
    for process in folder.started:
        if process.poll() is None:
            process.kill()
        process.communicate()
