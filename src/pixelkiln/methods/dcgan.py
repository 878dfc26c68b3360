"""DCGAN: a deep convolutional generator and discriminator, trained against each other (Radford et al. 2016, arXiv 1511.06434).

    min_G max_D  E_x[log D(x)] + E_z[log(1 - D(G(z)))],   z ~ N(0, I)                            Goodfellow et al. 2014, eq. 1

on logits and with the non-saturating generator: L_D = softplus(-D(x)) + softplus(D(G(z))), L_G = softplus(-D(G(z))).
Guidelines of section 3: strided convolutions instead of pooling, BatchNorm in both nets but at G's output and D's input, ReLU
in G, LeakyReLU 0.2 in D, tanh; section 4: weights N(0, 0.02), Adam 2e-4 with betas (0.5, 0.999), batches of 128.

Beyond the paper: the generator that samples is a moving average, and its BatchNorm statistics are standing ones, measured on
a fixed set of latents whenever images are drawn, since those that training leaves behind belong to other weights. (MNIST, some
classifier's Frechet distance by running, averaged running and standing statistics: 373, 326, 289 for a wide average of a young
generator; 79, 77, 76 for a narrow one of an older. The average costs a little early and helps once the two nets circle: raw 70,
averaged 73 after 200,000 images, 75 and 69 after 285,000.) Size small trains for a short budget: batches of 64 and Adam 5e-4
(same measure: 127 after 65,000 images, against 212 at the paper's rate; 70 after 200,000, against 120 after 180,000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Latent, Method, Update
from ..core.recipe import DataConfig, EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import generator, noise, streams
from ..core.types import Batch, DataInfo, Moment, Request
from ..nets.dcgan import Discriminator, Generator, with_standing_stats
from ..objectives.adversarial import non_saturating_d, non_saturating_g

__all__ = ["DCGAN", "DCGANConfig", "dcgan"]

MEASURED = (Expect("fd", 9.49, "mnist", "pixelkiln train dcgan --data mnist --out R --budget 5m", "2 cores of a Xeon with AMX, bf16"),)


@dataclass(frozen=True)
class DCGANConfig:
    """Sizes of the two nets."""

    latent: int = 100  # dimensions of z
    g_width: int = 64  # generator's channels at half the resolution, doubled at each lower one
    d_width: int = 64  # discriminator's, likewise
    reference: int = 256  # latents on which the statistics for sampling are measured


@final
class DCGAN(Method, Latent):
    """Non-saturating GAN with the DCGAN nets; sides that are 2^k times 4 or more (16, 28, 32, 64)."""

    averaged = ("generator",)

    def __init__(self, info: DataInfo, config: DCGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        self.generator = Generator(info.shape, config.latent, config.g_width)
        self.discriminator = Discriminator(info.shape, config.d_width)

    def updates(self) -> Sequence[Update]:
        """One step of D, then one of G on the same batch size (section 4; Goodfellow et al. 2014, algorithm 1 with k = 1)."""
        return (
            Update("d", ("discriminator",), self.d_loss, opt="d"),
            Update("g", ("generator",), self.g_loss, opt="g", fresh=False),
        )

    def d_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_D (nats), and D's mean outputs on real and generated images, sigmoid(logit) in (0, 1)."""
        with torch.no_grad():
            fake = self.generator(self.random_latents(len(batch.x)))  # (B, C, H, W)
        real_logits, fake_logits = self.discriminator(batch.x), self.discriminator(fake)  # (B,) each
        return {"loss": non_saturating_d(real_logits, fake_logits), "d_real": mean_output(real_logits), "d_fake": mean_output(fake_logits)}

    def g_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_G (nats), and D's mean output on the images that G is judged by."""
        logits = self.discriminator(self.generator(self.random_latents(len(batch.x))))  # (B,)
        return {"loss": non_saturating_g(logits), "d_fake": mean_output(logits)}

    def random_latents(self, n: int) -> Tensor:
        """z (n, d) ~ N(0, I) for training, from torch's global generator."""
        return torch.randn(n, self.config.latent, device=self.device)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """z (n, d) ~ N(0, I), row i from seed i alone."""
        return noise(streams(seeds, "z"), (self.config.latent,), self.device)

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] for z (n, d), by standing statistics."""
        shape = (self.config.reference, self.config.latent)
        reference = torch.randn(shape, generator=generator("dcgan", "reference")).to(z.device)
        return with_standing_stats(self.generator, z, reference)

    def draw(self, request: Request) -> Tensor:
        """G(z), z from the seeds."""
        return self.from_latents(self.latents(request.seeds), request)


def mean_output(logits: Tensor) -> Tensor:
    """The paper's D(.) = sigmoid(logit), its mean over the batch, a scalar without a graph."""
    return logits.detach().float().sigmoid().mean()


def dcgan(size: Size = "small") -> Recipe:
    """DCGAN: strided convolutions, BatchNorm, non-saturating loss. Radford, Metz, Chintala 2016, arXiv 1511.06434."""
    adam = OptConfig(kind="adam", lr=by_size(size, tiny=2e-4, small=5e-4, base=2e-4), betas=(0.5, 0.999))
    width = by_size(size, tiny=8, small=64, base=64)
    model = DCGANConfig(
        latent=by_size(size, tiny=16, small=100, base=100),
        g_width=width,
        d_width=width,
        reference=by_size(size, tiny=64, small=256, base=256),
    )
    data = by_size(size, tiny=DataConfig(resolution=16), small=DataConfig(at_least=16, multiple=4), base=DataConfig(resolution=64))
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=50_000),
        batch=by_size(size, tiny=32, small=64, base=128),
        opts={"d": adam, "g": adam},
        ema=EmaConfig(half_life=20_000.0, ramp=0.02),
    )
    return Recipe(
        stages=(Stage(DCGAN, model, data, train),),
        family="gan",
        paper="Radford, Metz, Chintala, Unsupervised Representation Learning with Deep Convolutional GANs, 2016, arXiv 1511.06434",
        summary="deep convolutional GAN with the non-saturating loss",
        expect=by_size(size, tiny=(), small=MEASURED, base=()),
    )
