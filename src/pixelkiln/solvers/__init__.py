"""Solvers: free functions over a denoiser, the noise levels that they want, and guidance.

`SOLVERS` maps the names of the command line to what they mean; `solver(name)` looks one up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.config import nearest
from ..core.types import UserError
from .contract import Run
from .deterministic import dpmpp_2m, euler, heun
from .guidance import autoguided, classifier_free, classifier_guided, composed, conditioned, null_of, thresholded
from .spacing import Spacing, karras, log_linear, spaced, uniform_time
from .stochastic import ddim, ddpm

__all__ = [
    "SOLVERS",
    "Solver",
    "autoguided",
    "classifier_free",
    "classifier_guided",
    "composed",
    "conditioned",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "heun",
    "karras",
    "log_linear",
    "null_of",
    "solver",
    "spaced",
    "thresholded",
    "uniform_time",
]


@dataclass(frozen=True)
class Solver:
    """A solver, the spacing of levels that suits it, whether it may draw noise, and its denoiser evaluations for n steps."""

    run: Run
    spacing: Spacing
    stochastic: bool = False
    eta: bool = False  # whether it uses eta
    evaluations: Callable[[int], int] = lambda n: n


SOLVERS: Mapping[str, Solver] = {
    "ddim": Solver(ddim, "time", stochastic=True, eta=True),
    "ddpm": Solver(ddpm, "time", stochastic=True),
    "dpmpp-2m": Solver(dpmpp_2m, "loglinear"),
    "euler": Solver(euler, "karras"),
    "heun": Solver(heun, "karras", evaluations=lambda n: 2 * n - 1),
}


def solver(name: str) -> Solver:
    """The solver of that name; UserError with the nearest names where there is none."""
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: {nearest(name, SOLVERS)}")
    return SOLVERS[name]
