"""A vector-quantized autoencoder whose decoder must also convince a discriminator (Esser, Rombach, Ommer, Taming Transformers for High-Resolution
Image Synthesis, 2021, arXiv 2012.09841, section 3.1).

    L = L_rec + L_perceptual + L_VQ + lambda w(t) L_GAN,   lambda = |grad L_rec| / (|grad L_GAN| + delta)              eq. 5 to 7

with a discriminator of patches, so that what the few codes cannot say is painted as texture and not as a mean. The gradients of lambda are those at
the decoder's last weights, and L_rec there is all of the reconstruction. An adversarial term that enters all at once tears down what was learned:
here the discriminator learns for a while before it is heard (`lead`), and is then heard little by little (w rises over `ramp`).

The perceptual term compares feature maps of a network that is given, --parent features=RUN of a `classifier`; without one there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Classifier, Method, Tokenizer, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, Request, UserError
from ..nets.codebook import CodebookConfig, VQConfig, codebook
from ..nets.painter import Painter
from ..nets.patch import PatchDiscriminator
from ..nets.resconv import Down, ResConvConfig, grid
from ..objectives.adversarial import adaptive_weight, critic_g, hinge_d
from ..objectives.reconstruction import feature_distance

__all__ = ["VQGAN", "VQGANConfig", "vqgan"]


@dataclass(frozen=True)
class VQGANConfig:
    """The nets, the codes, and when the discriminator is heard."""

    net: ResConvConfig = field(default_factory=lambda: ResConvConfig(norm=True))
    dim: int = 16  # channels of a code
    codebook: CodebookConfig = field(default_factory=VQConfig)
    residual: int = 1
    groups: int = 1
    judge_width: int = 32
    judge_halvings: int = 2
    perceptual: float = 1.0  # weight of the feature maps' distance, where there is a parent for it
    weight: float = 0.8  # of the adversarial term
    adaptive: bool = True  # times lambda
    start: float = 0.5  # share of training at which the discriminator begins to be heard
    lead: float = 0.05  # and how long before it begins to learn
    ramp: float = 0.1  # over which it comes to its weight


@final
class VQGAN(Method, Tokenizer):
    """encoder, quantizer and decoder as of `vqvae`; discriminator: image -> a logit for every patch. The decoder that paints is an average."""

    averaged = ("decoder",)
    generates = False

    def __init__(self, info: DataInfo, config: VQGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, self.grid = config, grid(info.shape, config.net)
        features = self.parents.get("features")
        if features is not None and not (isinstance(features, Classifier) and features.shape == info.shape):
            raise UserError(f"parent 'features' must be a classifier of images of {tuple(info.shape)}: give such a run, or leave it out")
        self.features: list[Classifier] = [features] if isinstance(features, Classifier) else []  # in a list: it is no net of ours
        self.encoder = Down(info.shape.channels, config.dim, config.net)
        self.quantizer = codebook(config.codebook, config.dim, config.residual, config.groups)
        self.decoder = Painter(config.dim, info.shape.channels, config.net, scaled=False)
        self.discriminator = PatchDiscriminator(info.shape.channels, config.judge_width, config.judge_halvings)
        self.vocabulary, self.grids = self.quantizer.vocabulary, (self.grid,) * self.quantizer.levels

    def updates(self) -> Sequence[Update]:
        """Autoencoder, then discriminator, on the same images."""
        return (
            Update("paint", ("encoder", "quantizer", "decoder"), self.loss_paint, opt="paint"),
            Update("judge", ("discriminator",), self.loss_judge, opt="judge", fresh=False),
        )

    def heard(self, moment: Moment) -> float:
        """w(t) in [0, 1]: 0 up to `start`, then linear over `ramp`."""
        since = moment.progress - self.config.start
        return 0.0 if since < 0 else 1.0 if self.config.ramp <= 0 else min(1.0, since / self.config.ramp)

    def loss_paint(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Eq. 6, the autoencoder's part."""
        c, x = self.config, batch.x
        found = self.quantizer(self.encoder(x))
        y, _ = self.decoder(found.z)
        l1 = (y - x).abs().mean()
        rec, terms = l1, {"l1": l1.detach(), **found.terms}
        for net in self.features:
            near = feature_distance(net.maps(y), [f.detach() for f in net.maps(x)])
            rec, terms["perceptual"] = rec + c.perceptual * near, near.detach()
        loss, share = rec + found.loss, self.heard(moment)
        if share > 0:
            adversarial = critic_g(self.discriminator(y))
            scale = adaptive_weight(rec, adversarial, self.decoder.up.last.weight) if c.adaptive else torch.ones_like(l1)
            loss = loss + c.weight * share * scale * adversarial
            terms |= {"adversarial": adversarial.detach(), "adaptive": scale}
        return {"loss": loss, **terms}

    def loss_judge(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The hinge loss, from `lead` before the start on."""
        if moment.progress < self.config.start - self.config.lead:
            return {"loss": self.discriminator.nothing()}
        with torch.no_grad():
            y, _ = self.decoder(self.quantizer(self.encoder(batch.x)).z)
        real, fake = self.discriminator(batch.x), self.discriminator(y)
        return {"loss": 0.5 * hinge_d(real, fake), "real": real.detach().float().mean(), "fake": fake.detach().float().mean()}

    def encode(self, x: Tensor) -> Tensor:
        """z (B, D, h, w), before the codes are chosen."""
        return self.encoder(x).float()

    def decode(self, z: Tensor) -> Tensor:
        """Images of the codes nearest to z (B, D, h, w)."""
        return self.from_tokens(self.quantizer.indices(z).flatten(1))

    def tokens(self, x: Tensor) -> Tensor:
        return self.quantizer.indices(self.encoder(x)).flatten(1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        y, _ = self.decoder(self.quantizer.lookup(tokens.view(len(tokens), len(self.grids), *self.grid)))
        return y.clamp(-1, 1)

    def draw(self, request: Request) -> Tensor:
        """UserError: it takes a prior to write codes."""
        raise UserError("vqgan does not generate: give it as --parent codec=RUN to 'pixelkiln train code-prior'")


def vqgan(size: Size = "small") -> Recipe:
    """A codec with a discriminator of patches, heard late; `vqgan-transformer` trains it together with a model of its codes."""
    model = by_size(
        size,
        tiny=VQGANConfig(ResConvConfig(width=8, blocks=1, norm=True), dim=4, codebook=VQConfig(codes=16), judge_width=8, judge_halvings=1, start=0.0, ramp=0.0),
        small=VQGANConfig(ResConvConfig(width=32, blocks=1, norm=True)),
        base=VQGANConfig(ResConvConfig(width=128, mults=(1, 2, 4), blocks=2, finer=1, norm=True, attention=True), dim=32, codebook=VQConfig(codes=1024),
                         judge_width=64, judge_halvings=3),
    )
    opt = OptConfig(lr=by_size(size, tiny=1e-3, small=1e-3, base=2e-4), betas=(0.5, 0.9), warmup=0.02, decay="cosine", final=0.1, clip=1.0)
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=200_000),
        batch=by_size(size, tiny=32, small=64, base=64),
        opts={"paint": opt, "judge": OptConfig(lr=by_size(size, tiny=1e-3, small=5e-4, base=2e-4), betas=(0.5, 0.9))},
        ema=EmaConfig(half_life=by_size(size, tiny=500, small=5_000, base=50_000)),
    )
    stage = Stage(method=VQGAN, model=model, data=DataConfig(multiple=model.net.multiple), train=train, parents={"features": ""})
    return Recipe(
        stages=(stage,),
        family="codebook",
        paper="Esser, Rombach, Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021, arXiv 2012.09841",
        summary="a VQ-VAE whose decoder must convince a discriminator of patches: sharp codes for code-prior",
        expect=on_mnist(size, "vqgan --model.codebook.codes 1024", "90s", "avx2", psnr=22.1),
    )
