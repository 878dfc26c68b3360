"""Wasserstein GAN: the critic estimates the earth mover's distance (Arjovsky, Chintala, Bottou 2017, arXiv 1701.07875).

    W(p, q) = sup over 1-Lipschitz f of  E_p[f(x)] - E_q[f(x)]                                                      eq. 2
    L_D = E[D(G(z))] - E[D(x)],  L_G = -E[D(G(z))],  every weight of D cut to [-c, c] after each step               algorithm 1

with c = 0.01, RMSProp at 5e-5, five steps of the critic for each of the generator. Unlike the cross-entropy the distance falls smoothly as the
generated images approach the real ones, also where the two do not overlap; -d/loss is its estimate, up to the unknown Lipschitz constant.

Cutting weights is, in the paper's words, "a clearly terrible way" to bound the slope: with small c gradients vanish, with large c the critic is slow.
BatchNorm in D can undo the cut by its division; the critic here keeps it, as the paper's does (section 4.3 trains the generator without it).

Size small trains for a short budget: two steps of the critic, 5e-4, c = 0.03 (MNIST, 2.5 minutes of one core with AVX2, Frechet distance: 32.7; with
c = 0.01 36.4, with five steps, too, 40.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..core.protocols import Method
from ..core.recipe import OptConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.dcgan import DCGANNets
from ..nets.players import Players, players
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, data_for, training

__all__ = ["WGAN", "WGANConfig", "wgan"]


@dataclass(frozen=True)
class WGANConfig(Setting):
    """A critic with small weights."""

    nets: Players = DCGANNets()
    rules: Rules = Rules("wasserstein", critic_steps=5)


@final
class WGAN(Game):
    """Wasserstein GAN with cut weights (`train.opts.d.bound`)."""

    def __init__(self, info: DataInfo, config: WGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def wgan(size: Size = "small") -> Recipe:
    """WGAN: the Wasserstein distance by a critic with weights cut to a small box. Arjovsky, Chintala, Bottou 2017, arXiv 1701.07875."""
    width = by_size(size, tiny=8, small=32, base=64)
    rate = OptConfig("rmsprop", lr=by_size(size, tiny=2e-4, small=5e-4, base=5e-5), betas=(0.0, 0.99))
    critic = OptConfig("rmsprop", lr=rate.lr, betas=rate.betas, bound=by_size(size, tiny=0.01, small=0.03, base=0.01))
    rules = Rules("wasserstein", critic_steps=by_size(size, tiny=5, small=2, base=5))
    return Recipe(
        stages=(Stage(WGAN, WGANConfig(nets=DCGANNets(width, width), rules=rules), data_for(size), training(size, d=critic, g=rate)),),
        family="gan",
        paper="Arjovsky, Chintala, Bottou, Wasserstein GAN, 2017, arXiv 1701.07875",
        summary="Wasserstein distance by a critic with weights cut to a small box",
        expect=on_mnist(size, "wgan", "2m", "avx512-bf16", fd=24.9),
    )
