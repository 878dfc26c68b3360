"""EDM: the design space of diffusion models, in the coordinates where the noise level is the time (Karras et al. 2022, arXiv 2206.00364).

    x = x0 + s eps,   s the noise level itself                                                              section 2
    D(x; s) = c_skip(s) x + c_out(s) F(c_in(s) x; c_noise(s))                                               eq. 7
    c_skip = sd^2 / (s^2 + sd^2)   c_out = s sd / sqrt(s^2 + sd^2)   c_in = 1 / sqrt(s^2 + sd^2)   c_noise = ln(s) / 4     table 1
    L = E_{s, x0, eps} [ lambda(s) |D(x; s) - x0|^2 ],   lambda = (s^2 + sd^2) / (s sd)^2 = 1 / c_out^2     eq. 8 and table 1
    ln s ~ N(P_mean, P_std^2)                                                                               table 1

lambda makes it the plain squared error of F, whose target has unit variance at every level. sd is the deviation of the data.

`edm2` is the same with the magnitude-preserving network and the learned uncertainty of Karras et al. 2024 (arXiv 2312.02696): the loss
L e^-u(s) + u(s) (eq. 14, 15), whose minimum over u gives every noise level the same weight, whatever its error is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, Expect, OptConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import Batch, Condition, DataInfo, Moment
from ..nets.backbone import NetConfig, conditional
from ..nets.mpunet import MPUNetConfig
from ..nets.uncertainty import Uncertainty
from ..nets.unet import UNetConfig, unet_of
from ..objectives.denoising import denoising_loss, halves
from ..objectives.uncertainty import uncertain
from ..processes import Density, draw_times, edm_path
from ..solvers.diffusion import Free, Sampling, quick, training

__all__ = ["EDM", "EDMConfig", "edm", "edm2"]

SHORT = Density("log-normal", mean=0.0, std=1.8)  # for minutes of training, which decide about shapes: MNIST in two minutes, fd 1.2 against 2.4

PAPER = Sampling("heun", 18, guidance=1.25)


@dataclass(frozen=True)
class EDMConfig:
    """The network, the levels that it is trained at, and how it is sampled unless the request says otherwise."""

    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    sigma_data: float = 0.5  # deviation of the data, in [-1, 1]
    density: Density = field(default_factory=lambda: Density("log-normal", mean=-1.2, std=1.2))
    uncertainty: bool = False  # learn how large the error is at each level, and weight by it
    drop: float = 0.1  # share of samples that lose their condition
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    clip: bool = True  # keep estimates of x0 in [-1, 1] while sampling
    sampling: Sampling = PAPER


@final
class EDM(Free):
    """Diffusion with preconditioning; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    kind = "F"

    def __init__(self, info: DataInfo, config: EDMConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, self.clip, self.sampling, self.sigma_data = config, config.clip, config.sampling, config.sigma_data
        self.path = edm_path()
        self.condition, self.net = conditional(info, config)
        if config.uncertainty:
            self.uncertainty = Uncertainty()
        self.fits(config.net.multiple, config.captions)

    def updates(self) -> Sequence[Update]:
        """Eq. 8, the only row."""
        nets = ("net", "condition", "uncertainty") if self.config.uncertainty else ("net", "condition")
        return (Update("denoise", nets, self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified levels; "loss" is its mean over the batch, "error" the one without u, given for the cleaner and the noisier half."""
        x0 = batch.x
        t = draw_times(len(x0), self.path, self.config.density, x0.device)
        each = denoising_loss(lambda xt, t: self.network(self.scaled(xt, t), t, batch.cond), x0, torch.randn_like(x0), t, self.path, "F",
                              sigma_data=self.config.sigma_data)  # (B,)
        logged = halves(each, self.path.ratio(t) < self.config.sigma_data)
        if not self.config.uncertainty:
            return {"loss": each.mean(), **logged}
        return {"loss": uncertain(each, self.uncertainty(self.c_noise(t))).mean(), "error": each.detach().mean(), **logged}

    def c_noise(self, t: Tensor) -> Tensor:
        """ln(s) / 4 at the times t, (B,) float32."""
        return (self.path.ratio(t).log() / 4).float()

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F(c_in x, c_noise, label)."""
        out: Tensor = self.net(x, self.c_noise(t), self.condition(cond, len(x)))
        return out


def _recipe(size: Size, model: EDMConfig, opt: OptConfig | None, paper: str, summary: str, expect: tuple[Expect, ...]) -> Recipe:
    """What both have in common."""
    train = training(size, steps=400_000, batch=512, lr=1e-3, half_life=500_000, opt=opt)
    data = DataConfig(at_least=16, multiple=model.net.multiple)
    return Recipe((Stage(EDM, model, data, train),), "diffusion", paper, summary, expect)


def edm(size: Size = "small") -> Recipe:
    """Diffusion with EDM's preconditioning, noise levels and solver. small: two processor cores and minutes; base: 32 pixels, for a GPU."""
    net = unet_of(size, UNetConfig(width=128, mults=(2, 2, 2), blocks=4, attention=(1,), dropout=0.13))
    paper = "Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv 2206.00364"
    density = by_size(size, tiny=SHORT, small=SHORT, base=Density("log-normal", mean=-1.2, std=1.2))
    model = EDMConfig(net, by_size(size, tiny=32, small=256, base=512), density=density, sampling=quick(size, PAPER))
    return _recipe(size, model, None, paper, "diffusion with preconditioning, log-normal levels, Heun", on_mnist(size, "edm", "2m", fd=0.77, accuracy=0.972))


def edm2(size: Size = "small") -> Recipe:
    """EDM with a magnitude-preserving network and learned uncertainty. small: two processor cores and minutes; base: for a GPU."""
    net = by_size(
        size,
        tiny=MPUNetConfig(width=16, mults=(1, 2), blocks=1, attention=(1,), patch=2),
        small=MPUNetConfig(width=48, mults=(1, 2), blocks=1, attention=(1,), patch=2),
        base=MPUNetConfig(width=128, mults=(1, 2, 2), blocks=3, attention=(1, 2)),
    )
    density = by_size(size, tiny=SHORT, small=SHORT, base=Density("log-normal", mean=-0.8, std=1.6))
    model = EDMConfig(net, by_size(size, tiny=32, small=256, base=512), density=density, uncertainty=True, sampling=quick(size, PAPER))
    opt = OptConfig(by_size(size, tiny="adam", small="muon", base="adam"), lr=by_size(size, tiny=1e-2, small=1.5e-2, base=1e-2), betas=(0.9, 0.99), warmup=0.02, decay="cosine")
    paper = "Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, arXiv 2312.02696"
    return _recipe(size, model, opt, paper, "EDM with a magnitude-preserving network and learned uncertainty", on_mnist(size, "edm2", "2m", fd=4.68, accuracy=0.907))
