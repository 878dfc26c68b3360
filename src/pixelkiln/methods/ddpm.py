"""DDPM: denoising diffusion with a class-conditional U-Net (Ho et al. 2020, arXiv 2006.11239).

    q(xt | x0) = N(alpha_t x0, sigma_t^2 I),   alpha_t^2 + sigma_t^2 = 1                              eq. 4
    L = E_{t, x0, eps} [ w(t) || F(xt, t) - target ||^2 ],   xt = alpha_t x0 + sigma_t eps            eq. 14

The network F predicts eps, x0, v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022, arXiv 2202.00512, section 4) or one of three others;
the schedule is the cosine one of Nichol and Dhariwal 2021 (arXiv 2102.09672), the paper's linear one, or any other of docs/processes.md,
as are w (1, or truncated in the signal-to-noise ratio: min-SNR, Hang et al. 2023, arXiv 2303.09556) and the density of the times. Labels are dropped per sample in training, which is what classifier-free
guidance needs (Ho and Salimans 2022, arXiv 2207.12598). Any solver of `pixelkiln.solvers` samples, in any number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import Batch, Condition, DataInfo, Moment
from ..nets.backbone import NetConfig, conditional
from ..nets.unet import UNetConfig, unet_of
from ..objectives.denoising import Weighting, denoising_loss, halves
from ..objectives.uncertainty import LossBins
from ..processes import PATHS, SIGMA_DATA, Density, Kind, PathName, draw_times, keeps_data
from ..solvers.diffusion import Free, Sampling, quick, training

__all__ = ["DDPM", "DDPMConfig", "ddpm"]

BINS = 100  # of time, for --model.balance


@dataclass(frozen=True)
class DDPMConfig:
    """What is predicted, on which schedule, with which network; and how it is sampled unless the request says otherwise."""

    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    predict: Kind = "v"
    schedule: PathName = "cosine"
    density: Density = field(default_factory=Density)  # of the times that it is trained at
    weighting: Weighting = "uniform"
    gamma: float | None = None  # of min-snr and soft-min-snr (none: 5) or p2 (none: 1)
    balance: bool = False  # divide each loss by the running mean of its time's
    drop: float = 0.1  # share of samples that lose their condition
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    clip: bool = True  # keep estimates of x0 in [-1, 1] while sampling
    sampling: Sampling = field(default_factory=lambda: Sampling("dpmpp-2m", 20, guidance=1.25))


@final
class DDPM(Free):
    """Diffusion in pixels; class-conditional where the data have classes."""

    averaged = ("net", "condition")

    def __init__(self, info: DataInfo, config: DDPMConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, self.kind, self.clip, self.sampling = config, config.predict, config.clip, config.sampling
        self.path = PATHS[config.schedule]()
        if self.path.scale is keeps_data:  # noisy images of any size, which no network should be fed
            self.sigma_data = SIGMA_DATA
        self.fits(config.net.multiple, config.captions)
        self.condition, self.net = conditional(info, config)
        self.bins = LossBins(BINS) if config.balance else None

    def updates(self) -> Sequence[Update]:
        """Eq. 14, the only row."""
        return (Update("denoise", ("net", "condition") + ("bins",) * self.config.balance, self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times; "loss" is its mean over the batch, also given for the cleaner and the noisier half."""
        x0, path, config = batch.x, self.path, self.config
        t = draw_times(len(x0), path, config.density, x0.device)
        predict = lambda xt, t: self.network(self.scaled(xt, t), self.told(t), batch.cond)
        each = denoising_loss(predict, x0, torch.randn_like(x0), t, path, config.predict, config.weighting, config.gamma)  # (B,)
        logged = halves(each, t < 0.5 * path.t_max)
        if self.bins is None:
            return {"loss": each.mean(), **logged}
        q = t / path.t_max
        self.bins.update(q, each)
        return {"loss": self.bins.normalized(q, each).mean(), "error": each.detach().mean(), **logged}

    def told(self, t: Tensor) -> Tensor:
        """t, but ln(s) / 4 on the Laplace path, whose high noise levels have times that round to one number."""
        return (self.path.ratio(t).log() / 4).float() if self.config.schedule == "laplace" else t

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F(xt, t, label), or F(c_in x, t, label) on a path that keeps the data."""
        out: Tensor = self.net(x, t.float(), self.condition(cond, len(x)))
        return out


def ddpm(size: Size = "small") -> Recipe:
    """Class-conditional diffusion in pixels. small: two processor cores and minutes; base: the paper's 32x32 network, for a GPU."""
    net = unet_of(size, UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1))
    model = DDPMConfig(net, dim=by_size(size, tiny=32, small=256, base=512), sampling=quick(size, Sampling("dpmpp-2m", 20, guidance=1.25)))
    train = training(size, steps=500_000, batch=256, lr=2e-4, half_life=1_000_000)
    data = DataConfig(at_least=16, multiple=net.multiple, flip=False)
    return Recipe(
        stages=(Stage(DDPM, model, data, train),),
        family="diffusion",
        paper="Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239",
        summary="diffusion in pixels, U-Net, classes with classifier-free guidance",
        expect=on_mnist(size, "ddpm", "2m", fd=0.51, accuracy=0.98),
    )
