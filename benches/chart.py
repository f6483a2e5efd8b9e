"""Curves as SVG files, for docs/: axes, a few lines, a legend. Nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 40, 48
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    label: str
    log: bool = False

    def place(self, value: float, low: float, high: float) -> float:
        """0 to 1 along the axis."""
        if self.log:
            value, low, high = (math.log10(max(one, 1e-9)) for one in (value, low, high))
        return (value - low) / ((high - low) or 1.0)

    def ticks(self, low: float, high: float) -> list[float]:
        if self.log:
            return [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        step = 10 ** math.floor(math.log10((high - low) or 1.0))
        step = next(step * n for n in (0.2, 0.5, 1, 2) if (high - low) / (step * n) <= 7)
        return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def draw(path: Path, title: str, series: Mapping[str, Points], *, x: Axis, y: Axis) -> None:
    """One line each. Lines whose name begins with "limit" are dashed."""
    xs = [point[0] for points in series.values() for point in points]
    ys = [point[1] for points in series.values() for point in points]
    x_low, x_high = (min(xs), max(xs)) if x.log else (0.0, max(xs))
    y_low, y_high = _whole(min(ys), max(ys)) if y.log else (0.0, max(ys) * 1.05)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = LEFT + x.place(point[0], x_low, x_high) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - y.place(point[1], y_low, y_high) * (HEIGHT - TOP - BOTTOM)
        return across, up

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{title}</text>',
    ]
    for value in y.ticks(y_low, y_high):
        _, up = at((x_low, value))
        out.append(f'<line x1="{LEFT}" y1="{up:.1f}" x2="{WIDTH - RIGHT}" y2="{up:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in x.ticks(x_low, x_high):
        across, _ = at((value, y_low))
        out.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{x.label}</text>')
    out.append(f'<text x="6" y="{TOP - 8}">{y.label}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if name.startswith("limit") else ""
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up in map(at, points))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        across = LEFT + 130 * number + 60
        out.append(f'<line x1="{across}" y1="{TOP - 12}" x2="{across + 18}" y2="{TOP - 12}" stroke="{colour}"{dash}/>')
        out.append(f'<text x="{across + 22}" y="{TOP - 8}">{name}</text>')
    path.write_text("\n".join([*out, "</svg>"]) + "\n")


def _whole(low: float, high: float) -> tuple[float, float]:
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
