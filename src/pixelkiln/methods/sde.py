"""Score-based models: data turned to noise by a stochastic differential equation, and back by its reverse (Song et al. 2021, arXiv 2011.13456).

    dx = f(x, t) dt + g(t) dw,      p_0t(xt | x0) = N(alpha x0, sigma^2 I)                                  eq. 5 and 29
    dx = [f - g^2 score(x, t)] dt + g dw                                                                    eq. 6, backwards in time
    dx = [f - g^2 score(x, t) / 2] dt                                                                       eq. 13, the probability flow
    L = E_{t, x0, eps} [ lambda(t) || score(xt, t) + eps / sigma ||^2 ],   lambda = sigma^2                 eq. 7

lambda = sigma^2 makes it the plain error of the noise, L = E || F - eps ||^2 for the network F = -sigma score that is trained here.

    vp-sde      alpha = exp(-b(t) / 2), sigma^2 = 1 - alpha^2, b = int_0^t beta = 0.1 t + 9.95 t^2          eq. 11 and 33
    subvp-sde   the same alpha, sigma = 1 - alpha^2                                                         eq. 12 and 34
    ve-sde      alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t                                      eq. 9 and 31

The variance-exploding input is scaled to unit variance before it meets the network (Karras et al. 2022, c_in), since x itself grows with sigma.
Sampling by predictor and corrector is the solver "pc-vp" or "pc-ve" (algorithms 2 to 5), by probability flow any deterministic one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import Batch, Condition, DataInfo, Moment
from ..nets.backbone import NetConfig, conditional
from ..nets.unet import UNetConfig, unet_of
from ..objectives.denoising import denoising_loss, halves
from ..processes import Density, draw_times, linear_path, subvp_path, ve_path
from ..solvers.diffusion import Free, Sampling, training

__all__ = ["SDE", "SDEConfig", "subvp_sde", "ve_sde", "vp_sde"]


@dataclass(frozen=True)
class SDEConfig:
    """Which equation, with which network; and how it is sampled unless the request says otherwise."""

    equation: Literal["vp", "subvp", "ve"] = "vp"
    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    drop: float = 0.1  # share of samples that lose their condition
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    clip: bool = True  # keep estimates of x0 in [-1, 1] while sampling
    sampling: Sampling = field(default_factory=lambda: Sampling("pc-vp", 100, guidance=1.25))


@final
class SDE(Free):
    """A score network on the times of a stochastic differential equation; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    kind = "eps"

    def __init__(self, info: DataInfo, config: SDEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, self.clip, self.sampling = config, config.clip, config.sampling
        self.path = {"vp": linear_path, "subvp": subvp_path, "ve": ve_path}[config.equation]()
        self.sigma_data = 0.5 if config.equation == "ve" else None
        self.condition, self.net = conditional(info, config)
        self.fits(config.net.multiple, config.captions)

    def updates(self) -> Sequence[Update]:
        """Eq. 7, the only row."""
        return (Update("score", ("net", "condition"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times; "loss" is its mean over the batch, also given for the cleaner and the noisier half."""
        x0 = batch.x
        t = draw_times(len(x0), self.path, Density("uniform"), x0.device)
        each = denoising_loss(lambda xt, t: self.network(self.scaled(xt, t), t, batch.cond), x0, torch.randn_like(x0), t, self.path, "eps")  # (B,)
        return {"loss": each.mean(), **halves(each, t < 0.5 * self.path.t_max)}

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F(x, t, label) = -sigma score."""
        out: Tensor = self.net(x, t.float(), self.condition(cond, len(x)))
        return out


def _recipe(size: Size, equation: Literal["vp", "subvp", "ve"], solver: str, summary: str) -> Recipe:
    """What the three have in common."""
    expect = on_mnist(size, f"{equation}-sde", "2m", fd={"vp": 5.89, "subvp": 6.61, "ve": 14.6}[equation])
    net = unet_of(size, UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=4, attention=(1,), dropout=0.1))
    steps = by_size(size, tiny=10, small=50, base=1000) if solver.startswith("pc") else 18
    model = SDEConfig(equation, net, by_size(size, tiny=32, small=256, base=512), sampling=Sampling(solver, steps, guidance=1.25))
    train = training(size, steps=1_000_000, batch=128, lr=2e-4, half_life=900_000, muon=False)
    paper = "Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, arXiv 2011.13456"
    return Recipe((Stage(SDE, model, DataConfig(at_least=16, multiple=net.multiple), train),), "diffusion", paper, summary, expect)


def vp_sde(size: Size = "small") -> Recipe:
    """The variance-preserving equation. small: two processor cores and minutes; base: 32 pixels, for a GPU."""
    return _recipe(size, "vp", "pc-vp", "score matching on the variance-preserving SDE, predictor-corrector")


def subvp_sde(size: Size = "small") -> Recipe:
    """The sub-variance-preserving equation. small: two processor cores and minutes; base: 32 pixels, for a GPU."""
    return _recipe(size, "subvp", "heun", "score matching on the sub-VP SDE, probability flow")


def ve_sde(size: Size = "small") -> Recipe:
    """The variance-exploding equation. small: two processor cores and minutes; base: 32 pixels, for a GPU."""
    return _recipe(size, "ve", "pc-ve", "score matching on the variance-exploding SDE, predictor-corrector")
