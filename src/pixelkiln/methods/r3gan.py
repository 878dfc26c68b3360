"""R3GAN: a relativistic pairing loss, two zero-centered gradient penalties, and plain residual networks (Huang et al. 2025, arXiv 2501.05441).

    L_D = E[softplus(-(D(x) - D(G(z))))] + gamma / 2 (R1 + R2),   L_G = E[softplus(-(D(G(z)) - D(x)))]                        eq. 2
    R1 = E[ |grad_x D(x)|^2 ],   R2 = E[ |grad_x D(G(z))|^2 ]                                                                 eq. 3

Each real image is compared with one generated image, of the same label: D cannot win by putting all generated images on one side of a line, so modes
are not dropped; with both penalties the game converges locally (section 2). Both are in every step. gamma falls by a cosine to a tenth, the rate to a quarter; Adam with betas (0, 0.99) (the authors raise the second from 0.9 on the way); averaged weights. gamma is 0.05 at CIFAR-10's 32 pixels, and grows with the
resolution (2 at 64 pixels, 150 at 256).

Both penalties differentiate D twice, which is most of a step's cost. Size small, for a short budget, has them every fourth step and four times as strong (`r_every 4`; the proof no longer
holds), and a gamma of 5: in so few steps a smaller one lets G make one image for each class (recall on MNIST after 4 minutes of one thread: 0.01 for 0.1, 0.11 for 1, 0.46 for 5).
`--model.rules.r_sigma 0.01` takes differences in place of derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from ..core.protocols import Method
from ..core.recipe import DataConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.players import Players, players
from ..nets.r3gan import R3Nets
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["R3GAN", "R3GANConfig", "r3gan"]


@dataclass(frozen=True)
class R3GANConfig(Setting):
    """Residual networks, the relativistic loss and both penalties."""

    nets: Players = R3Nets()
    rules: Rules = Rules("relativistic", r1=0.05, r2=0.05, r_end=0.1)
    latent: int = 64


@final
class R3GAN(Game):
    """Relativistic GAN with R1 and R2; conditioned on labels where the data have classes."""

    def __init__(self, info: DataInfo, config: R3GANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def r3gan(size: Size = "small") -> Recipe:
    """R3GAN: relativistic, with both gradient penalties, on residual networks. Huang et al. 2025, arXiv 2501.05441."""
    nets = by_size(size, tiny=R3Nets((16, 8), blocks=1, group=8), small=R3Nets((64, 32, 8), blocks=1, group=8), base=R3Nets())
    gamma = by_size(size, tiny=0.1, small=5.0, base=0.05)
    model = R3GANConfig(nets=nets, rules=Rules("relativistic", r1=gamma, r2=gamma, r_end=0.1, r_every=by_size(size, tiny=1, small=4, base=1)), latent=by_size(size, tiny=16, small=64, base=64))
    rate = replace(adam(size, small=1e-3, base=2e-4, betas=(0.0, 0.99)), decay="cosine", final=0.25)
    data = by_size(size, tiny=data_for("tiny"), small=data_for("small"), base=DataConfig(resolution=32))
    return Recipe(
        stages=(Stage(R3GAN, model, data, training(size, d=rate, g=rate, batch=512, steps=40_000, half_life=500_000.0, ramp=0.05)),),
        family="gan",
        paper="Huang, Gokaslan, Kuleshov, Tompkin, The GAN is dead; long live the GAN! A Modern Baseline GAN, 2025, arXiv 2501.05441",
        summary="relativistic GAN with both gradient penalties on residual networks",
        expect=on_mnist(size, "r3gan", "2m", "avx512-bf16", fd=18.9),
    )
