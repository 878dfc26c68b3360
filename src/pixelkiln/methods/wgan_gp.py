"""WGAN-GP: a critic whose gradient has norm one between real and generated images (Gulrajani et al. 2017, arXiv 1704.00028).

    L_D = E[D(G(z))] - E[D(x)] + lambda E[(|grad_u D(u)| - 1)^2],   u = a x + (1 - a) G(z), a ~ U(0, 1)            eq. 3
    L_G = -E[D(G(z))]

A 1-Lipschitz D that is optimal has gradients of norm 1 on the lines between coupled real and generated images (proposition 1). The norm is of each
sample, over all its pixels; lambda = 10, five steps of D for each of G, Adam 1e-4 with betas (0, 0.9) (algorithm 1). D has no BatchNorm, which
would tie the gradients of a batch together: it has layer norms (section 4, "No critic batch normalization").
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

__all__ = ["WGANGP", "WGANGPConfig", "wgan_gp"]


@dataclass(frozen=True)
class WGANGPConfig(Setting):
    """A critic with a penalty on its gradient."""

    nets: Players = DCGANNets(norm="layer")
    rules: Rules = Rules("wasserstein", critic_steps=5, gradient=10.0)


@final
class WGANGP(Game):
    """Wasserstein GAN with the gradient penalty."""

    def __init__(self, info: DataInfo, config: WGANGPConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def wgan_gp(size: Size = "small") -> Recipe:
    """WGAN-GP: the Wasserstein distance by a critic with gradients of norm one. Gulrajani et al. 2017, arXiv 1704.00028."""
    width = by_size(size, tiny=8, small=32, base=64)
    rate = adam(size, small=1e-3, base=1e-4, betas=(0.0, 0.9))
    return Recipe(
        stages=(Stage(WGANGP, WGANGPConfig(nets=DCGANNets(width, width, norm="layer")), data_for(size), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, Improved Training of Wasserstein GANs, 2017, arXiv 1704.00028",
        summary="Wasserstein distance by a critic whose gradients are held at norm one",
        expect=on_mnist(size, "wgan-gp", "2m", "avx512-bf16", fd=23.2),
    )
