"""IDDPM: diffusion with a learned variance and a likelihood (Nichol and Dhariwal 2021, arXiv 2102.09672).

A chain of T steps; the network has twice the image's channels, the prediction that gives the mean, and v, which gives the variance:

    p(x_{i-1} | x_i) = N(mu, Sigma),   log Sigma = f log beta_i + (1 - f) log beta_tilde_i,   f = (v + 1) / 2         eq. 15
    L_hybrid = L_simple + lambda L_vlb,   lambda = 0.001,   mu without gradient in L_vlb                              eq. 16
    L_vlb = L_0 + L_1 + ... + L_T, in bits per dimension                                                              eq. 4 to 7

One step i is drawn per image, so L_vlb is estimated by T L_{i-1}; `resample` draws i in proportion to the root of its mean squared loss
(section 3.3), which is for the objective "vlb" alone. Times are those of a continuous path: a shorter chain has betas of its own, and the
network is told the time that it knows from training. `--solver ddpm` samples with the learned variance, all other solvers use the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Method, Score, Update
from ..core.recipe import DataConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.rng import noise, streams
from ..core.types import Batch, Condition, DataInfo, Moment, Request, UserError
from ..nets.backbone import NetConfig, conditional
from ..nets.unet import UNetConfig, unet_of
from ..objectives.bound import Bound, chosen_steps, step_nats, variational_bound
from ..objectives.likelihoods import bits_per_dim
from ..objectives.uncertainty import Draw, LossBins
from ..processes import betas, cosine_path, linear_path, mix, strata, target, to_x0
from ..processes.parameterization import column
from ..solvers import ddpm_learned
from ..solvers.diffusion import Free, Sampling, guided, training

__all__ = ["IDDPM", "IDDPMConfig", "iddpm"]


@dataclass(frozen=True)
class IDDPMConfig:
    """The chain, what is predicted and minimized, with which network; and how it is sampled unless the request says otherwise."""

    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    T: int = 1000  # steps of the chain
    predict: Literal["eps", "v"] = "v"
    schedule: Literal["linear", "cosine"] = "cosine"
    objective: Literal["hybrid", "vlb"] = "hybrid"
    weight: float = 1e-3  # lambda, of L_vlb in the hybrid objective
    resample: bool = False  # steps in proportion to their losses
    drop: float = 0.1  # share of samples that lose their condition
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    clip: bool = True  # keep estimates of x0 in [-1, 1]
    sampling: Sampling = field(default_factory=lambda: Sampling("ddpm", 50, guidance=1.25))


@final
class Watched(Denoiser):
    """The model as a denoiser that keeps the share f of its last evaluation: guidance changes the mean alone, never the variance."""

    def __init__(self, base: IDDPM) -> None:
        self.base, self.sigma_range, self.clip = base, base.sigma_range, base.clip
        self.share = torch.zeros(())

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        D, self.share = self.base.moments(x, sigma, cond)
        return D

    def sigmas(self, steps: int, solver: str, spacing: str | None = None, levels: tuple[float, float] | None = None) -> Tensor:
        return self.base.sigmas(steps, solver, spacing, levels)


@final
class IDDPM(Free):
    """Diffusion in pixels whose network knows how sure it is; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    num_images = 500

    def __init__(self, info: DataInfo, config: IDDPMConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        if config.T < 2:
            raise UserError(f"--model.T is {config.T}: a chain has at least 2 steps")
        self.config, self.kind, self.clip, self.sampling = config, config.predict, config.clip, config.sampling
        self.path = {"linear": linear_path, "cosine": cosine_path}[config.schedule]()
        self.levels = torch.cat([torch.zeros(1, dtype=torch.float64), betas(self.path, config.T).s])  # (T + 1,)
        self.fits(config.net.multiple, config.captions)
        self.condition, self.net = conditional(info, config, out_channels=2 * info.shape.channels)
        self.bins = LossBins(min(config.T, 100)) if config.resample else None

    def updates(self) -> Sequence[Update]:
        """One row; the bins of losses change with it."""
        return (Update("denoise", ("net", "condition") + ("bins",) * self.config.resample, self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_hybrid or L_vlb over stratified steps i = 1..T; "simple" and "bits_per_dim" (L_0 + ... + L_{T-1}) are its parts."""
        x0, c = batch.x, self.config
        n, uniform = len(x0), self.bins is None
        drawn = Draw(strata(n, x0.device), torch.ones(n, device=x0.device)) if self.bins is None else self.bins.draw(n)
        i = (drawn.q * c.T).long() + 1  # (B,)
        t = self.path.t_max * i.double() / c.T
        alpha, sigma, eps = self.path.alpha(t), self.path.sigma(t), torch.randn_like(x0)
        xt = mix(alpha, x0, sigma, eps)
        out, share = self.both(xt, t, batch.cond)
        simple = (out - target(c.predict, x0, eps, alpha, sigma)).square().flatten(1).mean(1)  # (B,)
        D = to_x0(c.predict, out, xt, alpha, sigma)
        if c.objective == "hybrid":  # the variance learns to fit the mean that samples, and leaves it alone
            D = D.detach().clamp(-1, 1) if c.clip else D.detach()
        bits = c.T * bits_per_dim(-step_nats(x0, D, share, i, self.levels), self.shape.numel)  # (B,)
        each = simple + c.weight * bits if c.objective == "hybrid" else bits
        if self.bins is not None:
            self.bins.update(drawn.q, each)
        means = {"loss": each, "simple": simple.detach(), "bits_per_dim": bits.detach()}
        return {name: (value if uniform else drawn.weight * value).mean() for name, value in means.items()}

    def both(self, xt: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """The prediction and the share f = (v + 1) / 2 of log beta in the log-variance, (B, C, H, W) float32 each."""
        out, v = self.net(xt, t.float(), self.condition(cond, len(xt))).float().chunk(2, dim=1)
        return out, (v + 1) / 2

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The prediction that gives the mean."""
        return self.both(x, t, cond)[0]

    def moments(self, x: Tensor, s: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """D = E[x0 | x] as `denoise` gives it, and f, for x at the levels s (B,)."""
        t = self.path.t_of_ratio(s).clamp(max=self.path.t_max)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        xt = column(alpha, x) * x
        out, share = self.both(xt, t, cond)
        D = to_x0(self.kind, out, xt, alpha, sigma)
        return D.clamp(-1, 1) if self.clip else D, share

    def draw(self, request: Request) -> Tensor:
        """As every diffusion model; the solver ddpm takes the learned variance."""
        order = self.sampling.asked(request)
        if order.solver != "ddpm":
            return super().draw(request)
        gens, shape = streams(request.seeds, "noise"), tuple(self.shape)
        levels = self.sigmas(order.steps, order.solver, order.spacing, order.levels)
        x = noise(gens, shape, self.device) * (1 + float(levels[0]) ** 2) ** 0.5
        watched = Watched(self)
        denoise = guided(watched, request.cond, order)

        def moments(x: Tensor, s: float) -> tuple[Tensor, Tensor]:
            D = denoise(x, s)
            return D, watched.share[: len(x)]  # with guidance the conditional half comes first

        return ddpm_learned(moments, x, levels, noise=lambda: noise(gens, shape, self.device), callback=request.callback)

    def bound(self, x: Tensor, samples: int, gen: torch.Generator) -> Bound:
        """The bound of images (B, C, H, W) from `samples` steps of each, all of them where T allows; without labels."""
        std = (1 + float(self.levels[-1]) ** 2) ** 0.5
        steps = chosen_steps(len(x), self.config.T, samples, gen)
        return variational_bound(
            lambda x, s: self.moments(x, s, Condition()), x, self.levels, steps, lambda: torch.randn(x.shape, generator=gen).to(x), std
        )

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """-(L_T + ... + L_0), a bound on the log-probability of 8-bit images x in [-1, 1]; samples: network evaluations an image."""
        how = f"{min(max(samples, 2), self.config.T)} of {self.config.T} steps an image"
        return Score(-self.bound(x, samples, gen).nats, "bound", "8-bit images, without their labels", 0.0, how)

    @torch.no_grad()
    def terms(self, x: Tensor, samples: int, gen: torch.Generator) -> Tensor:
        """Mean nats of the steps of the bound, (K, 2)."""
        return self.bound(x, samples, gen).curve()


def iddpm(size: Size = "small") -> Recipe:
    """Diffusion with a learned variance. small: two processor cores and minutes; base: widths of the paper's 32x32 network, for a GPU."""
    net = unet_of(size, UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=3, attention=(1, 2), dropout=0.3))
    model = IDDPMConfig(net, dim=by_size(size, tiny=32, small=256, base=512))
    train = training(size, steps=500_000, batch=128, lr=1e-4, half_life=1_000_000)
    return Recipe(
        stages=(Stage(IDDPM, model, DataConfig(at_least=16, multiple=net.multiple, flip=False), train),),
        family="diffusion",
        paper="Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv 2102.09672",
        summary="diffusion with a learned variance and a bound on the likelihood, in bits per dimension",
        expect=on_mnist(size, "iddpm", "2m", fd=0.64, accuracy=0.976),
    )
