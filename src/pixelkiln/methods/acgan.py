"""AC-GAN: the discriminator names the class, too (Odena, Olah, Shlens 2017, arXiv 1610.09585).

    L_S = E[log P(real | x)] + E[log P(fake | G(z, y))]                                                             eq. 2
    L_C = E[log P(y | x)]    + E[log P(y | G(z, y))]                                                                eq. 3

D maximises L_S + L_C, G maximises L_C - L_S. The class comes from the features of D by a linear layer, trained on real and generated images alike, as
cross-entropy of logits. G knows the label (beside z); D does not see it. L_C weighs `weight`: since what is easy to name scores best, a large
weight costs variety within classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.protocols import Method
from ..core.recipe import Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.dcgan import DCGANNets
from ..nets.players import Players, players
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["ACGAN", "ACGANConfig", "acgan"]


@dataclass(frozen=True)
class ACGANConfig(Setting):
    """DCGAN's nets, and the weight of the classification."""

    nets: Players = DCGANNets(condition="generator")
    rules: Rules = Rules("non-saturating")
    weight: float = 1.0


@final
class ACGAN(Game):
    """Auxiliary-classifier GAN."""

    judges = ("discriminator", "classifier")

    def __init__(self, info: DataInfo, config: ACGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)
        self.need_labels("generator")
        self.weight = config.weight
        head: Any = self.discriminator.head
        self.classifier = nn.Linear(head.in_features, len(info.classes))

    def wants(self, features: Tensor, label: Tensor | None, z: Tensor | None) -> Mapping[str, Tensor]:
        """-L_C of these images, weighted (eq. 3)."""
        assert label is not None
        return {"class": self.weight * F.cross_entropy(self.classifier(features).float(), label)}


def acgan(size: Size = "small") -> Recipe:
    """AC-GAN: a discriminator that names the class. Odena, Olah, Shlens 2017, arXiv 1610.09585."""
    width = by_size(size, tiny=8, small=32, base=64)
    rate = adam(size, small=2e-3, base=2e-4, betas=(0.5, 0.999))
    return Recipe(
        stages=(Stage(ACGAN, ACGANConfig(nets=DCGANNets(width, width, condition="generator")), data_for(size), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Odena, Olah, Shlens, Conditional Image Synthesis with Auxiliary Classifier GANs, 2017, arXiv 1610.09585",
        summary="a discriminator that names the class, too",
        expect=on_mnist(size, "acgan", "2m", "avx512-bf16", fd=2.18),
    )
