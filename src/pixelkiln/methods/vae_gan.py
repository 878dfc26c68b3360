"""VAE/GAN: an autoencoder whose errors are measured in the features of a discriminator (Larsen, Sonderby, Larochelle, Winther, Autoencoding
beyond pixels using a learned similarity metric, 2016, arXiv 1512.09300).

    z ~ q(z|x) = N(mu(x), sigma^2(x)),   x~ = Dec(z),   z_p ~ N(0, I),   x_p = Dec(z_p)
    L_prior = KL(q(z|x) || N(0, I))                                                                                    eq. 4
    L_llike = -E_q[log N(Dis_l(x); Dis_l(x~), (s u)^2 I)],   Dis_l the output of layer l of the discriminator            eq. 7 and 8 (there s u = 1)
    L_GAN = -log Dis(x) - log(1 - Dis(x~)) - log(1 - Dis(x_p))                                                         eq. 10, as a loss of Dis

Pixels that moved a little count as much in a squared error as strokes that are gone, and the mean of what may be is a blur; features that a
discriminator uses tell the two apart. Each of the three networks has a row of its own (algorithm 1):

    encode:  grad_Enc of L_prior + L_llike          g:  grad_Dec of gamma L_llike - L_GAN          d:  grad_Dis of L_GAN

so that the encoder is not asked to fool anybody, and the discriminator is not paid for features in which all images are alike. -L_GAN of the
decoder is non-saturating unless asked otherwise. Sums run over features and latent units, means over the batch, all in nats.

Beyond the paper: u may be the deviation of the features of real images, over a batch and without a gradient. Otherwise nothing holds their scale
but spectral norms, as in size small: from plain weights of N(0, 0.02) a Gaussian of fixed width began with a code that is worth less than it costs,
and its KL stayed at 0 (MNIST, 486 steps: 0.04 nats).

There is no likelihood of images: that of features is none of pixels, and Dis moves. So there is no score in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Method, Posterior, Update
from ..core.recipe import Expect, Recipe, Size, Stage, by_size
from ..core.types import Ability, Batch, DataInfo, Moment, Request, UserError
from ..nets.coders import encoder
from ..nets.dcgan import DCGANNets
from ..nets.players import Players, players
from ..objectives.adversarial import wide
from ..objectives.game import Game, mean, parted, told
from ..objectives.likelihoods import gaussian_log_prob
from ..objectives.rules import Rules, Setting, adam, data_for, training
from ..objectives.variational import active_units, kl_per_unit, reparameterize

__all__ = ["VAEGAN", "VAEGANConfig", "vae_gan"]

MEASURED = (Expect("fd", 20.3, "mnist", "pixelkiln train vae-gan --data mnist --out R --steps 960 --threads 1",
                   "1 core of an AMD EPYC with AVX2, shared, fp32: 4 minutes of its time"),)
TINY = 1e-12  # least variance of features


@dataclass(frozen=True)
class VAEGANConfig(Setting):
    """A GAN's nets and rules, the encoder, and where and how strongly images are compared."""

    nets: Players = DCGANNets()  # decoder and discriminator
    rules: Rules = Rules("non-saturating")
    latent: int = 64
    net: Literal["mlp", "conv"] = "conv"  # the encoder
    width: int = 32  # mlp: hidden units; conv: channels of the largest map
    depth: int = 0  # mlp: hidden layers; conv: residual blocks at every size
    hidden: int = 256  # conv: units of the layer next to z
    layer: int = 2  # l, from 1 at the image
    deviation: float = 1.0  # s ...
    unit: Literal["features", "one"] = "features"  # ... in deviations of the features of real images, or as it is (the paper's)
    gamma: float = 1.0  # weight of L_llike for the decoder


