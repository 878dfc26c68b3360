"""The vector-quantized autoencoder (van den Oord, Vinyals, Kavukcuoglu, Neural Discrete Representation Learning, 2017, arXiv 1711.00937).

Idea: an encoder gives a vector for every few pixels, each is replaced by the nearest of K codes, and a decoder paints the image from the codes,

    L = -log p(x | q(z)) + |sg(z) - e|^2 + beta |z - sg(e)|^2,   z = E(x)                            eq. 3

where the second term, or moving averages in its place (appendix A.1), learn the codes. The gradient of the decoder passes to the encoder as if
there were no choice (section 3.2). An image is then a short text of h x w numbers: it takes another model to write such texts (`code-prior`), so
this one generates nothing by itself.

Any quantizer may stand in the middle, several at once too: see `nets.codebook`. With the discretized logistic the decoder is a distribution
over 8-bit images, so that -log p(x | codes) and the prior's -log p(codes) add up to bits per dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from ..core.protocols import Method, Tokenizer, Update
from ..core.recipe import DataConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, Request, UserError
from ..nets.codebook import CodebookConfig, VQConfig, codebook
from ..nets.painter import Painter
from ..nets.resconv import Down, ResConvConfig, grid
from ..objectives.likelihoods import logistic_log_prob
from ..objectives.reconstruction import Distance, reconstruction

__all__ = ["VQVAE", "VQVAEConfig", "vqvae"]


@dataclass(frozen=True)
class VQVAEConfig:
    """The nets, the codes, and what the decoder is a distribution over."""

    net: ResConvConfig = field(default_factory=ResConvConfig)
    dim: int = 16  # channels of a code
    codebook: CodebookConfig = field(default_factory=VQConfig)
    residual: int = 1  # codes a position, each for what the ones before left
    groups: int = 1  # of channels, with codes of their own
    distance: Distance = "logistic"


@final
class VQVAE(Method, Tokenizer):
    """encoder: x -> z (B, D, h, w); quantizer: z -> codes; decoder: codes -> p(x | codes)."""

    generates = False

    def __init__(self, info: DataInfo, config: VQVAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        self.grid = grid(info.shape, config.net)
        self.encoder = Down(info.shape.channels, config.dim, config.net)
        self.quantizer = codebook(config.codebook, config.dim, config.residual, config.groups)
        self.decoder = Painter(config.dim, info.shape.channels, config.net, config.distance == "logistic")
        self.vocabulary, self.grids = self.quantizer.vocabulary, (self.grid,) * self.quantizer.levels

    def updates(self) -> Sequence[Update]:
        """Eq. 3, the only row."""
        return (Update("reconstruct", ("encoder", "quantizer", "decoder"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Eq. 3: the reconstruction per dimension, and the quantizer's own terms."""
        found = self.quantizer(self.encoder(batch.x))
        mean, log_scale = self.decoder(found.z)
        rec = reconstruction(self.config.distance, batch.x, mean, log_scale)
        return {"loss": rec + found.loss, "rec": rec.detach(), **found.terms}

    def encode(self, x: Tensor) -> Tensor:
        """z (B, D, h, w), before the codes are chosen."""
        return self.encoder(x).float()

    def decode(self, z: Tensor) -> Tensor:
        """Images of the codes nearest to z (B, D, h, w)."""
        return self.paint(self.quantizer.indices(z))

    def paint(self, indices: Tensor) -> Tensor:
        """Decoder means (B, C, H, W) of codes (B, L, h, w)."""
        mean, _ = self.decoder(self.quantizer.lookup(indices))
        return mean.clamp(-1, 1)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, L h w): the codes of the first codebook row by row, then those of the next."""
        return self.quantizer.indices(self.encoder(x)).flatten(1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        return self.paint(self.unflatten(tokens))

    def unflatten(self, tokens: Tensor) -> Tensor:
        """(B, L h w) -> (B, L, h, w)."""
        return tokens.view(len(tokens), len(self.grids), *self.grid)

    def log_likelihood(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        """log p(x | codes), nats (B,), by the discretized logistic."""
        mean, log_scale = self.decoder(self.quantizer.lookup(self.unflatten(tokens)))
        return None if log_scale is None else logistic_log_prob(x, mean, log_scale)

    def draw(self, request: Request) -> Tensor:
        """UserError: it takes a prior to write codes."""
        raise UserError("vqvae does not generate: give it as --parent codec=RUN to 'pixelkiln train code-prior'")


def vqvae(size: Size = "small") -> Recipe:
    """A codec: images as 7 x 7 (of 28 pixels) codes of 512; `vq-transformer` trains it together with a model of its codes."""
    model = by_size(
        size,
        tiny=VQVAEConfig(ResConvConfig(width=8, blocks=1), dim=4, codebook=VQConfig(codes=16)),
        small=VQVAEConfig(ResConvConfig(width=32, blocks=1), dim=16),
        base=VQVAEConfig(ResConvConfig(width=128), dim=32, codebook=VQConfig(codes=1024)),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=128),
        opts={"main": OptConfig(lr=by_size(size, tiny=2e-2, small=1e-3, base=3e-4), warmup=0.02, decay="cosine", final=0.02, clip=1.0)},
    )
    stage = Stage(method=VQVAE, model=model, data=DataConfig(multiple=model.net.multiple), train=train)
    return Recipe(
        stages=(stage,),
        family="codebook",
        paper="van den Oord, Vinyals, Kavukcuoglu, Neural Discrete Representation Learning, 2017, arXiv 1711.00937",
        summary="images as a short text of codes from a learned codebook: the codec of code-prior",
        expect=on_mnist(size, "vqvae --model.codebook.codes 1024", "90s", "avx2", psnr=25.7),
    )
