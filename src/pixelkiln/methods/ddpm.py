"""DDPM: denoising diffusion with a class-conditional U-Net (Ho et al. 2020, arXiv 2006.11239).

    q(xt | x0) = N(alpha_t x0, sigma_t^2 I),   alpha_t^2 + sigma_t^2 = 1                              eq. 4
    L = E_{t, x0, eps} [ w(t) || F(xt, t) - target ||^2 ],   xt = alpha_t x0 + sigma_t eps            eq. 14

The network F predicts eps, x0 or v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022, arXiv 2202.00512, section 4); the schedule is
the paper's linear one or the cosine one of Nichol and Dhariwal 2021 (arXiv 2102.09672); w is 1, or truncated in the signal-to-noise
ratio (min-SNR, Hang et al. 2023, arXiv 2303.09556). Labels are dropped per sample in training, which is what classifier-free
guidance needs (Ho and Salimans 2022, arXiv 2207.12598). Any solver of `pixelkiln.solvers` samples, in any number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Latent, Method, Update
from ..core.recipe import DataConfig, EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import noise, streams
from ..core.types import Ability, Batch, Condition, DataInfo, Moment, Request, UserError
from ..nets.conditioning import Conditioner
from ..nets.unet import UNet, UNetConfig
from ..objectives.denoising import Weighting, denoising_loss
from ..processes import Kind, cosine_path, linear_path, times, to_x0
from ..solvers import classifier_free, solver, spaced

__all__ = ["DDPM", "DDPMConfig", "ddpm"]

MEASURED = (
    Expect("fd", 0.34, "mnist", "pixelkiln train ddpm --data mnist --out R --budget 10m", "2 cores of an AMD EPYC (Zen 5), bf16"),
    Expect("accuracy", 0.989, "mnist", "pixelkiln evaluate R -n 2000", "2 cores of an AMD EPYC (Zen 5), bf16"),
)


@dataclass(frozen=True)
class DDPMConfig:
    """What is predicted, on which schedule, with which network; and how it is sampled unless the request says otherwise."""

    net: UNetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    predict: Kind = "v"
    schedule: Literal["linear", "cosine"] = "cosine"
    weighting: Weighting = "uniform"
    gamma: float = 5.0  # of min-SNR
    drop: float = 0.1  # share of samples that lose their label
    clip: bool = True  # keep estimates of x0 in [-1, 1] while sampling
    solver: str = "dpmpp-2m"
    steps: int = 20
    guidance: float = 1.25


@final
class DDPM(Method, Denoiser, Latent):
    """Diffusion in pixels; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    abilities = frozenset({Ability.STEPS, Ability.SOLVER, Ability.ETA, Ability.LABEL, Ability.GUIDANCE})

    def __init__(self, info: DataInfo, config: DDPMConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        c, h, w = info.shape
        if h % config.net.multiple or w % config.net.multiple:
            raise UserError(f"ddpm: images of {h}x{w} do not divide by {config.net.multiple}; give --data.resolution a multiple of it")
        self.config = config
        self.path = {"linear": linear_path, "cosine": cosine_path}[config.schedule]()
        self.sigma_range = (self.path.s_min, self.path.s_max)
        self.net = UNet(c, config.dim, config.net)
        self.condition = Conditioner(len(info.classes), config.dim, config.drop)
        if not info.classes:
            self.abilities = self.abilities - {Ability.LABEL, Ability.GUIDANCE}

    def updates(self) -> Sequence[Update]:
        """Eq. 14, the only row."""
        return (Update("denoise", ("net", "condition"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times; "loss" is its mean over the batch, also given for the cleaner and the noisier half."""
        x0, path, config = batch.x, self.path, self.config
        t = times(len(x0), path.t_max, path.t_min, x0.device)
        vec = self.condition(batch.cond, len(x0))
        each = denoising_loss(lambda xt, t: self.net(xt, t, vec), x0, torch.randn_like(x0), t, path, config.predict, config.weighting, config.gamma)
        low = (t < 0.5 * path.t_max).float()  # (B,)
        return {
            "loss": each.mean(),
            "low_noise": (each.detach() * low).sum() / low.sum().clamp_min(1),
            "high_noise": (each.detach() * (1 - low)).sum() / (1 - low).sum().clamp_min(1),
        }

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """E[x0 | x0 + sigma noise]: xt = alpha x, and the prediction turned into x0."""
        exact = sigma.cpu() if sigma.device.type == "mps" else sigma  # the path is in float64, which MPS lacks
        t = self.path.t_of_ratio(exact).clamp(max=self.path.t_max)
        alpha, s = (v.float().to(x.device) for v in (self.path.alpha(t), self.path.sigma(t)))  # (B,)
        xt = alpha[:, None, None, None] * x
        out = self.net(xt, t.float().to(x.device), self.condition(cond, len(x))).float()
        x0 = to_x0(self.config.predict, out, xt.float(), alpha, s)
        return x0.clamp(-1, 1) if self.config.clip else x0

    def sigmas(self, steps: int, solver_name: str) -> Tensor:
        """Levels of the path for a solver, (steps + 1,)."""
        return spaced(self.path, steps, solver(solver_name).spacing)

    def draw(self, request: Request) -> Tensor:
        """From noise to images by the requested solver; every sample has its own stream of noise."""
        gens = streams(request.seeds, "noise")
        first = noise(gens, tuple(self.shape), self.device)
        return self._solve(first, request, lambda: noise(gens, tuple(self.shape), self.device))

    def _solve(self, first: Tensor, request: Request, fresh: object) -> Tensor:
        """first: standard normal (B, C, H, W), the path's end."""
        config = self.config
        chosen = solver(request.solver or config.solver)
        if request.eta is not None and not chosen.eta:
            raise UserError(f"solver {request.solver or config.solver!r} does not take eta; ddim does")
        levels = self.sigmas(config.steps if request.steps is None else request.steps, request.solver or config.solver)
        x = first * (1 + float(levels[0]) ** 2) ** 0.5  # xt / alpha: variance-exploding coordinates
        guided = classifier_free(self.denoise, request.cond, Condition(), config.guidance if request.guidance is None else request.guidance)
        return chosen.run(guided, x, levels, noise=fresh, eta=request.eta or 0.0, callback=request.callback)  # type: ignore[arg-type]

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The noise at the end of the path, (n, C, H, W)."""
        return noise(streams(seeds, "noise"), tuple(self.shape))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """The probability-flow ODE from that noise (deterministic, DDIM unless the request names another solver)."""
        return self._solve(z, replace(request, solver=request.solver or "ddim"), None)


def ddpm(size: Size = "small") -> Recipe:
    """Class-conditional diffusion in pixels. small: two processor cores and minutes; base: the paper's 32x32 network, for a GPU."""
    net = by_size(
        size,
        tiny=UNetConfig(width=16, mults=(1, 2), blocks=1, attention=(1,), patch=2),
        small=UNetConfig(width=48, mults=(1, 2), blocks=1, attention=(1,), patch=2),
        base=UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1),
    )
    model = DDPMConfig(net, dim=by_size(size, tiny=32, small=256, base=512))
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=500_000),
        batch=by_size(size, tiny=32, small=64, base=256),
        opts={"main": OptConfig("adam", lr=by_size(size, tiny=2e-3, small=1e-3, base=2e-4), betas=(0.9, 0.99), clip=1.0, warmup=0.02, decay="cosine")},
        ema=EmaConfig(half_life=by_size(size, tiny=2_000, small=50_000, base=1_000_000)),
    )
    data = DataConfig(at_least=16, multiple=net.multiple, flip=False)
    return Recipe(
        stages=(Stage(DDPM, model, data, train),),
        family="diffusion",
        paper="Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239",
        summary="diffusion in pixels, U-Net, classes with classifier-free guidance",
        expect=by_size(size, tiny=(), small=MEASURED, base=()),
    )
