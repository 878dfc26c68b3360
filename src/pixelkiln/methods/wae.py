"""The Wasserstein autoencoder with MMD (Tolstikhin et al., Wasserstein Auto-Encoders, 2018, arXiv 1711.01558).

    L = E_x E_q(z|x) |x - G(z)|^2 + lambda MMD^2(q(z), p(z)),   q(z) = E_x q(z|x),   p(z) = N(0, I)                  eq. 4, algorithm 2

A VAE's KL pulls the code of each image towards the prior, and codes of different images into one another; here only all codes together have to
look like the prior, so that an encoder may be a function. MMD is estimated without bias from the codes of a batch and as many draws from the
prior, under a sum of inverse multiquadratic kernels (objectives/discrepancy.py). The squared error is summed over pixels, images in [-1, 1].

There is no likelihood: the cost is a distance, and a decoder of one image for each code has no density. It therefore offers no score in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Method, Posterior, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, UserError
from ..nets.coders import coders
from ..objectives.amortized import Coded, Coding
from ..objectives.discrepancy import mmd2
from ..objectives.variational import active_units, reparameterize

__all__ = ["WAE", "WAEConfig", "wae"]


@dataclass(frozen=True)
class WAEConfig(Coding):
    """A WAE-MMD. `penalty` is lambda."""

    latent: int = 8
    penalty: float = 100.0
    encoder: Literal["deterministic", "gaussian"] = "deterministic"


@final
class WAE(Coded, Posterior):
    """encoder: x -> z, or mu and log sigma^2 of it; decoder: z -> x."""

    averaged = ("encoder", "decoder")

    def __init__(self, info: DataInfo, config: WAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        if config.latent < 1 or config.penalty < 0:
            raise UserError("--model.latent must be 1 or more, and --model.penalty not negative")
        self.config, self.latent = config, config.latent
        self.encoder, self.decoder = coders(info.shape, config, config.latent * (2 if config.encoder == "gaussian" else 1))

    def updates(self) -> Sequence[Update]:
        """Algorithm 2, the only row."""
        return (Update("wae", ("encoder", "decoder"), self.loss, opt="main"),)

    def posterior(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """mu (B, J) and log sigma^2 (B, J) of q(z|x), None where it is a point, for x (B, C, H, W) in [-1, 1]."""
        out = self.encoder((x + 1) / 2).float()  # black is 0, as padding is
        if self.config.encoder == "deterministic":
            return out, None
        mean, log_var = out.chunk(2, dim=1)
        return mean, log_var.clamp(-30, 20)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L; `rec` is the squared error of an image, `mmd` the discrepancy, `deviation` the codes' (the prior's is 1)."""
        if len(batch.x) < 2:
            raise UserError("a wae compares the codes of a batch with each other: give --train.batch 2 or more (for each of its parts)")
        mean, log_var = self.posterior(batch.x)
        z = mean if log_var is None else reparameterize(mean, log_var, torch.randn_like(mean))
        rec = (batch.x - self.decoder(z).float()).square().flatten(1).sum(1).mean()
        mmd = mmd2(z, torch.randn_like(z))
        logged = {"rec": rec, "mmd": mmd, "deviation": z.std(0).mean(), "active_units": active_units(mean)}
        return {"loss": rec + self.config.penalty * mmd} | {name: term.detach() for name, term in logged.items()}

    def encode(self, x: Tensor) -> Tensor:
        """Codes, or their means, (B, J)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of codes (B, J)."""
        return self.paint(z)

    def paint(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The same: codes are z."""
        return self.decoder(z).float().clamp(-1, 1)


def wae(size: Size = "small") -> Recipe:
    """An autoencoder whose codes all together look like N(0, I): sharper than a plain VAE, without a likelihood. Sides are multiples of 4."""
    model = by_size(
        size,
        tiny=WAEConfig(latent=4, width=4, hidden=16),
        small=WAEConfig(latent=8, width=16, hidden=256),
        base=WAEConfig(latent=64, width=64, depth=2, hidden=512),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=100_000),
        batch=by_size(size, tiny=32, small=128, base=256),
        opts={"main": OptConfig(lr=1e-3, decay="cosine", final=0.02)},
        ema=EmaConfig(half_life=50_000),
    )
    return Recipe(
        stages=(Stage(method=WAE, model=model, data=DataConfig(multiple=4), train=train),),
        family="vae",
        paper="Tolstikhin, Bousquet, Gelly, Schoelkopf, Wasserstein Auto-Encoders, 2018, arXiv 1711.01558",
        summary="an autoencoder whose codes together look like N(0, I), by MMD; no likelihood",
        expect=on_mnist(size, "wae", "3m", "avx2", fd=17.6),
    )
