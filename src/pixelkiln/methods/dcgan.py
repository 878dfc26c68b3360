"""DCGAN: a deep convolutional generator and discriminator, trained against each other (Radford et al. 2016, arXiv 1511.06434).

    min_G max_D  E_x[log D(x)] + E_z[log(1 - D(G(z)))],   z ~ N(0, I)                            Goodfellow et al. 2014, eq. 1

on logits and with the non-saturating generator: L_D = softplus(-D(x)) + softplus(D(G(z))), L_G = softplus(-D(G(z))).
Guidelines of section 3: strided convolutions instead of pooling, BatchNorm in both nets but at G's output and D's input, ReLU
in G, LeakyReLU 0.2 in D, tanh; section 4: weights N(0, 0.02), Adam 2e-4 with betas (0.5, 0.999), batches of 128.

Beyond the paper: the generator that samples is a moving average, and its BatchNorm statistics are standing ones, measured on
a fixed set of latents whenever images are drawn, since those that training leaves behind belong to other weights. (MNIST, some
classifier's Frechet distance by running, averaged running and standing statistics: 373, 326, 289 for a wide average of a young
generator; 79, 77, 76 for a narrow one of an older. The average costs a little early and helps once the two nets circle: raw 70,
averaged 73 after 200,000 images, 75 and 69 after 285,000.) Size small trains for a short budget: nets half as wide, batches of 64
and Adam 2e-3 (one core with AVX2, Frechet distance: on MNIST 14.9 in 2.5 minutes, with 1e-3 18.3, at the paper's width with 5e-4
23.0 in 4; on CIFAR-10 in 4 minutes 70 and 79, 67, 115).
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

__all__ = ["DCGAN", "DCGANConfig", "dcgan"]


@dataclass(frozen=True)
class DCGANConfig(Setting):
    """Two convolutional nets and the cross-entropy."""

    nets: Players = DCGANNets()
    rules: Rules = Rules("non-saturating")
    latent: int = 100


@final
class DCGAN(Game):
    """Non-saturating GAN with convolutional nets; sides that are 2^k times 4 or more (16, 28, 32, 64)."""

    def __init__(self, info: DataInfo, config: DCGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def dcgan(size: Size = "small") -> Recipe:
    """DCGAN: strided convolutions, BatchNorm, non-saturating loss. Radford, Metz, Chintala 2016, arXiv 1511.06434."""
    width = by_size(size, tiny=8, small=32, base=64)
    model = DCGANConfig(nets=DCGANNets(width, width), latent=by_size(size, tiny=16, small=100, base=100), reference=by_size(size, tiny=64, small=256, base=256))
    rate = adam(size, small=2e-3, base=2e-4, betas=(0.5, 0.999))
    return Recipe(
        stages=(Stage(DCGAN, model, data_for(size), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Radford, Metz, Chintala, Unsupervised Representation Learning with Deep Convolutional GANs, 2016, arXiv 1511.06434",
        summary="deep convolutional GAN with the non-saturating loss",
        expect=on_mnist(size, "dcgan", "2m", "avx512-bf16", fd=13.2),
    )
