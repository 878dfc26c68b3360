"""The continuous codec of latent diffusion (Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv 2112.10752).

    L = L_rec + L_perceptual + beta KL(q(z | x) || N(0, I)) / D,   q(z | x) = N(mu(x), sigma^2(x)),   z (B, D', h, w)              section 3.1, KL-reg.

beta is tiny (1e-6): the KL keeps the latents from growing without bounds and smooths them a little; it makes no prior to draw from, which is the
business of another model. That model expects latents of unit variance (appendix G divides by the deviation of the first batch): here mean and
deviation of each channel are followed in training, and `encode` and `decode` speak in standardized latents.

The perceptual term compares feature maps of a network that is given, --parent features=RUN of a `classifier`; without one there is none. There is no
discriminator: see `vqgan` for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Classifier, Codec, Method, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, Request, UserError
from ..nets.painter import Painter
from ..nets.resconv import Down, ResConvConfig, grid
from ..nets.standard import Standard
from ..objectives.reconstruction import Distance, feature_distance, reconstruction
from ..objectives.variational import kl_per_unit, reparameterize

__all__ = ["AutoencoderKL", "AutoencoderKLConfig", "autoencoder_kl"]


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The nets, the latents' channels, and the weights of the loss."""

    net: ResConvConfig = field(default_factory=lambda: ResConvConfig(norm=True))
    dim: int = 4  # channels of the latents
    distance: Distance = "l1"
    beta: float = 1e-6  # of the KL in nats per dimension of the image
    perceptual: float = 1.0  # weight of the feature maps' distance, where there is a parent for it


@final
class AutoencoderKL(Method, Codec):
    """encoder: x -> (mu, log sigma^2); decoder: z -> x; standard: the latents' mean and deviation. latent_shape: (D', h, w)."""

    averaged = ("encoder", "decoder")
    generates = False

    def __init__(self, info: DataInfo, config: AutoencoderKLConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        features = self.parents.get("features")
        if features is not None and not (isinstance(features, Classifier) and features.shape == info.shape):
            raise UserError(f"parent 'features' must be a classifier of images of {tuple(info.shape)}: give such a run, or leave it out")
        if config.dim < 1 or config.beta < 0:
            raise UserError("--model.dim must be 1 or more, and --model.beta not negative")
        self.features: list[Classifier] = [features] if isinstance(features, Classifier) else []  # in a list: it is no net of ours
        self.config, self.latent_shape = config, (config.dim, *grid(info.shape, config.net))
        self.encoder = Down(info.shape.channels, 2 * config.dim, config.net)
        self.decoder = Painter(config.dim, info.shape.channels, config.net, config.distance == "logistic")
        self.standard = Standard(config.dim)

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("reconstruct", ("encoder", "decoder", "standard"), self.loss, opt="main"),)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2, (B, D', h, w) each."""
        mean, log_var = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_var.clamp(-30, 20)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L; the reconstruction is that of a draw from the posterior, and the KL is divided by the number of the image's dimensions."""
        c, x = self.config, batch.x
        mean, log_var = self.posterior(x)
        z = reparameterize(mean, log_var, torch.randn_like(mean))
        self.standard.see(z.detach())
        y, log_scale = self.decoder(z)
        rec, kl = reconstruction(c.distance, x, y, log_scale), kl_per_unit(mean, log_var).sum((1, 2, 3)).mean() / x[0].numel()
        loss, terms = rec + c.beta * kl, {"rec": rec.detach(), "kl": kl.detach(), "deviation": self.standard.moments()[1].mean()}
        for net in self.features:
            near = feature_distance(net.maps(y), [f.detach() for f in net.maps(x)])
            loss, terms["perceptual"] = loss + c.perceptual * near, near.detach()
        return {"loss": loss, **terms}

    def encode(self, x: Tensor) -> Tensor:
        """Standardized posterior means (B, D', h, w)."""
        return self.standard(self.posterior(x)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of standardized latents."""
        y, _ = self.decoder(self.standard.inverse(z))
        return y.clamp(-1, 1)

    def draw(self, request: Request) -> Tensor:
        """UserError: its latents have no prior."""
        raise UserError("autoencoder-kl does not generate: give it as --parent codec=RUN to a model of its latents")


def autoencoder_kl(size: Size = "small") -> Recipe:
    """The codec of latent diffusion: images as standardized maps at a quarter of the resolution (an eighth at size base), hardly regularized."""
    model = by_size(
        size,
        tiny=AutoencoderKLConfig(ResConvConfig(width=8, blocks=1, norm=True), dim=2),
        small=AutoencoderKLConfig(ResConvConfig(width=32, blocks=1, norm=True)),
        base=AutoencoderKLConfig(ResConvConfig(width=128, mults=(1, 2, 4), blocks=2, finer=1, norm=True, attention=True)),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=200_000),
        batch=by_size(size, tiny=32, small=64, base=64),
        opts={"main": OptConfig(lr=by_size(size, tiny=2e-3, small=1e-3, base=2e-4), warmup=0.02, decay="cosine", final=0.02, clip=1.0)},
        ema=EmaConfig(half_life=by_size(size, tiny=500, small=5_000, base=50_000)),
    )
    return Recipe(
        stages=(Stage(method=AutoencoderKL, model=model, data=DataConfig(multiple=model.net.multiple), train=train, parents={"features": ""}),),
        family="codebook",
        paper="Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, arXiv 2112.10752",
        summary="the continuous codec of latent diffusion: standardized latents, hardly regularized",
        expect=on_mnist(size, "autoencoder-kl", "90s", "avx2", psnr=23.5),
    )
