"""Line charts: points lie where the axes say, ticks are round, odd curves do no harm. Oracles: numpy and an XML parser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pixelkiln.engine.charts import bars, chart, number, ticks

ODD = [
    [(3, 2.0)],
    [(0, 0.0), (1, 0.0)],
    [(0, -1e-9), (1, 1e-9)],
    [(k, 0.5**k) for k in range(900)],
    [(0, 1e300), (1, -1e300)],
]


def points(svg: str) -> np.ndarray:
    found = re.findall(r'class="s\d"[^>]*points="([^"]+)"', svg)
    return np.array([[float(v) for v in p.split(",")] for p in found[-1].split()])


def test_charts_place_points_where_their_axes_say():
    svg = chart("x", {"a": [(0, 0), (5, 5), (10, 10)]}, "nats")
    labels = [(float(y) - 4, float(v)) for y, v in re.findall(r'<text x="49" y="([\d.]+)" text-anchor="end">([\d.]+)<', svg)]
    ys = np.interp(points(svg)[:, 1], *zip(*sorted(labels), strict=True))
    assert np.allclose(ys, [0, 5, 10], atol=0.1) and "(nats)" in svg
    log = chart("x", {"a": [(0, 1), (1, 10), (2, 100), (3, 1000)]})
    assert "log scale" in log and np.allclose(np.diff(points(log)[:, 1], 2), 0, atol=0.2)


@pytest.mark.parametrize("lines", ODD)
def test_charts_survive_odd_curves(lines):
    svg = chart("<odd>", {"a<": lines, "b": lines})
    ElementTree.fromstring(svg)  # well-formed
    assert "&lt;odd&gt;" in svg and "a&lt;" in svg and not re.search(r"nan|inf", svg.replace("&lt;", ""))


def test_bars_are_as_long_as_their_values_from_one_zero():
    svg = bars("<kl>", {"a<": 2.0, "b": -1.0, "c": 0.5, "d": 0.0}, "nats")
    ElementTree.fromstring(svg)
    found = np.array([[float(v) for v in m] for m in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', svg)])
    zero = float(re.search(r'<line[^>]* x1="([\d.]+)"', svg).group(1))
    assert np.allclose(found[:, 1] / found[0, 1], [1, 0.5, 0.25, 0], atol=2e-3)
    assert np.allclose(found[[0, 2, 3], 0], zero) and np.isclose(found[1].sum(), zero, atol=0.2)
    assert "(nats)" in svg and "&lt;kl&gt;" in svg and ">-1<" in svg
    ElementTree.fromstring(bars("none", {"a": 0.0}))


def test_long_curves_are_thinned_by_means():
    lines = [(float(k), float(k % 2)) for k in range(10_000)]
    svg = chart("t", {"a": lines})
    assert len(svg) < 20_000 and np.ptp(points(svg)[:, 1]) < 1 and len(points(svg)) == 50


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.9), (1e-7, 3e-7), (0, 123456), (99, 101)])
def test_ticks_are_round_even_and_inside(low, high):
    marks = ticks(low, high)
    steps = np.diff(marks)
    assert 2 <= len(marks) <= 6 and low - 1e-9 <= marks[0] and marks[-1] <= high * (1 + 1e-9)
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.6e}".split("e")[0]) in (1, 2, 5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3, "3"), (12345678, "12,345,678"), (0.123456, "0.1235"), (2.0, "2"), (54321.7, "54,322"), ("x", "x"), (np.nan, "nan")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text
