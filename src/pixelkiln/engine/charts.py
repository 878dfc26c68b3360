"""Charts as inline SVG, lines and bars: axes, round ticks, units; colors come from the page's style (variables --c0 .. --c4, --rule)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLORS", "bars", "chart", "log_ticks", "number", "short", "span", "ticks"]

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 8, 32
COLORS = 5
RAW, SMOOTH = 400, 50  # points drawn of the raw curve (faint) and of its local means (bold)
LOG_FROM, LOG_TO = 30.0, 1e6  # positive curves whose largest and smallest values have a ratio in between get a logarithmic axis


def number(value: object) -> str:
    """A value for people: four digits, thousands separated, an en dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and value == round(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most `count` + 1 round numbers (1, 2 or 5 times a power of ten apart) in [low, high], low < high."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-") if abs(value) > 1e-12 else "0"


def _means(points: Points, bins: int) -> list[tuple[float, float]]:
    """Means of consecutive runs of points, at most `bins` of them."""
    n = len(points)
    if n <= bins:
        return list(points)
    edges = [n * k // bins for k in range(bins + 1)]
    parts = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) if high > low else max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, as exponents: powers of ten, with 2 and 5 times them where there are few."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, len(decades) // 6)
    marks = [float(d) for d in decades if d % every == 0]
    if high - low < 3:
        marks = [d + math.log10(m) for d in decades for m in (1, 2, 5)]
    return [m for m in marks if low <= m <= high]


def _line(points: Points, style: str) -> str:
    if len(points) == 1:
        (x, y) = points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot {style}"/>'
    return f'<polyline class="{style}" fill="none" stroke="currentColor" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def chart(title: str, lines: Mapping[str, Points], unit: str = "", x_unit: str = "step") -> str:
    """One figure: named curves of finite (x, y) points over common axes, with the last value of each in the legend.

    Positive values over a range of 30 to a million are drawn on a logarithmic axis, and the title says so.
    """
    assert lines and all(lines.values()), "a chart needs at least one point in each line"
    values = [y for points in lines.values() for _, y in points]
    log = min(values) > 0 and LOG_FROM < max(values) / min(values) < LOG_TO

    def level(y: float) -> float:
        return math.log10(y) if log else y

    xs = [x for points in lines.values() for x, _ in points]
    x0, x1 = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, min(xs) + 1)
    y0, y1 = span([level(y) for y in values])

    def place(points: Points) -> list[tuple[float, float]]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return [(LEFT + across * (x - x0) / (x1 - x0), TOP + down * (y1 - level(y)) / (y1 - y0)) for x, y in points]

    parts = []
    for mark in log_ticks(y0, y1) if log else ticks(y0, y1):
        value = 10.0**mark if log else mark
        ((_, y),) = place([(x0, value)])
        parts.append(f'<line class="rule" stroke="currentColor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for mark in ticks(x0, x1):
        ((x, _),) = place([(mark, values[0])])
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(mark)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_unit)}</text>')
    for k, points in enumerate(lines.values()):
        if len(points) > SMOOTH:
            parts.append(_line(place(_means(points, RAW)), f"raw s{k % COLORS}"))
        parts.append(_line(place(_means(points, SMOOTH)), f"s{k % COLORS}"))
    legend = "".join(
        f'<span><i class="key k{k % COLORS}"></i>{escape(name) + " " if len(lines) > 1 else ""}{number(points[-1][1])}</span>'
        for k, (name, points) in enumerate(lines.items())
    )
    notes = ", ".join(filter(None, [unit, "log scale" if log else ""]))
    caption = f"<b>{escape(title)}</b>" + (f" <small>({escape(notes)})</small>" if notes else "")
    label = escape(f"{title} over {x_unit}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="11" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{caption}<span class="legend">{legend}</span></figcaption>{svg}</figure>'


def bars(title: str, values: Mapping[str, float], unit: str = "") -> str:
    """One figure: a named bar for each finite value, from 0, in the given order, all on one scale; negative ones to the left of 0."""
    assert values, "bars need at least one value"
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    row, left, right = 16, 84, 56
    across = (WIDTH - left - right) / ((high - low) or 1.0)
    zero = left - low * across
    parts = [f'<line class="rule" stroke="currentColor" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{row * len(values)}"/>']
    for k, (name, value) in enumerate(values.items()):
        y, x = row * k, zero + min(value, 0.0) * across
        parts.append(f'<text x="{left - 5}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="dot s0" fill="currentColor" x="{x:.1f}" y="{y + 3}" width="{abs(value) * across:.1f}" height="{row - 6}"/>')
        parts.append(f'<text x="{WIDTH - right + 5}" y="{y + 12}">{number(value)}</text>')
    caption = f"<b>{escape(title)}</b>" + (f" <small>({escape(unit)})</small>" if unit else "")
    svg = f'<svg viewBox="0 0 {WIDTH} {row * len(values)}" font-size="11" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{caption}<span class="legend">last</span></figcaption>{svg}</figure>'
