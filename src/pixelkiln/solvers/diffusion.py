"""What all diffusion models share: how they sample. A family adds its network and its loss.

Legend: x noisy images in variance-exploding coordinates (B, C, H, W), s noise levels, xt = alpha x on the family's own path.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..core.protocols import Denoiser, Latent, Method
from ..core.rng import noise, streams
from ..core.types import Ability, Condition, Request, UserError
from ..processes import SIGMA_DATA, GaussianPath, Kind, to_x0
from . import SOLVERS, solver, spaced
from .brownian import Brownian
from .contract import Denoise, Noise
from .guidance import classifier_free
from .spacing import spacing_named

__all__ = ["KNOBS", "Diffusion", "Sampling", "guided", "solve"]

KNOBS = frozenset(
    {Ability.STEPS, Ability.SOLVER, Ability.SPACING, Ability.ETA, Ability.CHURN, Ability.GUIDANCE, Ability.INTERVAL, Ability.RESCALE, Ability.THRESHOLD}
)


@dataclass(frozen=True)
class Sampling:
    """How a model samples unless the request says otherwise; the fields are the request's."""

    solver: str = "dpmpp-2m"
    steps: int = 20
    spacing: str | None = None  # of the noise levels; none: as suits the solver
    eta: float = 0.0  # share of ancestral noise
    churn: float = 0.0  # S_churn
    guidance: float = 1.0  # classifier-free weight, 1 = off
    interval: tuple[float, float] | None = None  # noise levels between which there is guidance; none: everywhere
    rescale: float = 0.0  # share of the guided estimate that is brought back to the conditional one's deviation
    threshold: float | None = None  # percentile of dynamic thresholding, in (0, 1]

    def asked(self, request: Request) -> Sampling:
        """The same with what the request asks for; UserError for a knob that the solver does not have."""
        own = {name: getattr(request, name) for name in self.__dataclass_fields__ if getattr(request, name) is not None}
        order = replace(self, **own)
        chosen = solver(order.solver)
        for knob in ("eta", "churn"):
            if getattr(request, knob) is not None and not getattr(chosen, knob):
                able = " or ".join(name for name, each in SOLVERS.items() if getattr(each, knob))
                raise UserError(f"solver {order.solver!r} does not take {knob}: use --solver {able}, or leave {knob} out")
        return order


def guided(base: Denoiser, cond: Condition, order: Sampling) -> Denoise:
    """The denoiser of some samples, guided as the order says."""
    return classifier_free(base.denoise, cond, Condition(), order.guidance)


def solve(denoise: Denoise, x: Tensor, levels: Tensor, order: Sampling, fresh: Noise | None, request: Request) -> Tensor:
    """x0 (B, C, H, W) from x at levels[0], by the order's solver."""
    return solver(order.solver).run(denoise, x, levels, noise=fresh, eta=order.eta, churn=order.churn, callback=request.callback)


class Diffusion(Method, Denoiser, Latent):
    """A trained network F on a Gaussian path. A family sets `path`, `kind` (what F predicts), `sampling` and `clip` before use, and adds
    `network`, `updates` and its loss.

    sigma_data: None feeds xt itself to F; a number feeds c_in x with c_in = (s^2 + sigma_data^2)^-1/2 (Karras et al. 2022, table 1).
    """

    abilities = KNOBS | {Ability.LABEL}
    path: GaussianPath
    kind: Kind
    sampling: Sampling
    clip: bool = True  # keep estimates of x0 in [-1, 1]
    sigma_data: float | None = None

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F, (B, C, H, W), for its scaled input (B, C, H, W) at the times t (B,)."""

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The smallest and the largest noise level of the path."""
        return self.path.s_min, self.path.s_max

    def fits(self, multiple: int) -> None:
        """Called by a family once it is built: UserError where the images' sides do not divide by `multiple`; labels and guidance are
        refused where the data have no classes."""
        _, h, w = self.shape
        if h % multiple or w % multiple:
            raise UserError(f"{type(self).__name__.lower()}: images of {h}x{w} do not divide by {multiple}; give --data.resolution a multiple of it")
        if not self.info.classes:
            self.abilities = self.abilities - {Ability.LABEL, Ability.GUIDANCE, Ability.INTERVAL, Ability.RESCALE}

    def c_in(self, t: Tensor) -> Tensor:
        """The factor from x to the network's input at the times t, (B,) float64."""
        return self.path.alpha(t) if self.sigma_data is None else (self.path.ratio(t) ** 2 + self.sigma_data**2).rsqrt()

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """E[x0 | x0 + sigma noise]: the network's prediction turned into x0."""
        s = (sigma.cpu() if sigma.device.type == "mps" else sigma).double()  # the path is in float64, which MPS lacks
        t = self.path.t_of_ratio(s).clamp(self.path.t_min, self.path.t_max)
        alpha, share, t, c_in = (v.float().to(x.device) for v in (self.path.alpha(t), self.path.sigma(t), t, self.c_in(t)))  # (B,)
        out = self.network(c_in[:, None, None, None] * x, t, cond).float()
        x0 = to_x0(self.kind, out, alpha[:, None, None, None] * x.float(), alpha, share, self.sigma_data or SIGMA_DATA)
        return x0.clamp(-1, 1) if self.clip else x0

    def sigmas(self, steps: int, solver_name: str, spacing: str | None = None) -> Tensor:
        """Levels of the path for a solver, (steps + 1,), spaced as suits it or as asked for."""
        return spaced(self.path, steps, spacing_named(spacing) if spacing else solver(solver_name).spacing)

    def draw(self, request: Request) -> Tensor:
        """From noise to images by the requested solver; every sample has its own stream of noise."""
        gens, shape = streams(request.seeds, "noise"), tuple(self.shape)
        first = noise(gens, shape, self.device)
        if solver(request.solver or self.sampling.solver).brownian:
            return self._from(first, request, Brownian(request.seeds, shape, self.device))
        return self._from(first, request, lambda: noise(gens, shape, self.device))

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The noise at the end of the path, (n, C, H, W)."""
        return noise(streams(seeds, "noise"), tuple(self.shape))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """The probability-flow ODE from that noise (deterministic: DDIM unless the request names another solver)."""
        return self._from(z, replace(request, solver=request.solver or "ddim"), None)

    def _from(self, first: Tensor, request: Request, fresh: Noise | None) -> Tensor:
        """first: standard normal (B, C, H, W), the path's end."""
        order = self.sampling.asked(request)
        levels = self.sigmas(order.steps, order.solver, order.spacing)
        x = first * (1 + float(levels[0]) ** 2) ** 0.5  # as noisy as data of unit variance are there
        return solve(guided(self, request.cond, order), x, levels, order, fresh, request)