@final
class VAEGAN(Game, Posterior):
    """encoder: x -> (mu, log sigma^2); generator: the decoder, z -> x; discriminator: x -> a logit, and features on the way."""

    averaged = ("encoder", "generator")
    abilities = frozenset({Ability.TRUNCATION})

    def __init__(self, info: DataInfo, config: VAEGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(DataInfo(info.shape), config.latent, config.nets), parents)
        if config.deviation <= 0 or config.gamma < 0:
            raise UserError("--model.deviation must be above 0, and --model.gamma not negative")
        if self.objective.false is None:
            raise UserError(f"model.rules.objective: vae-gan has two generated images for each real one, which {config.rules.objective} "
                            "cannot weigh; take non-saturating, minimax, least-squares or hinge")
        if not 1 <= config.layer <= self.discriminator.depth:
            raise UserError(f"model.layer {config.layer}: this discriminator has layers 1 to {self.discriminator.depth}")
        self.config = config
        self.encoder = encoder(info.shape, config, 2 * config.latent)

    def updates(self) -> Sequence[Update]:
        """D's steps and its lazy penalty, as in every game; then encoder and decoder, on the same images."""
        *judge, decode = super().updates()
        return (*judge, Update("encode", ("encoder",), self.encode_loss, opt="encoder", fresh=False), decode)

    def posterior(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 of q(z|x), (B, J) each, for x (B, C, H, W) in [-1, 1]."""
        mu, log_var = wide(self.encoder((x + 1) / 2)).chunk(2, dim=1)  # black is 0, as padding is
        return mu, log_var.clamp(-30, 20)

    def code(self, x: Tensor) -> Tensor:
        """z (B, J) ~ q(z|x), by torch's global generator."""
        mu, log_var = self.posterior(x)
        return reparameterize(mu, log_var, torch.randn_like(mu))

    def llike(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        """L_llike (eq. 7 and 8), a scalar in nats: a sum over features, a mean over the batch. x is a constant, rebuilt is not."""
        with torch.no_grad():
            real = wide(self.discriminator.inner(x, self.config.layer))
        found = wide(self.discriminator.inner(rebuilt, self.config.layer))
        unit = real.var(0, correction=0).mean().clamp_min(TINY) if self.config.unit == "features" else real.new_ones(())
        scale = math.log(self.config.deviation) + 0.5 * unit.log()
        return -gaussian_log_prob(real.flatten(1)[..., None, None], found.flatten(1)[..., None, None], scale).mean()

    def encode_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_prior + L_llike."""
        mu, log_var = self.posterior(batch.x)
        rebuilt = self.generator(reparameterize(mu, log_var, torch.randn_like(mu)))
        units = kl_per_unit(mu, log_var)
        prior, llike = units.sum(1).mean(), self.llike(batch.x, rebuilt)
        return {"loss": prior + llike, "prior": prior.detach(), "llike": llike.detach(), "active_units": active_units(mu.detach()),
                "pixels": (batch.x - rebuilt.detach()).square().flatten(1).sum(1).mean()}

    def g_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """gamma L_llike - L_GAN, the second as the decoder's part of the objective."""
        with torch.no_grad():
            z = self.code(batch.x)
        rebuilt, drawn = self.generator(z), self.generator(self.random_latents(len(z)))
        llike = self.llike(batch.x, rebuilt)
        costs = {"llike": self.config.gamma * llike}
        for name, images in (("gan_rebuilt", rebuilt), ("gan", drawn)):
            logits, _ = self.discriminator(self.shown(images, moment))
            costs[name] = self.objective.g(logits, logits)
        return {"loss": sum(costs.values(), torch.zeros_like(llike)), **parted(costs)}

    def d_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_GAN (eq. 10) with its penalties, D's mean logits, and the share of pairs (real, sample) that it tells apart.

        Real, rebuilt and drawn images pass D one kind after the other, so that batch statistics do not tell which kind a batch is made of.
        """
        with torch.no_grad():
            rebuilt, drawn = self.generator(self.code(batch.x)), self.generator(self.random_latents(len(batch.x)))
        real, of_rebuilt, of_drawn = (self.discriminator(self.shown(x, moment))[0] for x in (batch.x, rebuilt, drawn))
        assert self.objective.false is not None
        loss = self.objective.d(real, of_drawn, self.rules.smoothing) + self.objective.false(of_rebuilt)
        costs = self.penalties(batch.x, drawn, (real, of_drawn), None, moment)
        found = {"loss": sum(costs.values(), loss), "d_real": mean(real), "d_rebuilt": mean(of_rebuilt), "d_fake": mean(of_drawn), **parted(costs)}
        return found | self.overfitted(real, of_drawn) | {"told": told(real, of_drawn)}

    def encode(self, x: Tensor) -> Tensor:
        """Codes, the posterior means, (B, J)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of codes (B, J)."""
        return self.from_latents(z, Request(())).float().clamp(-1, 1)

    def paint(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The same: codes are z."""
        return self.decode(z)


def vae_gan(size: Size = "small") -> Recipe:
    """VAE/GAN: an autoencoder that compares images in a discriminator's features. Larsen, Sonderby, Larochelle, Winther 2016, arXiv 1512.09300."""
    model = by_size(
        size,
        tiny=VAEGANConfig(nets=DCGANNets(8, 8, "spectral"), latent=8, width=4, hidden=16, deviation=0.7, unit="one", gamma=0.05, reference=64),
        small=VAEGANConfig(nets=DCGANNets(24, 24, "spectral"), latent=16, width=16, hidden=256, deviation=0.7, unit="one", gamma=0.05),
        base=VAEGANConfig(nets=DCGANNets(64, 64), latent=128, width=64, hidden=512, layer=3, deviation=3.0, gamma=0.1),
    )
    rate = adam(size, small=1e-3, base=2e-4, betas=(0.5, 0.999))
    train = training(size, d=rate, g=rate)
    return Recipe(
        stages=(Stage(VAEGAN, model, data_for(size), replace(train, opts={**train.opts, "encoder": rate})),),
        family="vae",
        paper="Larsen, Sonderby, Larochelle, Winther, Autoencoding beyond pixels using a learned similarity metric, 2016, arXiv 1512.09300",
        summary="an autoencoder that compares images in a discriminator's features: sharp, with an encoder",
        expect=by_size(size, tiny=(), small=MEASURED, base=()),
    )
