"""SNGAN: a discriminator whose every layer is divided by its spectral norm (Miyato, Kataoka, Koyama, Yoshida 2018, arXiv 1802.05957).

    W_SN = W / sigma(W),   sigma(W) = max over h of |W h| / |h|                                                     eq. 7 and 8
    L_D = E[max(0, 1 - D(x, y))] + E[max(0, 1 + D(G(z, y), y))],   L_G = -E[D(G(z, y), y)]                          eq. 16 and 17
    D(x, y) = w . h(x) + b + <V_y, h(x)>                              Miyato and Koyama 2018, arXiv 1802.05637, eq. 3

With layers of norm one and ReLU, D (but for its shortcuts) is 1-Lipschitz: |D|_Lip <= product of sigma(W_l) (eq. 7), at the price of one step of power
iteration a forward pass, which starts where the last one ended (algorithm 1). D is residual (appendix B.4), its features the sum over pixels. A
label sets the norms of G (conditional BatchNorm) and enters D by a projection; without classes both terms go. Adam 2e-4 with betas (0, 0.9) and five
steps of D for each of G (setting C, section 4.1).

Size small, for a short budget, has narrow nets (at width 32 it would see 2.7 times fewer images), one step of D for each of G, and high rates: norms of one bear
them (4 minutes of one thread on MNIST: `fd` 26 with 4e-4 for D and 2e-4 for G, 6.0 and 2.3 in two runs with 1e-3 for both).
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

__all__ = ["SNGAN", "SNGANConfig", "sngan"]


@dataclass(frozen=True)
class SNGANConfig(Setting):
    """Residual nets, spectral norms in D, and the hinge loss."""

    nets: Players = ResNets()
    rules: Rules = Rules("hinge", critic_steps=5)


@final
class SNGAN(Game):
    """Spectrally normalised GAN with a projection discriminator."""

    def __init__(self, info: DataInfo, config: SNGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def sngan(size: Size = "small") -> Recipe:
    """SNGAN: residual nets, spectral norms in the discriminator, projection of the label. Miyato, Kataoka, Koyama, Yoshida 2018, arXiv 1802.05957."""
    nets = by_size(
        size,
        tiny=ResNets(8, 8, d_rest=1),
        small=ResNets(16, 16, growth=4, d_rest=1),
        base=ResNets(64, 64, growth=16, d_grid=4, d_rest=1),  # the plan for ImageNet
    )
    model = SNGANConfig(nets=nets, rules=Rules("hinge", critic_steps=by_size(size, tiny=2, small=1, base=5)), reference=by_size(size, tiny=64, small=256, base=256))
    rate = adam(size, small=1e-3, base=2e-4, betas=(0.0, 0.9))
    return Recipe(
        stages=(Stage(SNGAN, model, data_for(size), training(size, d=rate, g=rate, batch=64, steps=100_000)),),
        family="gan",
        paper="Miyato, Kataoka, Koyama, Yoshida, Spectral Normalization for Generative Adversarial Networks, 2018, arXiv 1802.05957",
        summary="residual nets, spectral norms in the discriminator, hinge loss, labels by projection",
        expect=on_mnist(size, "sngan", "2m", "avx512-bf16", fd=4.63),
    )
