"""Rectified flow: a straight line from data to noise, and the velocity along it (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747).

    xt = (1 - t) x0 + t eps,  t in [0, 1]                                   Liu et al., section 2.1 (there t runs the other way)
    L = E_{t, x0, eps} [ || u(xt, t) - (eps - x0) ||^2 ]                    Liu et al., eq. 1
    dx/dt = u(x, t),  from x_1 = eps down to t = 0                          the ordinary differential equation that is solved

Times are drawn from a logit-normal density, t = sigmoid(m + s z) (Esser et al. 2024, arXiv 2403.03206, eq. 19), and shifted towards the noise
for larger images, t' = a t / (1 + (a - 1) t) (eq. 23). In the solvers' coordinates x = xt / (1 - t) has the noise level t / (1 - t).

`dit` is the same with a transformer instead of the U-Net (Peebles and Xie 2023, arXiv 2212.09748, with the objective of SiT, Ma et al. 2024,
arXiv 2401.08740).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, Expect, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, Condition, DataInfo, Moment
from ..nets.backbone import NetConfig, conditional
from ..nets.dit import DiTConfig
from ..nets.unet import UNetConfig, unet_of
from ..objectives.denoising import denoising_loss, halves
from ..processes import Density, draw_times, flow_path
from ..solvers.diffusion import Free, Sampling, quick, training

__all__ = ["Flow", "FlowConfig", "dit", "flow"]


@dataclass(frozen=True)
class FlowConfig:
    """The network, the times that it is trained at, and how it is sampled unless the request says otherwise."""

    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    density: Density = field(default_factory=lambda: Density("logit-normal", mean=0.0, std=1.0))
    shift: float = 1.0  # towards the noise; above 1 for images of more than 64 pixels
    drop: float = 0.1  # share of samples that lose their condition
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    clip: bool = True  # keep estimates of x0 in [-1, 1] while sampling
    sampling: Sampling = field(default_factory=lambda: Sampling("dpmpp-2m", 20, guidance=1.25))


@final
class Flow(Free):
    """A velocity field between data and noise; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    kind = "velocity"

    def __init__(self, info: DataInfo, config: FlowConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, self.clip, self.sampling = config, config.clip, config.sampling
        self.path = flow_path(config.shift)
        self.condition, self.net = conditional(info, config)
        self.fits(config.net.multiple, config.captions)

    def updates(self) -> Sequence[Update]:
        """Eq. 1, the only row."""
        return (Update("velocity", ("net", "condition"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times; "loss" is its mean over the batch, also given for the cleaner and the noisier half."""
        x0 = batch.x
        t = draw_times(len(x0), self.path, self.config.density, x0.device)
        each = denoising_loss(lambda xt, t: self.network(xt, t, batch.cond), x0, torch.randn_like(x0), t, self.path, "velocity")  # (B,)
        return {"loss": each.mean(), **halves(each, self.path.sigma(t) < 0.5)}

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """u(xt, t, label); the network is told the share of noise, sigma(t)."""
        out: Tensor = self.net(x, self.path.sigma(t).float(), self.condition(cond, len(x)))
        return out


def _recipe(size: Size, net: NetConfig, train: TrainConfig, paper: str, summary: str, expect: tuple[Expect, ...]) -> Recipe:
    """What both have in common."""
    model = FlowConfig(net, by_size(size, tiny=32, small=256, base=512), sampling=quick(size, Sampling("dpmpp-2m", 20, guidance=1.25)))
    stage = Stage(Flow, model, DataConfig(at_least=16, multiple=net.multiple), train)
    return Recipe((stage,), "diffusion", paper, summary, expect)


def flow(size: Size = "small") -> Recipe:
    """Rectified flow in pixels. small: two processor cores and minutes; base: 32 pixels, for a GPU."""
    net = unet_of(size, UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1))
    paper = "Liu, Gong, Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022, arXiv 2209.03003"
    return _recipe(size, net, training(size, steps=400_000, batch=256, lr=2e-4, half_life=1_000_000), paper, "rectified flow in pixels, U-Net",
                   on_mnist(size, "flow", "2m", fd=0.40, accuracy=0.98))


def dit(size: Size = "small") -> Recipe:
    """Rectified flow with a transformer. small: two processor cores and minutes; base: the DiT-B of the paper, for a GPU."""
    net = by_size(
        size,
        tiny=DiTConfig(width=32, depth=2, heads=2, patch=4),
        small=DiTConfig(width=192, depth=6, heads=3, patch=4),
        base=DiTConfig(width=768, depth=12, heads=12, patch=2),
    )
    paper = "Peebles, Xie, Scalable Diffusion Models with Transformers, 2023, arXiv 2212.09748"
    train = training(size, steps=400_000, batch=256, lr=1e-4, half_life=1_000_000, muon=False)
    return _recipe(size, net, train, paper, "rectified flow in pixels, transformer (DiT)", on_mnist(size, "dit", "2m", fd=21.7, accuracy=0.623))
