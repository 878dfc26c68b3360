"""GAN: the first game, between two perceptrons (Goodfellow et al. 2014, arXiv 1406.2661).

    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                                                     eq. 1

For a fixed G the best D is p(x) / (p(x) + p_G(x)) (proposition 1), and then V = -log 4 + 2 JSD(p, p_G) (theorem 1): at the optimum p_G = p and
D = 1/2. G is trained to maximise log D(G(z)), which has the same fixed point and does not saturate while D is sure (section 3);
`--model.rules.objective minimax` trains it by eq. 1 itself. One step of D for each of G (algorithm 1, k = 1).

Size small has BatchNorm in G, which the paper did not know: without it G draws one digit for long (MNIST, one thread: `fd` 92 and recall 0.14 after 4 minutes, 30 and 0.67 with it
after 2.5). Size base is without (`--model.nets.g_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..core.protocols import Method
from ..core.recipe import DataConfig, Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.mlpgan import MLPNets
from ..nets.players import Players, players
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, training

__all__ = ["GAN", "GANConfig", "gan"]


@dataclass(frozen=True)
class GANConfig(Setting):
    """Two perceptrons and the cross-entropy."""

    nets: Players = MLPNets()
    rules: Rules = Rules("non-saturating")
    latent: int = 100


@final
class GAN(Game):
    """The game of 2014; images of any shape."""

    def __init__(self, info: DataInfo, config: GANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def gan(size: Size = "small") -> Recipe:
    """GAN: two perceptrons against each other. Goodfellow et al. 2014, arXiv 1406.2661."""
    nets = by_size(size, tiny=MLPNets(32, 32), small=MLPNets(512, 512, g_norm="batch"), base=MLPNets(1024, 1024))
    rate = adam(size, small=2e-4, base=2e-4, betas=(0.5, 0.999))
    return Recipe(
        stages=(Stage(GAN, GANConfig(nets=nets), DataConfig(), training(size, d=rate, g=rate)),),
        family="gan",
        paper="Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio, Generative Adversarial Networks, 2014, arXiv 1406.2661",
        summary="the first adversarial game, between two perceptrons",
        expect=on_mnist(size, "gan", "2m", "avx512-bf16", fd=23.4),
    )
