"""Many settings of one run: what is measured, kept, taken up again, refused, and drawn."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands import pixelkiln
from pixelkiln.engine import sweep as module
from pixelkiln.engine.measure import Ask, measure
from pixelkiln.engine.plots import plot
from pixelkiln.engine.sample import load
from pixelkiln.engine.solving import known, settings, steps_within
from pixelkiln.solvers import SOLVERS

FAST = ["--precision", "fp32", "--layout", "contiguous", "--quiet"]



def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny diffusion model with snapshots, one without, and a model without a solver."""
    base = tmp_path_factory.mktemp("runs")
    before = os.environ.get("PIXELKILN_CACHE")
    os.environ["PIXELKILN_CACHE"] = str(base / "cache")
    for name, more in (("ddpm", ["--train.ema.kind", "power"]), ("pca", []), ("vae", ["--train.ema.kind", "power", "--train.ema.snapshots", "2"])):
        assert pixelkiln("train", name, "--data", "digits", "--out", base / name, "--size", "tiny", "--steps", 30, *more, *FAST) == 0
    yield base
    os.environ.pop("PIXELKILN_CACHE")
    if before is not None:
        os.environ["PIXELKILN_CACHE"] = before


def solvers(run: Path, out: Path, *more: object) -> int:
    return pixelkiln("solvers", run, "--out", out, "-n", 40, "--solvers", "heun,ddim", "--evaluations", "1,2,3", *FAST, *more)


def test_every_solver_by_evaluations(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """heun has 1, 1 and 2 steps within 1, 2 and 3 evaluations, ddim 1, 2 and 3: five cells, of which one appears twice."""
    assert solvers(runs / "ddpm", tmp_path / "o") == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "o" / "solvers.json").read_text())
    cells = {(r["solver"], r["steps"]): r for r in found["rows"]}
    assert {k: r["evaluations"] for k, r in cells.items()} == {
        ("heun", 1): 1, ("heun", 2): 3, ("ddim", 1): 1, ("ddim", 2): 2, ("ddim", 3): 3}, "counted, not computed"
    assert len(found["rows"]) == 5
    line = next(row for row in shown.splitlines() if row.startswith("| heun"))
    first, second, third = (float(cell.replace(",", "")) for cell in line.split("|")[2:5])
    assert first == second != third
    assert (tmp_path / "o" / "solvers.md").read_text() in shown
    picture = ET.parse(tmp_path / "o" / "solvers.svg").getroot()
    assert len([e for e in picture.iter() if e.tag.endswith("polyline")]) == 2
    assert len([e for e in picture.iter() if e.tag.endswith("circle")]) == 5


def test_a_cell_is_what_evaluate_measures(runs: Path, tmp_path: Path) -> None:
    assert pixelkiln("solvers", runs / "ddpm", "--out", tmp_path, "-n", 40, "--solvers", "heun", "--evaluations", "3", "--guidance", "1.5",
                     "--spacing", "time", "--metrics", "fd,accuracy", "--seed", 3, *FAST) == 0
    found = json.loads((tmp_path / "solvers.json").read_text())
    (row,) = found["rows"]
    trained = load(runs / "ddpm", precision="fp32", layout="contiguous")
    report = measure(trained, num=40, ask=Ask(("fd", "accuracy"), seed=3), solver="heun", steps=2, guidance=1.5, spacing="time").report
    for name in ("fd", "accuracy"):
        assert row[name] == pytest.approx(report[name].value, rel=1e-6)
        assert found["floor"][name] == pytest.approx(report[name].floor, rel=1e-9)


def test_an_interrupted_table_goes_on(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert solvers(runs / "ddpm", tmp_path / "whole") == 0
    real, drawn = module.generate, []

    def tiring(*args: object) -> torch.Tensor:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", tiring)
    assert solvers(runs / "ddpm", tmp_path / "parts") == 130
    assert len(json.loads((tmp_path / "parts" / "solvers.json").read_text())["rows"]) == 2
    drawn.clear()
    monkeypatch.setattr(module, "generate", lambda *args: drawn.append(1) or real(*args))
    assert solvers(runs / "ddpm", tmp_path / "parts") == 0
    assert len(drawn) == 3, "finished cells are kept"
    a, b = (json.loads((tmp_path / d / "solvers.json").read_text())["rows"] for d in ("whole", "parts"))
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in a] == [{k: v for k, v in r.items() if k != "seconds"} for r in b]
    drawn.clear()
    capsys.readouterr()
    assert solvers(runs / "ddpm", tmp_path / "parts", "--seed", 4) == 2
    assert "scores of another seed" in error_line(capsys)
    assert solvers(runs / "ddpm", tmp_path / "parts", "--ema-std", 0.1) == 2
    assert "scores of another ema std" in error_line(capsys)
    (tmp_path / "parts" / "solvers.json").write_text("[]")
    assert solvers(runs / "ddpm", tmp_path / "parts") == 2
    assert "no scores of ours" in error_line(capsys)
    assert not drawn


def test_what_has_no_solver_or_no_such_solver_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solvers(runs / "pca", tmp_path / "o") == 2
    assert "samples without a solver" in error_line(capsys)
    assert solvers(runs / "ddpm", tmp_path / "o", "--solvers", "hoin") == 2
    assert "unknown solver 'hoin'" in error_line(capsys)
    assert solvers(runs / "ddpm", tmp_path / "o", "--guidance", "1,x") == 2
    assert "not a list of numbers" in error_line(capsys)
    assert not (tmp_path / "o").exists()


