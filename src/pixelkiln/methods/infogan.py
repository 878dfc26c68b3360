"""InfoGAN: codes that the image tells of, found without labels (Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, arXiv 1606.03657).

    min over G, Q, max over D of V(D, G) - lambda L_I(G, Q)                                                           eq. 6
    L_I(G, Q) = E_{c ~ P(c), x ~ G(z, c)}[log Q(c | x)] + H(c) <= I(c; G(z, c))                                         eq. 5

A part of the latent is codes: one category of K, and c styles. Q reads them from D's features of generated images, and shares D's layers; G is paid for
every nat that Q reads. lambda is 1 for the category and smaller for styles, so that their nats stay on the scale of the game (section 6). Q of a style is a Gaussian with a
learned deviation, or a fixed one.

What codes are of z is in `nets/codes.py`: z is standard normal as everywhere. The data's classes are not used: in sampling, `--label 3` is category 3 and
`--label all` all of them in turn; without it the category is that of z, by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..core.protocols import Method
from ..core.recipe import Recipe, Size, Stage, by_size, on_mnist
from ..core.types import Ability, DataInfo, Request
from ..nets.codes import CodedGenerator, Codes, Recognizer, category_of, chosen, styles_of
from ..nets.dcgan import DCGANNets
from ..nets.players import Players, players
from ..objectives.game import Game
from ..objectives.information import category_information, style_information
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["InfoGAN", "InfoGANConfig", "infogan"]


@dataclass(frozen=True)
class InfoGANConfig(Setting):
    """DCGAN's nets, the codes, and what a nat of each kind weighs."""

    nets: Players = DCGANNets()
    rules: Rules = Rules("non-saturating")
    latent: int = 74  # 10 + 2 + 62 of noise
    codes: Codes = Codes()
    weight: float = 1.0  # lambda of the category
    style_weight: float = 0.1  # lambda of the styles
    deviation: float = 0.0  # of Q's Gaussian; 0: learned


@final
class InfoGAN(Game):
    """A GAN with a category and styles that its images tell of."""

    judges = ("discriminator", "recognizer")

    def __init__(self, info: DataInfo, config: InfoGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        codes = config.codes.checked(config.latent)
        generator, discriminator = players(DataInfo(info.shape), config.latent, config.nets)
        names = tuple(f"code-{k}" for k in range(codes.categories))
        super().__init__(DataInfo(info.shape, names), config, CodedGenerator(generator, codes), discriminator, parents)
        self.config, self.codes = config, codes
        self.recognizer = Recognizer(self.discriminator.head.in_features, codes)
        if names:
            self.abilities = self.abilities | {Ability.LABEL}

    def wants(self, features: Tensor, label: Tensor | None, z: Tensor | None) -> Mapping[str, Tensor]:
        """-lambda L_I of generated images (eq. 5 and 6), nothing of real ones."""
        if z is None:
            return {}
        codes, config, found = self.codes, self.config, {}
        logits, mean, log_scale = self.recognizer(features)
        if codes.categories:
            found["category"] = -config.weight * category_information(logits, category_of(z, codes))
        if codes.styles:
            spread = math.log(config.deviation) if config.deviation else log_scale
            found["styles"] = -config.style_weight * style_information(mean, spread, styles_of(z, codes), codes.entropy)
        return found

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """Images (n, C, H, W) for z (n, d), of the category that is asked for."""
        label = request.cond.label
        return super().from_latents(z if label is None else chosen(z, label.to(z.device), self.codes), request)


def infogan(size: Size = "small") -> Recipe:
    """InfoGAN: codes that images tell of, found without labels. Chen et al. 2016, arXiv 1606.03657."""
    width = by_size(size, tiny=8, small=32, base=64)
    d, g = adam(size, small=5e-4, base=2e-4, betas=(0.5, 0.999)), adam(size, small=2e-3, base=1e-3, betas=(0.5, 0.999))
    model = InfoGANConfig(nets=DCGANNets(width, width), codes=Codes(gain=5.0), reference=by_size(size, tiny=64, small=256, base=256))
    return Recipe(
        stages=(Stage(InfoGAN, model, data_for(size), training(size, d=d, g=g)),),
        family="gan",
        paper="Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel, InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets, 2016, arXiv 1606.03657",
        summary="codes that the image tells of, found without labels",
        expect=on_mnist(size, "infogan", "2m", "avx512-bf16", fd=11.6),
    )
