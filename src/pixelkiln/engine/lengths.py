"""A score against the length of the weights' average, each length made from the run's snapshots (Karras et al. 2024, arXiv 2312.02696, fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..core.types import UserError
from .build import newest
from .plots import plot
from .posthoc import exponent
from .sample import Trained
from .sweep import Row, Sweep, markdown

__all__ = ["LENGTHS", "compare", "refuse_without_snapshots", "show"]

LENGTHS = (0.0, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25)


def refuse_without_snapshots(trained: Trained, stds: Sequence[float]) -> None:
    """UserError unless the run has snapshots, and the lengths are lengths."""
    for std in stds:
        if std:
            exponent(std)
    run = trained.opened.run
    if not run.points("snapshots"):
        raise UserError(f"{run.path} has no snapshots to make averages from: train it with --train.ema.kind power")


def use(trained: Trained, std: float) -> None:
    """Give the method the weights of that length."""
    trained.method.load_state_dict(newest(trained.opened.run, std)[1])


def compare(sweep: Sweep, stds: Sequence[float]) -> list[Row]:
    """The scores for each length."""
    return [sweep.row({"std": std}, partial(use, sweep.trained, std)) for std in stds]


def show(sweep: Sweep, rows: Sequence[Row]) -> tuple[str, str]:
    """The table (Markdown) of all scores and the plot (SVG) of the first."""
    first = sweep.names[0]
    table = markdown(["length (std)", *sweep.names], [[row["std"], *(round(row[name], 4) for name in sweep.names)] for row in rows])
    points = [(float(row["std"]), float(row[first])) for row in rows]
    return f"{sweep.caption(first)}. Length 0: the weights of the last step.\n\n{table}", plot(
        sweep.caption(first), {first: sorted(points)}, "length of the average: its standard deviation as a share of the training", sweep.floor[first])
