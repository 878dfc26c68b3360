"""Solvers: free functions over a denoiser, the noise levels that they want, and guidance.

`SOLVERS` maps the names of the command line to what they mean; `solver(name)` looks one up, and gives it options of its own: "heun:s_noise=1.003".
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from ..core.config import nearest
from ..core.types import UserError
from .adaptive import rk45
from .brownian import Brownian
from .contract import Callback, Denoise, Noise
from .correctors import pc_ve, pc_vp
from .deterministic import dpmpp_2s, dpmpp_3s, euler, heun
from .guidance import autoguided, classifier_free, classifier_guided, composed, conditioned, null_of, thresholded
from .inversion import invert, invert_exactly
from .multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, lms, unipc
from .restart import REPEATS, STEPS, restart
from .spacing import Spacing, few, karras, leading_time, linspace_time, log_linear, spaced, uniform_time
from .stochastic import ddim, ddpm, ddpm_large, ddpm_learned, dpmpp_2m_sde, dpmpp_sde, euler_ancestral

__all__ = [
    "SOLVERS",
    "Brownian",
    "Solver",
    "autoguided",
    "classifier_free",
    "classifier_guided",
    "composed",
    "conditioned",
    "ddim",
    "ddpm",
    "ddpm_large",
    "ddpm_learned",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3s",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "few",
    "heun",
    "invert",
    "invert_exactly",
    "ipndm",
    "karras",
    "leading_time",
    "linspace_time",
    "lms",
    "log_linear",
    "null_of",
    "pc_ve",
    "pc_vp",
    "restart",
    "rk45",
    "solver",
    "spaced",
    "thresholded",
    "uniform_time",
    "unipc",
]


@dataclass(frozen=True)
class Solver:
    """A solver, the spacing of levels that suits it, whether it may draw noise, and its denoiser evaluations for n steps (and its own options)."""

    solve: Callable[..., Tensor]
    spacing: Spacing
    stochastic: bool = False
    eta: bool = False  # whether it uses eta
    churn: bool = False  # whether it uses churn
    brownian: bool = False  # whether its noise is one path, the same for any number of steps
    adaptive: bool = False  # whether `evaluations` are only the fewest
    evaluations: Callable[..., int] = lambda n, **own: n
    own: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # options of this solver alone: the least and the largest value; whole where the default is

    def run(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, churn: float = 0.0, callback: Callback | None = None
    ) -> Tensor:
        """x (B, ...) at the level sigmas[0] -> x0 (B, ...), by what of the options this solver takes; sigmas (n + 1,) float64, falling, the last 0.

        eta in [0, 1]: share of ancestral noise; churn >= 0: S_churn of Karras et al. 2022. The state is float32 (float64 where x is).
        """
        takes = {"noise": (self.stochastic, noise), "eta": (self.eta, eta), "churn": (self.churn, churn)}
        return self.solve(denoise, x, sigmas, callback=callback, **{name: value for name, (used, value) in takes.items() if used})


def _two(n: int, **own: float) -> int:
    return 2 * n - 1


def _with_restarts(n: int, *, repeats: int = REPEATS, steps: int = STEPS, **own: float) -> int:
    return 2 * n - 1 + (2 * repeats * steps if n > 1 else 0)


RESTARTS = {"low": (1e-3, 1e3), "ratio": (1.01, 1e4), "repeats": (0, 1000), "steps": (1, 1000)}


SOLVERS: Mapping[str, Solver] = {
    "ddim": Solver(ddim, "time", stochastic=True, eta=True),
    "ddpm": Solver(ddpm, "time", stochastic=True),
    "ddpm-large": Solver(ddpm_large, "time", stochastic=True),
    "deis": Solver(deis, "time"),
    "dpmpp-2m": Solver(dpmpp_2m, "karras"),
    "dpmpp-2m-sde": Solver(dpmpp_2m_sde, "karras", stochastic=True, brownian=True),
    "dpmpp-2s": Solver(dpmpp_2s, "loglinear", evaluations=_two),
    "dpmpp-3m": Solver(dpmpp_3m, "karras"),
    "dpmpp-3s": Solver(dpmpp_3s, "loglinear", evaluations=lambda n, **own: 3 * n - 2),
    "dpmpp-sde": Solver(dpmpp_sde, "karras", stochastic=True, brownian=True, evaluations=_two),
    "euler": Solver(euler, "karras"),
    "euler-ancestral": Solver(euler_ancestral, "karras", stochastic=True),
    "heun": Solver(heun, "karras", stochastic=True, churn=True, evaluations=_two, own={"s_min": (0, math.inf), "s_max": (0, math.inf), "s_noise": (0, 2)}),
    "ipndm": Solver(ipndm, "karras"),
    "lms": Solver(lms, "karras"),
    "pc-ve": Solver(pc_ve, "loglinear", stochastic=True, evaluations=_two, own={"snr": (0, 1)}),
    "pc-vp": Solver(pc_vp, "time", stochastic=True, evaluations=_two, own={"snr": (0, 1)}),
    "restart": Solver(restart, "karras", stochastic=True, evaluations=_with_restarts, own=RESTARTS),
    "rk45": Solver(rk45, "loglinear", adaptive=True, evaluations=lambda n, **own: 6 * n - 5, own={"tolerance": (1e-9, 1.0)}),
    "unipc": Solver(unipc, "loglinear"),
    "unipc-1": Solver(partial(unipc, order=1), "loglinear"),
    "unipc-2": Solver(partial(unipc, order=2), "loglinear"),
}


def solver(name: str) -> Solver:
    """The solver of that name, with options of its own after colons: "pc-ve:snr=0.1", "restart:low=0.1:repeats=4".

    UserError with the nearest names where there is none, or no such option, and for a value that is out of its range.
    """
    base, *given = name.split(":")
    if base not in SOLVERS:
        raise UserError(f"unknown solver {base!r}: {nearest(base, SOLVERS)}")
    found = SOLVERS[base]
    options = dict(_option(base, found, text) for text in given)
    return replace(found, solve=partial(found.solve, **options), evaluations=partial(found.evaluations, **options)) if options else found


def _option(name: str, found: Solver, text: str) -> tuple[str, float | int]:
    """One NAME=VALUE of a solver's own options, typed as its default is."""
    option, _, value = text.partition("=")
    if option not in found.own:
        raise UserError(f"solver {name!r} has no option {option!r} of its own" + (f": {nearest(option, found.own)}" if found.own else ""))
    kind, (least, most) = type(inspect.signature(found.solve).parameters[option].default), found.own[option]
    try:
        number = kind(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most or not math.isfinite(number):
        raise UserError(f"solver {name!r}: {option} is {'a whole number' if kind is int else 'a number'} from {least:g} to {most:g}, not {value!r}: write {name}:{option}=VALUE")
    return option, number
