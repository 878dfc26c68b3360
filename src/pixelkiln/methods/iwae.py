"""The importance weighted autoencoder (Burda, Grosse, Salakhutdinov, Importance Weighted Autoencoders, 2016, arXiv 1509.00519).

    log p(x) >= L_K(x) = E[log 1/K sum_k w_k],   w_k = p(x, z_k) / q(z_k|x),   z_k ~ q(z|x)                                            eq. 8
    grad L_K = E[sum_k w~_k grad log w(x, z(x, eps_k))],   w~_k = w_k / sum_j w_j                                             eq. 13 and 14

L_1 is the VAE's bound, and L_K rises with K to log p(x). q need not fit every sample well, only one of K: it is free to be wider, and more units
stay active. All densities are taken at the samples (no KL in closed form, which would not belong to this bound), and the logarithm is of a mean of
weights: a weighted mean of losses that puts its weights on the worst sample is a mistake that has been published as code.

For the encoder the signal of that gradient vanishes faster than its noise as K grows (Rainforth et al. 2018, arXiv 1802.04537). `--model.gradient dreg`
gives the encoder sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d phi) instead, of the same mean (Tucker et al. 2019, arXiv 1810.04152).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, UserError
from ..nets.coders import coders, prior
from ..objectives import variational as vi
from ..objectives.amortized import Amortized, Modeled, Setting, checked

__all__ = ["IWAE", "IWAEConfig", "iwae"]


@dataclass(frozen=True)
class IWAEConfig(Setting):
    """An IWAE. log p(z) - log q(z|x) has a weight that rises to 1 over the first `warmup` of training."""

    latent: int = 50
    net: Literal["mlp", "conv"] = "mlp"
    width: int = 200
    depth: int = 2
    likelihood: Modeled = "bernoulli"
    samples: int = 5  # K
    gradient: Literal["plain", "dreg"] = "plain"  # of the encoder
    warmup: float = 0.0


@final
class IWAE(Amortized):
    """encoder: x -> (mu, log sigma^2); decoder: z -> p(x|z); prior: u -> z, where it is learned."""

    def __init__(self, info: DataInfo, config: IWAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        if config.samples < 1 or config.warmup < 0:
            raise UserError("--model.samples must be 1 or more, and --model.warmup not negative")
        super().__init__(info, checked(config), coders(info.shape, config, 2 * config.latent), prior(config), parents)
        self.config = config

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("bound", self.averaged, self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-L_K averaged over the batch, in nats; `rec` and `kl` are the terms of the VAE's bound, `ess` is 1 / sum w~^2, in 1..K."""
        c, weight = self.config, vi.warmed_up(moment.progress, self.config.warmup)
        x = self.observed(batch.x, torch.rand_like(batch.x))
        mean, log_var = self.posterior(x)
        z = vi.reparameterize(mean, log_var, torch.randn(c.samples, *mean.shape, device=mean.device))  # (K, B, J)
        if c.gradient == "dreg":
            log_w = self.log_weights(x, z, mean.detach(), log_var.detach(), weight=weight)
            bound = vi.doubly_reparameterized(log_w, z, weight)
        else:
            log_w = self.log_weights(x, z, mean, log_var, weight=weight)
            bound = vi.importance_bound(log_w)
        with torch.no_grad():
            kl = (vi.log_normal(z, mean, log_var) - self.log_prior(z)).mean()
            rec = -log_w.mean() - weight * kl
            units = vi.kl_per_unit(mean, log_var) if self.prior is None else None
            ess = (1 / torch.softmax(log_w, 0).square().sum(0)).mean()
            nats = bound.mean() if weight == 1 else -(rec + kl)
        return {"loss": -bound.mean(), "rec": rec, "kl": kl, "ess": ess, **self.told(nats, mean, units)}


def iwae(size: Size = "small") -> Recipe:
    """The paper's model with one stochastic layer: 200-200-50 perceptrons, Bernoulli on dynamically binarized images; for any shape."""
    model = by_size(
        size,
        tiny=IWAEConfig(latent=4, width=16, depth=1, samples=3),
        small=IWAEConfig(latent=50, width=200, depth=2, samples=5),
        base=IWAEConfig(latent=50, width=200, depth=2, samples=50, gradient="dreg"),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=500_000),
        batch=by_size(size, tiny=32, small=128, base=100),
        opts={"main": OptConfig(lr=1e-3, decay="cosine", final=0.1)},
        ema=EmaConfig(half_life=50_000),
    )
    return Recipe(
        stages=(Stage(method=IWAE, model=model, train=train),),
        family="vae",
        paper="Burda, Grosse, Salakhutdinov, Importance Weighted Autoencoders, 2016, arXiv 1509.00519",
        summary="a VAE with a tighter bound, by several samples of the code for every image",
        expect=on_mnist(size, "iwae", "3m", "avx2", fd=25.4),
    )
