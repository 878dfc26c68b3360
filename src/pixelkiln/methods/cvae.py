"""The conditional VAE (Sohn, Lee, Yan, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS 2015).

    log p(x|y) >= E_q(z|x,y)[log p(x|y, z)] - KL(q(z|x, y) || p(z|y)),   y a label                                   Sohn et al. 2015, section 4

Encoder and decoder both know the label, so z only has to say what the label does not: style. Nothing forces it to: a z that also says the class costs
no more than log K nats, and then samples from one p(z) for all labels are of the wrong class. A learned prior is therefore p(z|y), as the paper's is:
a flow whose every layer sees the label. The label is a learned plane beside the image's channels, and a one-hot vector beside z.

A share `drop` of the labels is lost in training, so that the same nets also model p(x): codes, rebuilt images and the test bound, for which nobody
gives a label, are those of that model, and so are samples without one. Where the data have no classes this is the plain VAE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Ability, Batch, DataInfo, Moment, UserError
from ..nets.coders import coders, prior
from ..objectives.amortized import Amortized, Setting, checked
from ..objectives.variational import warmed_up

__all__ = ["CVAE", "CVAEConfig", "cvae"]


@dataclass(frozen=True)
class CVAEConfig(Setting):
    """A conditional VAE. beta weighs the KL in ELBO units, and rises to its value over the first `warmup` of training."""

    beta: float = 1.0
    warmup: float = 0.0
    drop: float = 0.1  # share of images that lose their label


@final
class CVAE(Amortized):
    """encoder: (x, y) -> (mu, log sigma^2); decoder: (z, y) -> p(x|y, z); prior: (u, y) -> z, where it is learned."""

    abilities = frozenset({Ability.LABEL})

    def __init__(self, info: DataInfo, config: CVAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        if min(config.beta, config.warmup) < 0:
            raise UserError("--model.beta and --model.warmup cannot be negative")
        if not 0 < config.drop < 1:
            raise UserError(f"--model.drop is {config.drop}: give a share above 0 (images to be coded or scored come without labels) and below 1")
        num = len(info.classes)
        super().__init__(info, checked(config), coders(info.shape, config, 2 * config.latent, num), prior(config, num), parents, labeled=num > 0)
        self.config = config
        if not self.labeled:
            self.abilities = frozenset()

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("elbo", self.averaged, self.loss, opt="main"),)

    def seen(self, label: Tensor | None) -> Tensor | None:
        """The labels of a batch (B,), each lost, -1, with probability `drop`."""
        if label is None or not self.labeled:
            return None
        return label.masked_fill(torch.rand(len(label), device=label.device) < self.config.drop, -1)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-L(x|y) averaged over the batch, in nats; `rec` and `kl` are the plain terms."""
        rec, kl, _, logged = self.parts(batch.x, self.seen(batch.cond.label))
        return {"loss": rec + self.config.beta * warmed_up(moment.progress, self.config.warmup) * kl, **logged}


def cvae(size: Size = "small") -> Recipe:
    """A convolutional VAE for a label, with a learned prior and 256-level likelihood. Sides are multiples of 4."""
    model = by_size(
        size,
        tiny=CVAEConfig(latent=4, width=4, hidden=16, prior="flow", flow_width=8, flow_layers=2),
        small=CVAEConfig(latent=20, width=16, hidden=256, prior="flow"),
        base=CVAEConfig(latent=64, width=64, depth=2, hidden=512, prior="flow", flow_width=256, flow_layers=8),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=256),
        opts={"main": OptConfig(lr=2e-3, decay="cosine", final=0.02)},
        ema=EmaConfig(half_life=50_000),
    )
    return Recipe(
        stages=(Stage(method=CVAE, model=model, data=DataConfig(multiple=4), train=train),),
        family="vae",
        paper="Sohn, Lee, Yan, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS 2015",
        summary="a VAE whose encoder and decoder know the label",
        expect=on_mnist(size, "cvae", "3m", "avx2", fd=2.81, accuracy=0.955),
    )
