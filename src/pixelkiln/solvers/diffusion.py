"""What all diffusion models share: how they sample. A family adds its network and its loss.

Legend: x noisy images in variance-exploding coordinates (B, C, H, W), s noise levels, xt = alpha x on the family's own path.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Latent, Likelihood, Method, Score
from ..core.recipe import EmaConfig, OptConfig, Size, TrainConfig, by_size
from ..core.rng import noise, streams
from ..core.types import Ability, Condition, Request, UserError
from ..processes import SIGMA_DATA, GaussianPath, Kind, to_x0
from . import SOLVERS, solver, spaced
from .brownian import Brownian
from .contract import Denoise, Noise
from .guidance import classifier_free, null_of, thresholded
from .likelihood import ode_log_prob, signs
from .spacing import spacing_named

__all__ = ["KNOBS", "PASSED_ON", "Diffusion", "Free", "Sampling", "clamped", "drawn", "from_noise", "guided", "noise_for", "quick", "solve", "training"]

KNOBS = frozenset(
    {Ability.STEPS, Ability.SOLVER, Ability.SPACING, Ability.LEVELS, Ability.ETA, Ability.CHURN, Ability.GUIDANCE, Ability.INTERVAL, Ability.RESCALE, Ability.THRESHOLD}
)
PASSED_ON = KNOBS | {Ability.LABEL, Ability.TEXT}  # what an editing method takes where its parent does: no pictures


@dataclass(frozen=True)
class Sampling:
    """How a model samples unless the request says otherwise; the fields are the request's."""

    solver: str = "dpmpp-2m"
    steps: int = 20
    spacing: str | None = None  # of the noise levels; none: as suits the solver
    levels: tuple[float, float] | None = None  # the lowest and the highest noise level; none: as the model has them
    eta: float = 0.0  # share of ancestral noise
    churn: float = 0.0  # S_churn
    guidance: float = 1.0  # classifier-free weight, 1 = off
    interval: tuple[float, float] | None = None  # noise levels between which there is guidance; none: everywhere
    rescale: float = 0.0  # share of the guided estimate that is brought back to the conditional one's deviation
    threshold: float | None = None  # percentile of dynamic thresholding, in (0, 1]

    def asked(self, request: Request) -> Sampling:
        """The same with what the request asks for; UserError for a knob that the solver does not have, or a number that means nothing."""
        own = {name: getattr(request, name) for name in self.__dataclass_fields__ if getattr(request, name) is not None}
        order = replace(self, **own)
        chosen = solver(order.solver)
        for knob in ("eta", "churn"):
            if getattr(request, knob) is not None and not getattr(chosen, knob):
                able = " or ".join(name for name, each in SOLVERS.items() if getattr(each, knob))
                raise UserError(f"solver {order.solver!r} does not take {knob}: use --solver {able}, or leave {knob} out")
        if order.levels is not None and not 0 < order.levels[0] < order.levels[1] < math.inf:
            raise UserError(f"levels {order.levels[0]:g},{order.levels[1]:g} are not a range of noise: give the lowest, above 0, and the highest")
        if not math.isfinite(order.guidance):
            raise UserError(f"guidance {order.guidance} is not a number to weigh by: 1 is off, 1 to 4 is usual")
        if not 0 <= order.churn < math.inf:
            raise UserError(f"churn {order.churn} is not a number from 0: 0 is off, 10 to 80 is usual")
        return order


def guided(base: Denoiser, cond: Condition, order: Sampling) -> Denoise:
    """The denoiser of some samples, guided as the order says; within [-1, 1], which guidance leaves, where the base keeps its estimates there."""
    denoise = classifier_free(base.denoise, cond, null_of(cond), order.guidance, order.interval, order.rescale)
    return (lambda x, s: denoise(x, s).clamp(-1, 1)) if base.clip and order.threshold is None else clamped(denoise, order)


def clamped(denoise: Denoise, order: Sampling) -> Denoise:
    """With the order's threshold, if any."""
    return denoise if order.threshold is None else thresholded(denoise, order.threshold)


