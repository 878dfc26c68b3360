"""The discrete VAE: codes drawn from a categorical, relaxed (Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, section 2.1).

    log p(x) >= E_q(c|x)[log p(x | c)] - beta KL(q(c | x) || uniform),   KL = sum over positions of log K - H(q)            eq. 1

The draw is relaxed to softmax((logits + Gumbel noise) / tau), a mixture of codes with a gradient (Jang et al. 2017, arXiv 1611.01144); tau falls by
a cosine from 1 to 1/16 over the first half of training, so that the mixtures become draws (appendix A.2). Outside of training the likeliest code is
taken. Terms are nats per dimension of the image, both of them, so that beta = 1 is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from ..core.protocols import Method, Tokenizer, Update
from ..core.recipe import DataConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, Request, UserError
from ..nets.gumbel import SOFT, GumbelCodes, Keys
from ..nets.painter import Painter
from ..nets.resconv import Down, ResConvConfig, grid
from ..objectives.likelihoods import logistic_log_prob
from ..objectives.variational import warmed_up

__all__ = ["DVAE", "DVAEConfig", "dvae"]


@dataclass(frozen=True)
class DVAEConfig:
    """The nets, the codes, and the schedules of temperature and of the KL's weight."""

    net: ResConvConfig = field(default_factory=ResConvConfig)
    codes: int = 512
    dim: int = 16  # channels of a code's vector
    hot: float = 1.0  # temperature at the start
    cold: float = 1 / 16  # and at the end of `anneal`
    anneal: float = 0.5  # share of training
    beta: float = 1.0  # of the KL; it rises from 0
    warmup: float = 0.5  # over this share of training


@final
class DVAE(Method, Tokenizer):
    """encoder: x -> vectors (B, D, h, w) -> logits (B, K, h, w); codes: logits -> z (B, D, h, w); decoder: z -> p(x | z)."""

    generates = False

    def __init__(self, info: DataInfo, config: DVAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        if config.codes < 2 or not 0 < config.cold <= config.hot:
            raise UserError("--model.codes must be 2 or more, and 0 < --model.cold <= --model.hot")
        self.config, self.grid = config, grid(info.shape, config.net)
        keys = Keys(config.dim, config.codes)
        self.encoder = nn.Sequential(Down(info.shape.channels, config.dim, config.net), keys)
        self.codes = GumbelCodes(config.codes, config.dim)
        self.codes.table.data.copy_(keys.keys / SOFT)  # at first a mixture of likely codes lies where the encoder's vector points
        self.decoder = Painter(config.dim, info.shape.channels, config.net, scaled=True)
        self.vocabulary, self.grids = config.codes, (self.grid,)

    def updates(self) -> Sequence[Update]:
        """Eq. 1, the only row."""
        return (Update("elbo", ("encoder", "codes", "decoder"), self.loss, opt="main"),)

    def temperature(self, progress: float) -> float:
        """From `hot` to `cold` by half a cosine over the first `anneal` of training."""
        c = self.config
        share = 1.0 if c.anneal <= 0 else min(1.0, progress / c.anneal)
        return c.cold + (c.hot - c.cold) * (1 + math.cos(math.pi * share)) / 2

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The negative bound of eq. 1 in nats per dimension, of relaxed draws."""
        c, x = self.config, batch.x
        tau = self.temperature(moment.progress)
        drawn = self.codes(self.encoder(x), tau)
        rec, kl = -self._painted(x, drawn.z).mean() / x[0].numel(), drawn.kl.mean() / x[0].numel()
        weight = c.beta * warmed_up(moment.progress, c.warmup)
        return {"loss": rec + weight * kl, "rec": rec.detach(), "kl": kl.detach(), "temperature": kl.new_tensor(tau), **drawn.terms}

    def _painted(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), nats (B,)."""
        mean, log_scale = self.decoder(z)
        assert log_scale is not None
        return logistic_log_prob(x, mean, log_scale)

    def encode(self, x: Tensor) -> Tensor:
        """Logits (B, K, h, w)."""
        return self.encoder(x).float()

    def decode(self, z: Tensor) -> Tensor:
        """Images of the likeliest codes of logits (B, K, h, w)."""
        return self.from_tokens(z.argmax(1).flatten(1))

    def tokens(self, x: Tensor) -> Tensor:
        return self.encode(x).argmax(1).flatten(1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        mean, _ = self.decoder(self._looked_up(tokens))
        return mean.clamp(-1, 1)

    def _looked_up(self, tokens: Tensor) -> Tensor:
        """(B, h w) -> (B, D, h, w)."""
        return self.codes.lookup(tokens.view(len(tokens), 1, *self.grid))

    def log_likelihood(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        """log p(x | codes), nats (B,), by the discretized logistic."""
        return self._painted(x, self._looked_up(tokens))

    def draw(self, request: Request) -> Tensor:
        """UserError: it takes a prior to write codes."""
        raise UserError("dvae does not generate: give it as --parent codec=RUN to 'pixelkiln train code-prior'")


def dvae(size: Size = "small") -> Recipe:
    """A codec whose codes are drawn, by a relaxation that grows cold; a codec of `code-prior`."""
    model = by_size(
        size,
        tiny=DVAEConfig(ResConvConfig(width=8, blocks=1), codes=16, dim=8),
        small=DVAEConfig(ResConvConfig(width=32, blocks=1)),
        base=DVAEConfig(ResConvConfig(width=128), codes=2048, dim=128),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=128),
        opts={"main": OptConfig(lr=by_size(size, tiny=2e-2, small=1e-3, base=3e-4), warmup=0.02, decay="cosine", final=0.02, clip=1.0)},
    )
    return Recipe(
        stages=(Stage(method=DVAE, model=model, data=DataConfig(multiple=model.net.multiple), train=train),),
        family="codebook",
        paper="Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092",
        summary="a VAE with categorical codes, drawn by a Gumbel softmax that grows cold: a codec of code-prior",
        expect=on_mnist(size, "dvae --model.codes 1024", "90s", "avx2", psnr=19.5),
    )
