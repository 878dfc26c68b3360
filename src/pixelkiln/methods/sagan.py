"""SAGAN: self-attention in both players, spectral norms in both, and two rates (Zhang, Goodfellow, Metaxas, Odena 2019, arXiv 1805.08318).

    b_ij = softmax over i of <W_f x_i, W_g x_j>                                                                     eq. 1
    o_j = W_v sum_i b_ij W_h x_i                                                                                    eq. 2
    y_j = gamma o_j + x_j,   gamma = 0 at first                                                                     eq. 3
    L_D = E[max(0, 1 - D(x, y))] + E[max(0, 1 + D(G(z, y), y))],   L_G = -E[D(G(z, y), y)]                          eq. 4

A convolution sees a neighborhood; with attention at one resolution in the middle every place can ask every other, so that parts agree over a
distance. The net learns the near first, as gamma grows from zero. Spectral norms stand in G, too, but not around what embeds a label (section 4.1); D
learns at 4e-4 and G at 1e-4, so that one step of D for each of G is enough (section 4.2; Heusel et al. 2017, arXiv 1706.08500); Adam's betas are
(0, 0.9). Labels: as SNGAN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..core.protocols import Method
from ..core.recipe import Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.players import Players, players
from ..nets.resgan import ResNets
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["SAGAN", "SAGANConfig", "sagan"]


@dataclass(frozen=True)
class SAGANConfig(Setting):
    """Residual nets with attention, spectral norms on both sides, and the hinge loss."""

    nets: Players = ResNets(attention=(16,), g_spectral=True)
    rules: Rules = Rules("hinge")


@final
class SAGAN(Game):
    """Self-attention GAN."""

    def __init__(self, info: DataInfo, config: SAGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def sagan(size: Size = "small") -> Recipe:
    """SAGAN: self-attention and spectral norms on both sides, two rates. Zhang, Goodfellow, Metaxas, Odena 2019, arXiv 1805.08318."""
    nets = by_size(
        size,
        tiny=ResNets(8, 8, d_rest=1, attention=(8,), g_spectral=True),
        small=ResNets(16, 16, growth=4, d_rest=1, attention=(16,), g_spectral=True),
        base=ResNets(64, 64, growth=16, d_grid=4, d_rest=1, attention=(32,), g_spectral=True),
    )
    d, g = (adam(size, small=small, base=base, betas=(0.0, 0.9)) for small, base in ((2e-3, 4e-4), (5e-4, 1e-4)))
    model = SAGANConfig(nets=nets, reference=by_size(size, tiny=64, small=256, base=256))
    return Recipe(
        stages=(Stage(SAGAN, model, data_for(size), training(size, d=d, g=g, batch=256, steps=100_000, half_life=500_000.0)),),
        family="gan",
        paper="Zhang, Goodfellow, Metaxas, Odena, Self-Attention Generative Adversarial Networks, 2019, arXiv 1805.08318",
        summary="self-attention and spectral norms on both sides, two learning rates",
        expect=on_mnist(size, "sagan", "2m", "avx512-bf16", fd=13.4),
    )
