"""What was tried, what survived, how often, and the worst loss: one row for each fault."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest


@dataclass
class Row:
    tried: str
    survived: str
    tries: int = 0
    worst_s: float = 0.0

    def judged(self, loss_s: float) -> None:
        self.tries += 1
        self.worst_s = max(self.worst_s, loss_s)


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)

    def lines(self, *, width: int) -> list[str]:
        part = (min(width, 160) - 22) // 2
        lines = [f"{'TRIED':<{part}}  {'SURVIVED':<{part}}  TRIES  WORST LOSS"]
        for row in self.rows:
            sides = zip_longest(textwrap.wrap(row.tried, part), textwrap.wrap(row.survived, part), fillvalue="")
            for number, (left, right) in enumerate(sides):
                figures = "" if number else f"{row.tries:>5}  {row.worst_s:.1f} s"
                lines.append(f"{left:<{part}}  {right:<{part}}  {figures}".rstrip())
        return lines
