"""What commands show people: tables that fit the terminal, times and sizes in short, or JSON."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from the0.errors import clip

_COLOURS: Final = {
    **dict.fromkeys(("running", "ok", "scheduled", "new", "good"), "32"),
    **dict.fromkeys(("starting", "stopping", "waiting", "paused", "update", "skipped", "missed", "warning"), "33"),
    **dict.fromkeys(("error", "failed", "lost", "timed out", "bad"), "31"),
}
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a command writes. `width` and colour of a terminal only."""

    out: TextIO
    as_json: bool = False
    width: int | None = None
    colour: bool = False

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2 if self.width else None, ensure_ascii=False), file=self.out, flush=True)

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], *, coloured: str) -> None:
        """The last column is cut where the terminal ends; one that is empty throughout is left out. `coloured`: which column has
        words in their colours."""
        widest = 40 if self.width else 2000
        cells = [[*(clip(cell, limit=widest) for cell in row[:-1]), clip(row[-1], limit=2000)] for row in rows]
        kept = [at for at in range(len(headers)) if at == 0 or any(row[at] for row in cells)]
        lines = [[headers[at] for at in kept], *([row[at] for at in kept] for row in cells)]
        widths = [max(_width(line[at]) for line in lines) for at in range(len(kept))]
        column = next((at for at, index in enumerate(kept) if headers[index] == coloured), 0)
        for number, line in enumerate(lines):
            parts = [cell + " " * (widths[at] - _width(cell)) for at, cell in enumerate(line[:-1])]
            shown = "  ".join([*parts, line[-1]]).rstrip()
            if self.width:
                shown = _cut(shown, self.width)
            before = sum(len(part) + 2 for part in parts[:column])
            self.say(self._coloured(shown, line[column], before) if number else self._bold(shown))

    def word(self, text: str) -> str:
        """In its colour."""
        code = _COLOURS.get(text)
        return f"\033[{code}m{text}\033[0m" if self.colour and code else text

    def _coloured(self, shown: str, word: str, at: int) -> str:
        """`word` stands there, unless the line was cut."""
        if self.colour and word in _COLOURS and shown.startswith(word, at):
            return shown[:at] + self.word(word) + shown[at + len(word) :]
        return shown

    def _bold(self, shown: str) -> str:
        return f"\033[1m{shown}\033[0m" if self.colour else shown


def age(seconds: float) -> str:
    """42s, 5m, 3h, 12d."""
    for unit_s, letter in _UNITS:
        if seconds >= unit_s:
            return f"{int(seconds / unit_s)}{letter}"
    return f"{max(0, int(seconds))}s"


def ago(moment_s: float | None, now_s: float) -> str:
    return "" if moment_s is None else age(now_s - moment_s)


def until(moment_s: float | None, now_s: float) -> str:
    return "" if moment_s is None else f"in {age(moment_s - now_s)}"


def size(count: int | None) -> str:
    """512 B, 34 KiB, 1.2 GiB; "" for None."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"


def rfc3339(moment_s: float | None) -> str | None:
    """UTC, whole seconds."""
    return None if moment_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"