def from_noise(base: Denoiser, denoise: Denoise, first: Tensor, order: Sampling, fresh: Noise | None, request: Request) -> Tensor:
    """Images (B, C, H, W) by a guided denoiser from standard normal `first` (B, C, H, W), the end of the path of `base`.

    UserError where there is no fresh noise and the solver draws some.
    """
    chosen = solver(order.solver)
    if fresh is None and chosen.stochastic and not (chosen.eta and order.eta == 0) and not (chosen.churn and order.churn == 0):
        raise UserError(f"an image is a function of its latent only by a solver without noise of its own, and {order.solver} draws some here: "
                        "give --solver ddim or dpmpp-2m, and leave out eta and churn")
    levels = base.sigmas(order.steps, order.solver, order.spacing, order.levels)
    x = first * (1 + float(levels[0]) ** 2) ** 0.5  # as noisy as data of unit variance are there
    return solve(denoise, x, levels, order, fresh, request)


def drawn(base: Denoiser, denoise: Denoise, order: Sampling, request: Request, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """`from_noise`, every sample from its own stream of noise."""
    gens = streams(request.seeds, "noise")
    first = noise(gens, shape, device)
    return from_noise(base, denoise, first, order, noise_for(gens, order, request, shape, device), request)


def noise_for(gens: list[torch.Generator], order: Sampling, request: Request, shape: tuple[int, ...], device: torch.device) -> Noise:
    """The noise that the order's solver draws on its way, sample by sample from `gens`, or a Brownian path of its seed."""
    if solver(order.solver).brownian:
        return Brownian(request.seeds, shape, device)
    return lambda: noise(gens, shape, device)


def solve(denoise: Denoise, x: Tensor, levels: Tensor, order: Sampling, fresh: Noise | None, request: Request) -> Tensor:
    """x0 (B, C, H, W) from x at levels[0], by the order's solver."""
    return solver(order.solver).run(denoise, x, levels, noise=fresh, eta=order.eta, churn=order.churn, callback=request.callback)


def training(size: Size, *, steps: int, batch: int, lr: float, half_life: float, opt: OptConfig | None = None, muon: bool = True) -> TrainConfig:
    """How a family trains: tiny and small are the same for all, so that they can be compared; the arguments are those of base.

    muon: small takes it, with batches of 128, which halves the distance after minutes of training for all that predict the image, v, F or a
    velocity with a U-Net (docs/diffusion.md); else Adam with batches of 64. opt: another optimizer, for all sizes.
    """
    muon = muon and size == "small"
    adam = OptConfig("adam", lr=by_size(size, tiny=2e-3, small=1e-3, base=lr), betas=(0.9, 0.99), clip=1.0, warmup=0.02, decay="cosine")
    return TrainConfig(
        steps=by_size(size, tiny=200, small=5_000 if muon else 10_000, base=steps),
        batch=by_size(size, tiny=32, small=128 if muon else 64, base=batch),
        opts={"main": opt or (replace(adam, kind="muon", lr=1.5e-3) if muon else adam)},
        ema=EmaConfig(half_life=by_size(size, tiny=2_000, small=50_000, base=half_life)),
    )


def quick(size: Size, base: Sampling) -> Sampling:
    """How a family samples: as `base`, but for tiny and small, which are the same for all.

    After minutes of training the estimates at little noise are the worst, and steps there add specks: 10 steps that end at 0.05 are better than 20
    that end at 0.001, and half the work (docs/diffusion.md).
    """
    few = Sampling("dpmpp-2m", 10, levels=(0.05, 80.0), guidance=1.25)
    found: Sampling = by_size(size, tiny=few, small=few, base=base)
    return found


class Diffusion(Method, Denoiser):
    """A trained network F on a Gaussian path. A family sets `path`, `kind` (what F predicts), `sampling` and `clip` before use, and adds
    `network`, `updates` and its loss. One that needs no picture to begin with is a `Free`.

    sigma_data: None feeds xt itself to F; a number feeds c_in x with c_in = (s^2 + sigma_data^2)^-1/2 (Karras et al. 2022, table 1).
    """

    abilities = KNOBS | {Ability.LABEL, Ability.TEXT}
    path: GaussianPath
    kind: Kind
    sampling: Sampling
    clip: bool = True  # keep estimates of x0 in [-1, 1]
    sigma_data: float | None = None
    num_images = 200

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F, (B, C, H, W), for its scaled input (B, C, H, W) at the times t (B,), as `told`."""

    def told(self, t: Tensor) -> Tensor:
        """What F is told of the times t, (B,) float64 -> (B,)."""
        return t

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The smallest and the largest noise level of the path."""
        return self.path.s_min, self.path.s_max

    def fits(self, multiple: int, captions: int = 0) -> None:
        """Called by a family: UserError where the images' sides do not divide by `multiple`, where there are no captions for it to read, or
        where the prediction cannot be turned into an image at the path's end. What the data do not have is refused of requests."""
        _, h, w = self.shape
        if h % multiple or w % multiple:
            raise UserError(f"{type(self).__name__.lower()}: images of {h}x{w} do not divide by {multiple}; give --data.resolution a multiple of it")
        if self.kind in ("eps", "score") and self.path.t_top < self.path.t_max:
            raise UserError(f"the {self.path.name} path ends in pure noise, where {self.kind} says nothing about the image: predict v, velocity, x0 or F")
        if captions and not self.info.texts:
            raise UserError("--model.captions: the data have none; give pictures with captions (a metadata.jsonl with text, say), or leave it out")
        if captions or not self.info.classes:
            self.abilities = self.abilities - {Ability.LABEL}
        if not captions:
            self.abilities = self.abilities - {Ability.TEXT}
        if not captions and not self.info.classes:
            self.abilities = self.abilities - {Ability.GUIDANCE, Ability.INTERVAL, Ability.RESCALE}

    def c_in(self, t: Tensor) -> Tensor:
        """The factor from x to the network's input at the times t, (B,) float64."""
        return self.path.alpha(t) if self.sigma_data is None else (self.path.ratio(t) ** 2 + self.sigma_data**2).rsqrt()

    def scaled(self, xt: Tensor, t: Tensor) -> Tensor:
        """The network's input for xt = alpha_t x0 + sigma_t eps, (B, C, H, W), at the times t, (B,) float64."""
        return xt if self.sigma_data is None else (self.c_in(t) / self.path.alpha(t)).float()[:, None, None, None] * xt

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """E[x0 | x0 + sigma noise]: the network's prediction turned into x0."""
        s = (sigma.cpu() if sigma.device.type == "mps" else sigma).double()  # the path is in float64, which MPS lacks
        t = self.path.t_of_ratio(s).clamp(self.path.t_min, self.path.t_max)
        alpha, share, t, c_in = (v.float().to(x.device) for v in (self.path.alpha(t), self.path.sigma(t), self.told(t), self.c_in(t)))  # (B,)
        out = self.network(c_in[:, None, None, None] * x, t, cond).float()
        x0 = to_x0(self.kind, out, alpha[:, None, None, None] * x.float(), alpha, share, self.sigma_data or SIGMA_DATA)
        return x0.clamp(-1, 1) if self.clip else x0

    def sigmas(self, steps: int, solver_name: str, spacing: str | None = None, levels: tuple[float, float] | None = None) -> Tensor:
        """Levels of the path for a solver, (steps + 1,), spaced as suits it or as asked for, within the given range or the model's own."""
        return spaced(self.path, steps, spacing_named(spacing) if spacing else solver(solver_name).spacing, levels or self.sampling.levels)

    def draw(self, request: Request) -> Tensor:
        """From noise to images by the requested solver; every sample has its own stream of noise."""
        order = self.sampling.asked(request)
        return drawn(self, guided(self, request.cond, order), order, request, tuple(self.shape), self.device)


class Free(Diffusion, Latent, Likelihood):
    """One that draws from noise alone: the noise is a latent, and the probability-flow ODE has a density."""

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The noise at the end of the path, (n, C, H, W)."""
        return noise(streams(seeds, "noise"), tuple(self.shape))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """The probability-flow ODE from that noise: DDIM unless the request names another solver, without fresh noise, however the model samples else.

        UserError for a solver, or an eta or a churn in the request, that draws noise of its own.
        """
        request = replace(request, solver=request.solver or "ddim")
        order = replace(self.sampling, eta=0.0, churn=0.0).asked(request)
        return from_noise(self, guided(self, request.cond, order), z, order, None, request)

    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """Log-density of dequantized 8-bit images x in [-1, 1] along the probability-flow ODE, without labels; one probe, samples / 4 steps."""
        steps, (low, high) = max(1, samples // 4), self.sigma_range
        x = x + (2 * torch.rand(x.shape, generator=gen) - 1).to(x) / 255  # uniform over a level
        probes, std = signs(1, tuple(x.shape), gen).to(x), (1 + high**2) ** 0.5
        nats = ode_log_prob(lambda x, s: self.denoise(x, x.new_full((len(x),), s), Condition()), x, low, high, std=std, steps=steps, probes=probes)
        of = f"density of uniformly dequantized 8-bit images at noise level {low:.3g}, without their labels"
        return Score(nats, "estimate", of, math.log(2 / 255), f"ODE of {steps} steps, 1 probe")
