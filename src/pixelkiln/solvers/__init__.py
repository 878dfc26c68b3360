"""Solvers: free functions over a denoiser, the noise levels that they want, and guidance.

`SOLVERS` maps the names of the command line to what they mean; `solver(name)` looks one up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """A solver, the spacing of levels that suits it, whether it may draw noise, and its denoiser evaluations for n steps."""

    solve: Callable[..., Tensor]
    spacing: Spacing
    stochastic: bool = False
    eta: bool = False  # whether it uses eta
    churn: bool = False  # whether it uses churn
    brownian: bool = False  # whether its noise is one path, the same for any number of steps
    adaptive: bool = False  # whether `evaluations` are only the fewest
    evaluations: Callable[[int], int] = lambda n: n

    def run(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, churn: float = 0.0, callback: Callback | None = None
    ) -> Tensor:
        """x (B, ...) at the level sigmas[0] -> x0 (B, ...), by what of the options this solver takes; sigmas (n + 1,) float64, falling, the last 0.

        eta in [0, 1]: share of ancestral noise; churn >= 0: S_churn of Karras et al. 2022. The state is float32 (float64 where x is).
        """
        takes = {"noise": (self.stochastic, noise), "eta": (self.eta, eta), "churn": (self.churn, churn)}
        return self.solve(denoise, x, sigmas, callback=callback, **{name: value for name, (used, value) in takes.items() if used})


def _two(n: int) -> int:
    return 2 * n - 1


SOLVERS: Mapping[str, Solver] = {
    "ddim": Solver(ddim, "time", stochastic=True, eta=True),
    "ddpm": Solver(ddpm, "time", stochastic=True),
    "ddpm-large": Solver(ddpm_large, "time", stochastic=True),
    "deis": Solver(deis, "time"),
    "dpmpp-2m": Solver(dpmpp_2m, "karras"),
    "dpmpp-2m-sde": Solver(dpmpp_2m_sde, "karras", stochastic=True, brownian=True),
    "dpmpp-2s": Solver(dpmpp_2s, "loglinear", evaluations=_two),
    "dpmpp-3m": Solver(dpmpp_3m, "karras"),
    "dpmpp-3s": Solver(dpmpp_3s, "loglinear", evaluations=lambda n: 3 * n - 2),
    "dpmpp-sde": Solver(dpmpp_sde, "karras", stochastic=True, brownian=True, evaluations=_two),
    "euler": Solver(euler, "karras"),
    "euler-ancestral": Solver(euler_ancestral, "karras", stochastic=True),
    "heun": Solver(heun, "karras", stochastic=True, churn=True, evaluations=_two),
    "ipndm": Solver(ipndm, "karras"),
    "lms": Solver(lms, "karras"),
    "pc-ve": Solver(pc_ve, "loglinear", stochastic=True, evaluations=_two),
    "pc-vp": Solver(pc_vp, "time", stochastic=True, evaluations=_two),
    "restart": Solver(restart, "karras", stochastic=True, evaluations=lambda n: 2 * n - 1 + (2 * REPEATS * STEPS if n > 1 else 0)),
    "rk45": Solver(rk45, "loglinear", adaptive=True, evaluations=lambda n: 6 * n - 5),
    "unipc": Solver(unipc, "loglinear"),
    "unipc-1": Solver(partial(unipc, order=1), "loglinear"),
    "unipc-2": Solver(partial(unipc, order=2), "loglinear"),
}


def solver(name: str) -> Solver:
    """The solver of that name; UserError with the nearest names where there is none."""
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: {nearest(name, SOLVERS)}")
    return SOLVERS[name]
