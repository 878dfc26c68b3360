"""Conditional GAN: both players know the label (Mirza and Osindero 2014, arXiv 1411.1784).

    min_G max_D  E_x[log D(x | y)] + E_z[log(1 - D(G(z | y) | y))]                                                  eq. 2

y joins z as a one-hot vector and the image as a learned plane; generated images are drawn for the labels of the real batch, so that labels occur as
often as in the data, and D sees each image beside the label that it was made for. The paper's nets are perceptrons; these are DCGAN's
(`--model.nets mlp --model.nets.condition concat` for the paper's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..core.protocols import Method
from ..core.recipe import Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.dcgan import DCGANNets
from ..nets.players import Players, players
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["CGAN", "CGANConfig", "cgan"]


@dataclass(frozen=True)
class CGANConfig(Setting):
    """DCGAN's nets with labels beside their inputs."""

    nets: Players = DCGANNets(condition="concat")
    rules: Rules = Rules("non-saturating")


@final
class CGAN(Game):
    """Conditional GAN."""

    def __init__(self, info: DataInfo, config: CGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)
        self.need_labels("concat")


def cgan(size: Size = "small") -> Recipe:
    """Conditional GAN: labels beside the inputs of both players. Mirza and Osindero 2014, arXiv 1411.1784."""
    width = by_size(size, tiny=8, small=32, base=64)
    rate = adam(size, small=2e-3, base=2e-4, betas=(0.5, 0.999))
    return Recipe(
        stages=(Stage(CGAN, CGANConfig(nets=DCGANNets(width, width, condition="concat")), data_for(size), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Mirza, Osindero, Conditional Generative Adversarial Nets, 2014, arXiv 1411.1784",
        summary="labels beside the inputs of both players",
        expect=on_mnist(size, "cgan", "2m", "avx512-bf16", fd=1.37),
    )
