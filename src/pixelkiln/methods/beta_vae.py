"""The beta-VAE (Higgins et al., beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, ICLR 2017), and its capacity.

    L = E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)),   beta > 1                                                     Higgins et al. 2017
    L = E_q[-log p(x|z)] + gamma |KL(q(z|x) || N(0, I)) - C(t)|,   C rising from 0                  Burgess et al. 2018, arXiv 1804.03599

The prior is a product over units, so a stronger KL makes every unit pay for what it says, and leaves few that say independent things: directions
that can be named. It also blurs. The second form opens the channel slowly instead, to C nats in the end: units are taken up one after the other.
KL is the mean over the batch of the sum over units, in nats, at any resolution. Images are modelled as in `vae`; Bernoulli (both papers') by default:
under a learned scale, the weight of the KL and the scale would trade against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, UserError
from ..nets.coders import coders
from ..objectives.amortized import Amortized, Modeled, Setting, checked
from ..objectives.variational import warmed_up

__all__ = ["BetaVAE", "BetaVAEConfig", "beta_vae"]


@dataclass(frozen=True)
class BetaVAEConfig(Setting):
    """A beta-VAE. beta rises over the first `warmup` of training; gamma above 0 takes the second form, in which C rises over the first `rise`."""

    latent: int = 10
    likelihood: Modeled = "bernoulli"
    beta: float = 4.0
    warmup: float = 0.0
    gamma: float = 0.0
    capacity: float = 25.0  # nats of C in the end
    rise: float = 0.8


@final
class BetaVAE(Amortized):
    """encoder: x -> (mu, log sigma^2); decoder: z -> p(x|z)."""

    def __init__(self, info: DataInfo, config: BetaVAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        if min(config.beta, config.warmup, config.gamma, config.capacity, config.rise) < 0:
            raise UserError("--model.beta, warmup, gamma, capacity and rise cannot be negative")
        if config.prior != "normal":
            raise UserError("beta-vae needs a prior that is a product over units: set --model.prior normal, or train vae")
        super().__init__(info, checked(config), coders(info.shape, config, 2 * config.latent), None, parents)
        self.config = config

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("elbo", self.averaged, self.loss, opt="main"),)

    def allowed(self, moment: Moment) -> float:
        """C(t) in nats, from 0 in a straight line to `capacity`."""
        return self.config.capacity * warmed_up(moment.progress, self.config.rise)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L of either form; `rec` and `kl` are the plain terms, `allowed` is C(t)."""
        c = self.config
        rec, kl, _, logged = self.parts(batch.x)
        if not c.gamma:
            return {"loss": rec + c.beta * warmed_up(moment.progress, c.warmup) * kl, **logged}
        allowed = self.allowed(moment)
        return {"loss": rec + c.gamma * (kl - allowed).abs(), **logged, "allowed": torch.tensor(allowed, device=kl.device)}


def beta_vae(size: Size = "small") -> Recipe:
    """A convolutional VAE that pays beta times for its codes, for factors of variation that can be named. Sides are multiples of 4."""
    model = by_size(
        size,
        tiny=BetaVAEConfig(latent=4, width=4, hidden=16),
        small=BetaVAEConfig(latent=10, width=16, hidden=256),
        base=BetaVAEConfig(latent=10, width=64, depth=2, hidden=512),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=200_000),
        batch=by_size(size, tiny=32, small=64, base=64),
        opts={"main": OptConfig(lr=by_size(size, tiny=2e-3, small=1e-3, base=5e-4))},
        ema=EmaConfig(half_life=50_000),
    )
    return Recipe(
        stages=(Stage(method=BetaVAE, model=model, data=DataConfig(multiple=4), train=train),),
        family="vae",
        paper="Higgins et al., beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, ICLR 2017; capacity: Burgess et al. 2018",
        summary="a VAE that pays more for its codes: fewer, independent ones that can be named",
        expect=on_mnist(size, "beta-vae", "3m", "avx2", fd=15.1),
    )