def test_steps_within_a_budget() -> None:
    for name, solver in SOLVERS.items():
        for budget in range(1, 25):
            steps = steps_within(name, budget)
            assert steps is not None
            assert solver.evaluations(steps) <= budget < min(solver.evaluations(n) for n in range(steps + 1, 60))
    assert [steps_within("heun", b) for b in (1, 2, 3, 50)] == [1, 1, 2, 25]
    assert known("all") == list(SOLVERS)
    assert [str(s) for s in settings(["ddim"], [1.0, 2.5], [None, "karras"])] == [
        "ddim, guidance 1", "ddim, guidance 1, karras", "ddim, guidance 2.5", "ddim, guidance 2.5, karras"]


def test_every_solver_costs_what_it_says(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All solvers of the list, once around, in a budget of 7; an adaptive one is counted and stands where it belongs."""
    out = tmp_path / "o"
    assert pixelkiln("solvers", runs / "ddpm", "--out", out, "-n", 16, "--evaluations", "7", *FAST) == 0
    rows = {r["solver"]: r for r in json.loads((out / "solvers.json").read_text())["rows"]}
    assert rows.keys() == SOLVERS.keys()
    shown = capsys.readouterr().out
    for name, row in rows.items():
        costs = SOLVERS[name].evaluations(row["steps"])
        assert row["evaluations"] == costs or (SOLVERS[name].adaptive and row["evaluations"] >= costs), name
        line = next(text for text in shown.splitlines() if text.startswith(f"| {name} |"))
        assert line.endswith("| – |") == (row["evaluations"] > 7)
        if SOLVERS[name].adaptive:
            assert f"{name} chooses their number itself: {row['evaluations']:g} for" in shown


def test_lengths_of_the_average(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("ema", runs / "ddpm", "--stds", "0,0.05,0.08", "-n", 40, "--steps", 2, "--out", tmp_path / "e", *FAST)
    assert pixelkiln(*args) == 0
    found = json.loads((tmp_path / "e" / "ema.json").read_text())
    by = {r["std"]: r for r in found["rows"]}
    assert list(by) == [0, 0.05, 0.08]
    assert len({r["fd"] for r in by.values()}) == 3
    own = measure(load(runs / "ddpm", precision="fp32", layout="contiguous"), num=40, ask=Ask(("fd",)), steps=2).report["fd"].value
    assert by[0.05]["fd"] == pytest.approx(own, rel=1e-3), "stds[0] is what the run samples with"
    other = measure(load(runs / "ddpm", precision="fp32", layout="contiguous", ema_std=0.08), num=40, ask=Ask(("fd",)), steps=2).report["fd"].value
    assert by[0.08]["fd"] == pytest.approx(other, rel=1e-6)
    assert ET.parse(tmp_path / "e" / "ema.svg").getroot().tag.endswith("svg")
    capsys.readouterr()
    assert pixelkiln(*args, "--guidance", 2) == 2
    assert "scores of other knobs" in error_line(capsys)


def test_a_run_without_snapshots_says_so(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (("ema", runs / "pca", "--out", tmp_path / "e"), ("sample", runs / "pca", "--ema-std", 0.05, "--out", tmp_path / "e.png"),
                 ("evaluate", runs / "pca", "--ema-std", 0.05)):
        assert pixelkiln(*args, "-n", 8, *FAST) == 2
        assert "has no snapshots" in error_line(capsys)
    assert pixelkiln("ema", runs / "ddpm", "--stds", "0.5", "--out", tmp_path / "e", *FAST) == 2
    assert "up to 0.2886" in error_line(capsys)
    assert not (tmp_path / "e").exists()


def test_a_plot_has_its_lines_and_where_they_are() -> None:
    svg = plot("a < b", {"one & two": [(1, 100.0), (10, 1.0)], "dot": [(3, 10.0)]}, "n", floor=0.5, log_x=True)
    root = ET.fromstring(svg)
    circles = [(float(e.get("cx", "nan")), float(e.get("cy", "nan"))) for e in root.iter() if e.tag.endswith("circle")]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert (x2 - x0) / (x1 - x0) == pytest.approx(0.477, abs=2e-3), "log x: log10(3)"
    assert (y2 - y0) / (y1 - y0) == pytest.approx(0.5, abs=2e-3), "log y: 10 is halfway from 100 to 1"
    assert "a &lt; b (log scale)" in svg
    width = float(root.get("viewBox", "").split()[2])
    assert all(0 < x < width for x, _ in circles)


def test_labels_of_values_that_lie_close_do_not_touch() -> None:
    """19 and 20, 49 and 50: the one that more lines have."""
    usual, odd = [1, 2, 3, 5, 10, 20, 50], [1, 3, 5, 9, 19, 49]
    svg = plot("t", {"a": [(x, 1.0) for x in usual], "b": [(x, 2.0) for x in usual], "c": [(x, 3.0) for x in odd]}, "n", log_x=True)
    root = ET.fromstring(svg)
    low = [t for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("y") == "330"]
    assert [t.text for t in low] == list(map(str, usual))
    places = [float(t.get("x", "nan")) for t in low]
    assert all(b - a >= 18 for a, b in zip(places, places[1:], strict=False))
