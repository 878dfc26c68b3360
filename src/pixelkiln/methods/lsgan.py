"""LSGAN: least squares in place of the cross-entropy (Mao et al. 2017, arXiv 1611.04076).

    L_D = E[(D(x) - b)^2] / 2 + E[(D(G(z)) - a)^2] / 2,   L_G = E[(D(G(z)) - c)^2] / 2,   a = 0, b = c = 1          eq. 2 and 9

An image that D takes for real, but that lies far from the boundary, still has a gradient, which pulls it back to the real ones; with b - c = 1 and
b - a = 2 minimising L_G would minimise the Pearson chi^2 divergence (theorem 1). Nets and optimizers are DCGAN's.
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

__all__ = ["LSGAN", "LSGANConfig", "lsgan"]


@dataclass(frozen=True)
class LSGANConfig(Setting):
    """DCGAN's nets and least squares."""

    nets: Players = DCGANNets()
    rules: Rules = Rules("least-squares")


@final
class LSGAN(Game):
    """Least-squares GAN."""

    def __init__(self, info: DataInfo, config: LSGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def lsgan(size: Size = "small") -> Recipe:
    """LSGAN: the least-squares objective. Mao, Li, Xie, Lau, Wang, Smolley 2017, arXiv 1611.04076."""
    width = by_size(size, tiny=8, small=32, base=64)
    rate = adam(size, small=2e-3, base=2e-4, betas=(0.5, 0.999))
    return Recipe(
        stages=(Stage(LSGAN, LSGANConfig(nets=DCGANNets(width, width)), data_for(size), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Mao, Li, Xie, Lau, Wang, Smolley, Least Squares Generative Adversarial Networks, 2017, arXiv 1611.04076",
        summary="least squares in place of the cross-entropy",
        expect=on_mnist(size, "lsgan", "2m", "avx512-bf16", fd=14.1),
    )
