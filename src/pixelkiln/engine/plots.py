"""A plot as an SVG file of its own: many named lines of points over common axes, each axis linear or logarithmic, with a legend beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from .charts import LOG_TO, log_ticks, number, short, span, ticks

__all__ = ["plot"]

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LETTER = 560, 360, 60, 34, 46, 6.6
MANY, ROOM = 24, 18.0  # values that may each have a label, and pixels between two
COLORS = ("#b5451b", "#2463a8", "#3c8045", "#8a4f9e", "#8a6d0b", "#147d86", "#c2477f", "#5b5b62")
DASHES = ("none", "6 3", "2 3", "8 3 2 3")
LOG_FROM = 8.0  # positive values whose largest and smallest have a larger ratio get a logarithmic axis
STYLE = "text{font:11px system-ui,sans-serif;fill:#55555c}.name,.title{fill:#1d1d1f}.rule{stroke:#dddad4}.floor{stroke:#1d1d1f;stroke-dasharray:1 3}"


def plot(title: str, lines: Mapping[str, Points], x_unit: str, floor: float | None = None, log_x: bool = False) -> str:
    """Lines of finite (x, y) points; floor: a dotted line with its value. x must be positive where log_x."""
    assert lines and all(lines.values()), "a plot needs at least one point in each line"
    ys = [y for points in lines.values() for _, y in points] + ([] if floor is None else [floor])
    xs = [x for points in lines.values() for x, _ in points]
    log_y = min(ys) > 0 and LOG_FROM < max(ys) / min(ys) < LOG_TO
    right = WIDTH - 12
    x0, x1 = span([_level(x, log_x) for x in xs])
    y0, y1 = span([_level(y, log_y) for y in ys])

    def across(x: float) -> float:
        return LEFT + (right - LEFT) * (_level(x, log_x) - x0) / (x1 - x0)

    def down(y: float) -> float:
        return TOP + (HEIGHT - BOTTOM - TOP) * (y1 - _level(y, log_y)) / (y1 - y0)

    parts = []
    for value in _marks(y0, y1, log_y):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{down(value):.1f}" y2="{down(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in _apart(xs, across) if log_x and len(set(xs)) <= MANY else _marks(x0, x1, log_x):
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_unit)}</text>')
    parts.append(f'<text class="title" x="{LEFT}" y="18">{escape(title)}{" (log scale)" if log_y else ""}</text>')
    names = [*lines, *([] if floor is None else ["real test images"])]
    if floor is not None:
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{right}" y1="{down(floor):.1f}" y2="{down(floor):.1f}"/>')
        parts.append(_entry(names[-1], len(lines), 'class="floor"'))
    for k, (name, points) in enumerate(lines.items()):
        style = f'stroke="{COLORS[k % len(COLORS)]}" stroke-width="1.8" stroke-dasharray="{DASHES[k // len(COLORS) % len(DASHES)]}"'
        parts.append(f'<polyline fill="none" {style} points="{" ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)}"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6" fill="{COLORS[k % len(COLORS)]}"><title>{escape(name)}, {number(x)}: '
                  f"{number(round(y, 4))}</title></circle>" for x, y in points]
        parts.append(_entry(name, k, style))
    width = max(WIDTH + 40 + LETTER * max(map(len, names)), LEFT + LETTER * (len(title) + 14))
    height = max(HEIGHT, TOP + 18 * len(names) + 8)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
            f'aria-label="{escape(title)}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n')


def _apart(xs: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """Those of the values, the most frequent first, whose labels do not touch."""
    chosen: list[float] = []
    for x, _ in Counter(xs).most_common():
        if all(abs(across(x) - across(other)) >= ROOM for other in chosen):
            chosen.append(x)
    return sorted(chosen)


def _level(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _marks(low: float, high: float, log: bool) -> list[float]:
    """Values of the ticks between two levels."""
    return [10.0**mark for mark in log_ticks(low, high)] if log else ticks(low, high)


def _entry(name: str, row: int, style: str) -> str:
    """A line of the legend."""
    y = TOP + 8 + 18 * row
    return f'<line {style} x1="{WIDTH}" x2="{WIDTH + 22}" y1="{y}" y2="{y}"/><text class="name" x="{WIDTH + 28}" y="{y + 4}">{escape(name)}</text>'
