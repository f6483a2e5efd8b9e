"""What was tried, what it got, what it cost: one row for each attack, for the terminal and for docs/hostile.md."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Row:
    tried: str
    got: str
    """As it must be, in words; the test beside it asserts it."""


@dataclass
class Table:
    """Rows of this pytest run, in the order of their tests, with the seconds that each cost."""

    costs: dict[Row, str] = field(default_factory=dict)

    def lines(self, *, width: int | None = None) -> list[str]:
        wide = max(80, min(width or shutil.get_terminal_size((140, 24)).columns, 160))
        tried_width = (wide - 24) * 2 // 5
        got_width = wide - 24 - tried_width
        lines = [_line("TRIED", "WHAT IT GOT", "COST", tried_width, got_width)]
        for row, cost in self.costs.items():
            tried = textwrap.wrap(row.tried, tried_width)
            got = textwrap.wrap(row.got, got_width)
            for number, (left, middle) in enumerate(zip_longest(tried, got, fillvalue="")):
                lines.append(_line(left, middle, "" if number else cost, tried_width, got_width))
        return lines


def rows_of(module: ModuleType) -> list[Row]:
    """Of every test in it that is marked `attack`, in the order of the file."""
    rows: list[Row] = []
    for name, test in vars(module).items():
        if not name.startswith("test_"):
            continue
        for mark in getattr(test, "pytestmark", ()):
            marks = [mark]
            if mark.name == "parametrize":
                marks = [inner for case in mark.args[1] for inner in getattr(case, "marks", ())]
            rows += [Row(*one.args) for one in marks if one.name == "attack"]
    return rows


def markdown(rows: list[Row]) -> str:
    """The same for docs/hostile.md, where costs would not stay true."""
    return "\n".join(["| tried | what it got |", "|---|---|", *(f"| {row.tried} | {row.got} |" for row in rows), ""])


def _line(tried: str, got: str, cost: str, tried_width: int, got_width: int) -> str:
    return f"{tried:<{tried_width}}  {got:<{got_width}}  {cost}".rstrip()
