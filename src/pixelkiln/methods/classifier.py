"""A classifier of noisy images, for classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4.1).

    L = E_{t, x0, eps} [ -log p(y | xt, t) ],   xt = alpha_t x0 + sigma_t eps

over all noise levels of a variance-preserving path. It answers at any noise level s = sigma_t / alpha_t in the coordinates x = x0 + s eps
that all solvers share, xt = x / sqrt(1 + s^2), so that it guides models of every schedule. It does not generate: it is a parent of
`classifier-guided`. At high noise nobody can tell the class; the report shows how far it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.protocols import Classifier, Method, Update
from ..core.recipe import DataConfig, EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Batch, DataInfo, Moment, Request, UserError
from ..nets.noisy import NoisyEncoder
from ..nets.unet import UNetConfig
from ..processes import cosine_path, times

__all__ = ["NoisyClassifier", "NoisyClassifierConfig", "classifier"]

MEASURED = Expect("accuracy", 0.966, "mnist", "pixelkiln train classifier --data mnist --out R --budget 3m --threads 1 (484 steps); its report, at noise 0.006",
                  "1 core of an AMD EPYC with AVX2, fp32")


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """The network: levels, widths and attention as of a U-Net's way down."""

    net: UNetConfig = field(default_factory=UNetConfig)
    dim: int = 128  # of the vector that carries the time


@final
class NoisyClassifier(Method, Classifier):
    """log p(label | x0 + s eps), trained over the levels of the cosine path."""

    averaged = ("net",)
    abilities = frozenset({Ability.LABEL})
    generates = False

    def __init__(self, info: DataInfo, config: NoisyClassifierConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        c, h, w = info.shape
        if len(info.classes) < 2:
            raise UserError(f"a classifier needs data with two classes or more, and these have {len(info.classes)}: give labeled images")
        if h % config.net.multiple or w % config.net.multiple:
            raise UserError(f"classifier: images of {h}x{w} do not divide by {config.net.multiple}; give --data.resolution a multiple of it")
        self.config, self.path = config, cosine_path()
        self.sigma_range = (self.path.s_min, self.path.s_max)
        self.net = NoisyEncoder(c, len(info.classes), config.dim, config.net)

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("classify", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times, images without a label left out; and the share that is right, at the cleaner and the noisier half of times."""
        x0, path = batch.x, self.path
        assert batch.cond.label is not None
        t = times(len(x0), path.t_max, path.t_min, x0.device)
        logits = self.net(path.noised(x0, torch.randn_like(x0), t), t).float()
        label = batch.cond.label
        each = F.cross_entropy(logits, label.clamp_min(0), reduction="none")  # (B,)
        known, right = (label >= 0).float(), (logits.argmax(1) == label).float()
        low = (t < 0.5 * path.t_max).float() * known
        high = known - low
        return {
            "loss": (each * known).sum() / known.sum().clamp_min(1),
            "accuracy_low_noise": (right * low).sum() / low.sum().clamp_min(1),
            "accuracy_high_noise": (right * high).sum() / high.sum().clamp_min(1),
        }

    def logits(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(label | x) (B, K) up to a constant a row, for x = x0 + sigma noise (B, C, H, W), sigma (B,)."""
        exact = (sigma.cpu() if sigma.device.type == "mps" else sigma).detach().double()  # the path is in float64, which MPS lacks
        t = self.path.t_of_ratio(exact).clamp(max=self.path.t_max).float().to(x.device)
        xt = (1 + exact**2).rsqrt().float().to(x.device)[:, None, None, None] * x
        logits: Tensor = self.net(xt, t)
        return logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of clean images x (B, C, H, W), at the path's lowest level of noise."""
        return self.net.maps(x, x.new_full((len(x),), self.path.t_min))

    def draw(self, request: Request) -> Tensor:
        """UserError: there is nothing to draw."""
        raise UserError("a classifier does not generate: give it as --parent classifier=RUN to 'pixelkiln train classifier-guided'")


def classifier(size: Size = "small") -> Recipe:
    """Labels of noisy images, to guide a diffusion model by (Dhariwal and Nichol 2021, arXiv 2105.05233)."""
    net = by_size(
        size,
        tiny=UNetConfig(width=16, mults=(1, 2), blocks=1, attention=(1,), patch=2),
        small=UNetConfig(width=48, mults=(1, 2), blocks=2, attention=(1,), patch=2, dropout=0.1),
        base=UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=5_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=256),
        opts={"main": OptConfig("adamw", lr=by_size(size, tiny=2e-3, small=1e-3, base=3e-4), weight_decay=0.05, clip=1.0, warmup=0.02, decay="cosine")},
        ema=EmaConfig(half_life=by_size(size, tiny=2_000, small=50_000, base=1_000_000)),
    )
    model = NoisyClassifierConfig(net, dim=by_size(size, tiny=32, small=128, base=512))
    return Recipe(
        stages=(Stage(NoisyClassifier, model, DataConfig(at_least=16, multiple=net.multiple), train),),
        family="diffusion",
        paper="Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233",
        summary="a classifier of noisy images, which guides a diffusion model (classifier-guided)",
        expect=by_size(size, tiny=(), small=(MEASURED,), base=()),
    )
