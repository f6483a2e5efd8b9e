"""The table of faults: what was tried, what survived, how often, and the worst loss. A test anywhere is a row of it by
`@pytest.mark.fault(tried, survived)` and the fixture `fault`, on which it counts its tries; equal rows of several tests are one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path


@dataclass
class Row:
    tried: str
    survived: str
    tries: int = 0
    worst_s: float | None = None
    """Seconds of work; None where no try could tell it in seconds: then all that had been reported was there."""

    def judged(self, loss_s: float | None = None, *, tries: int = 1) -> None:
        """That many tries survived, none with a loss above this one."""
        self.tries += tries
        if loss_s is not None:
            self.worst_s = max(self.worst_s or 0.0, loss_s)

    @property
    def worst(self) -> str:
        return "-" if self.worst_s is None else f"{self.worst_s:.1f} s"


@dataclass
class Table:
    """Of the tests that passed, in their order."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        known = self.rows.setdefault((row.tried, row.survived), Row(row.tried, row.survived))
        known.judged(row.worst_s, tries=row.tries)

    def lines(self, *, width: int) -> list[str]:
        part = (min(width, 160) - 22) // 2
        lines = [f"{'TRIED':<{part}}  {'SURVIVED':<{part}}  TRIES  WORST LOSS"]
        for row in self.rows.values():
            sides = zip_longest(textwrap.wrap(row.tried, part), textwrap.wrap(row.survived, part), fillvalue="")
            for number, (left, right) in enumerate(sides):
                figures = "" if number else f"{row.tries:>5}  {row.worst}"
                lines.append(f"{left:<{part}}  {right:<{part}}  {figures}".rstrip())
        return lines


BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def write_into(path: Path, rows: Iterable[Row]) -> None:
    """Between the marks of a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(before + BEGIN + markdown(rows) + END + rest.partition(END)[2])


def written_rows(text: str) -> set[tuple[str, str]]:
    """What was tried and what survived, of each row of a document."""
    lines = text.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(tried, survived) for tried, survived, _, _ in cells}


def markdown(rows: Iterable[Row]) -> str:
    lines = ["| tried | survived | tries | worst loss |", "|---|---|---|---|"]
    lines += [f"| {row.tried} | {row.survived} | {row.tries} | {row.worst} |" for row in rows]
    return "\n".join([*lines, ""])
