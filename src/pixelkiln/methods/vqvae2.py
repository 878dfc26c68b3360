"""A VQ-VAE with two maps of codes (Razavi, van den Oord, Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446).

    h = E_bottom(x),   e_top = q(E_top(h)),   e_bottom = q(W [h, D_top(e_top)]),   x' = D(D_top(e_top), e_bottom)                  algorithm 1

The top map has half the sides of the bottom one: it says what is where, and the bottom map, which is chosen knowing the top codes, says the rest. As a
sequence the top codes come first, so that one model of sequences writes both (the paper has a model for each). The decoder reads the top codes as
D_top(e_top), at the bottom's sides (the paper's as the codes themselves, enlarged by a convolution of their own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from ..core.protocols import Method, Tokenizer, Update
from ..core.recipe import DataConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, ImageShape, Moment, Request, UserError
from ..nets.codebook import CodebookConfig, VQConfig, codebook
from ..nets.painter import Painter
from ..nets.resconv import Down, ResConvConfig, Up, grid
from ..objectives.likelihoods import logistic_log_prob
from ..objectives.reconstruction import Distance, reconstruction

__all__ = ["VQVAE2", "VQVAE2Config", "vqvae2"]


@dataclass(frozen=True)
class VQVAE2Config:
    """The nets down to the bottom codes (the top ones are one halving further), and the codes of both."""

    net: ResConvConfig = field(default_factory=lambda: ResConvConfig(mults=(1,)))
    dim: int = 16  # channels of a code
    codebook: CodebookConfig = field(default_factory=VQConfig)
    distance: Distance = "logistic"


@final
class VQVAE2(Method, Tokenizer):
    """below: x -> h; above: h -> top z; lift: top codes -> (B, D, h, w); join: both -> bottom z; top and bottom: quantizers; decoder."""

    generates = False

    def __init__(self, info: DataInfo, config: VQVAE2Config, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, c, wide = config, config, config.net.widths[-1]
        self.bottom_grid = grid(info.shape, c.net)
        further = replace(c.net, mults=(c.net.mults[-1],))
        self.top_grid = grid(ImageShape(wide, *self.bottom_grid), further)
        self.below, self.above = Down(info.shape.channels, wide, c.net), Down(wide, c.dim, further)
        self.lift, self.join = Up(c.dim, c.dim, further), nn.Conv2d(wide + c.dim, c.dim, 1)
        self.top, self.bottom = codebook(c.codebook, c.dim), codebook(c.codebook, c.dim)
        self.decoder = Painter(2 * c.dim, info.shape.channels, c.net, c.distance == "logistic")
        self.vocabulary, self.grids = self.top.vocabulary, (self.top_grid, self.bottom_grid)

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("reconstruct", ("below", "above", "lift", "join", "top", "bottom", "decoder"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The reconstruction per dimension, and the quantizers' own terms."""
        h = self.below(batch.x)
        top = self.top(self.above(h))
        lifted = self.lift(top.z)
        bottom = self.bottom(self.join(torch.cat([h, lifted.to(h.dtype)], dim=1)))
        mean, log_scale = self.decoder(torch.cat([lifted.float(), bottom.z], dim=1))
        rec = reconstruction(self.config.distance, batch.x, mean, log_scale)
        terms = {f"{name}_{k}": v for name, found in (("top", top), ("bottom", bottom)) for k, v in found.terms.items()}
        return {"loss": rec + top.loss + bottom.loss, "rec": rec.detach(), **terms}

    def encode(self, x: Tensor) -> Tensor:
        """(B, 2 D, h, w): top z, each vector four times, and bottom z, both before the codes are chosen."""
        h = self.below(x)
        top = self.above(h).float()
        lifted = self.lift(self.top.lookup(self.top.indices(top)))
        bottom = self.join(torch.cat([h, lifted.to(h.dtype)], dim=1)).float()
        return torch.cat([top.repeat_interleave(2, 2).repeat_interleave(2, 3), bottom], dim=1)

    def codes(self, z: Tensor) -> Tensor:
        """What `encode` gives -> (B, N): the numbers of the nearest codes, those of the top first."""
        top, bottom = z.chunk(2, dim=1)
        return torch.cat([self.top.indices(top[:, :, ::2, ::2]).flatten(1), self.bottom.indices(bottom).flatten(1)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Images of the codes nearest to z (B, 2 D, h, w)."""
        return self.from_tokens(self.codes(z))

    def tokens(self, x: Tensor) -> Tensor:
        return self.codes(self.encode(x))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        mean, _ = self._painted(tokens)
        return mean.clamp(-1, 1)

    def _painted(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's output for codes (B, N)."""
        b, most = len(tokens), self.top_grid[0] * self.top_grid[1]
        lifted = self.lift(self.top.lookup(tokens[:, :most].view(b, 1, *self.top_grid)))
        found: tuple[Tensor, Tensor | None] = self.decoder(torch.cat([lifted.float(), self.bottom.lookup(tokens[:, most:].view(b, 1, *self.bottom_grid))], dim=1))
        return found

    def log_likelihood(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        """log p(x | codes), nats (B,), by the discretized logistic."""
        mean, log_scale = self._painted(tokens)
        return None if log_scale is None else logistic_log_prob(x, mean, log_scale)

    def draw(self, request: Request) -> Tensor:
        """UserError: it takes a prior to write codes."""
        raise UserError("vqvae2 does not generate: give it as --parent codec=RUN to 'pixelkiln train code-prior'")


def vqvae2(size: Size = "small") -> Recipe:
    """A codec with two maps of codes: 7 x 7 and 14 x 14 of 28 pixels."""
    model = by_size(
        size,
        tiny=VQVAE2Config(ResConvConfig(width=8, mults=(1,), blocks=1), dim=4, codebook=VQConfig(codes=16)),
        small=VQVAE2Config(ResConvConfig(width=32, mults=(1,), blocks=1), dim=8, codebook=VQConfig(codes=256)),
        base=VQVAE2Config(ResConvConfig(width=128, mults=(1, 2)), dim=32),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=128),
        opts={"main": OptConfig(lr=by_size(size, tiny=1e-2, small=1e-3, base=3e-4), warmup=0.02, decay="cosine", final=0.02, clip=1.0)},
    )
    return Recipe(
        stages=(Stage(method=VQVAE2, model=model, data=DataConfig(multiple=2 * model.net.multiple), train=train),),
        family="codebook",
        paper="Razavi, van den Oord, Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv 1906.00446",
        summary="a VQ-VAE with a coarse and a fine map of codes: a codec of code-prior",
        expect=on_mnist(size, "vqvae2 --model.codebook.codes 1024", "90s", "avx2", psnr=27.8),
    )
