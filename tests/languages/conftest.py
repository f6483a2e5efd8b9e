"""Fixtures of the `languages` suite, and the table that it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bot_place import Place

COLUMNS = ("run", "fail", "terminate", "state", "log", "served", "ephemeral", "archive layout")
TABLE = pytest.StashKey[dict[str, dict[str, str]]]()

Mark = Callable[..., None]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> Mark:
    """Notes that a bot has shown what these columns stand for."""
    table = request.config.stash.setdefault(TABLE, {})

    def marked(bot: str, *columns: str, told: str = "ok") -> None:
        assert set(columns) <= set(COLUMNS)
        table.setdefault(bot, {}).update(dict.fromkeys(columns, told))

    return marked


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, {})
    if not table:
        return
    terminalreporter.section("languages")
    rows = [("", *COLUMNS), *((bot, *(marks.get(column, "-") for column in COLUMNS)) for bot, marks in table.items())]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS) + 1)]
    for row in rows:
        terminalreporter.write_line(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
