"""The variational autoencoder (Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv 1312.6114).

Idea: a decoder turns z ~ p(z) into the parameters of a distribution p(x|z) over images, and an encoder turns an image into
q(z|x) = N(mu(x), sigma^2(x)), a guess at which z it came from. Both are trained to raise the evidence lower bound (eq. 3)

    log p(x) >= L(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)),

with z = mu + sigma * eps, so that the gradient flows through the sample (section 2.4, eq. 10). Terms are summed over pixels and
latent units and averaged over the batch, in nats; `beta` (Higgins et al. 2017) weighs the KL in those units, at any resolution.

Prior: `normal` is N(0, I). No encoder fills N(0, I) evenly, and what decodes from its holes are the ugly samples of plain VAEs; `flow`
learns p(z) instead, as z = g(u) with u ~ N(0, I) and an invertible g (Chen et al., Variational Lossy Autoencoder, 2017, arXiv 1611.02731).
Likelihoods: `bernoulli` models dynamically binarized images (every step draws its own), `continuous-bernoulli` (Loaiza-Ganem and Cunningham
2019, arXiv 1907.06845) and `gaussian` the density of dequantized 8-bit images, on [0, 1] and on the line, `logistic` the 256 levels themselves; the last two with one learned scale per channel. Samples are decoder means, not draws
from p(x|z). The test score is the importance-weighted bound (Burda et al. 2016, arXiv 1509.00519, eq. 8).
Codes and latents are u throughout (u = z under the normal prior).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.types import Batch, DataInfo, Moment, UserError
from ..nets.coders import coders, prior
from ..objectives import variational as vi
from ..objectives.amortized import Amortized, Setting, checked

__all__ = ["VAE", "VAEConfig", "vae", "vae_mlp"]

PAPER = "Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv 1312.6114"


@dataclass(frozen=True)
class VAEConfig(Setting):
    """A VAE. beta weighs the KL in ELBO units, and rises to its value over the first `warmup` of training."""

    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0  # nats per latent unit that cost the same whether used or not (normal prior)


@final
class VAE(Amortized):
    """encoder: x -> (mu, log sigma^2); decoder: z -> p(x|z); prior: u -> z, where it is learned."""

    def __init__(self, info: DataInfo, config: VAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        if min(config.beta, config.warmup, config.free_bits) < 0:
            raise UserError("--model.beta, --model.warmup and --model.free_bits cannot be negative")
        if config.free_bits and config.prior == "flow":
            raise UserError("--model.free_bits counts nats per unit, which a flow prior does not have: set --model.prior normal")
        super().__init__(info, checked(config), coders(info.shape, config, 2 * config.latent), prior(config), parents)
        self.config = config

    def updates(self) -> Sequence[Update]:
        return (Update("elbo", self.averaged, self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-L(x) averaged over the batch, in nats, with `beta`, warm-up and free bits; `rec` and `kl` are the plain terms."""
        c = self.config
        rec, kl, units, logged = self.parts(batch.x)
        cost = kl if units is None or not c.free_bits else vi.free_bits(units, c.free_bits)
        return {"loss": rec + c.beta * vi.warmed_up(moment.progress, c.warmup) * cost, **logged}


def vae(size: Size = "small") -> Recipe:
    """A convolutional VAE with a learned prior and 256-level likelihood, for grey and color images with sides that are multiples of 4."""
    model = by_size(
        size,
        tiny=VAEConfig(latent=4, width=4, hidden=16, prior="flow", flow_width=8, flow_layers=2),
        small=VAEConfig(latent=20, width=16, hidden=256, prior="flow"),
        base=VAEConfig(latent=64, width=64, depth=2, hidden=512, prior="flow", flow_width=256, flow_layers=8),
    )
    opt = OptConfig(lr=2e-3, decay="cosine", final=0.02)
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=100_000),
        batch=by_size(size, tiny=32, small=64, base=256),
        opts={"main": opt},
        ema=EmaConfig(half_life=50_000),
    )
    stage = Stage(method=VAE, model=model, data=DataConfig(multiple=4), train=train)
    summary = "convolutional VAE with a learned prior: fast, blurry, with a likelihood"
    return Recipe((stage,), family="vae", paper=PAPER, summary=summary, expect=on_mnist(size, "vae", "2m", fd=5.09))


def vae_mlp(size: Size = "small") -> Recipe:
    """The 784-400-20 VAE of the paper's appendix C, Bernoulli on dynamically binarized images, for any shape."""
    model = by_size(
        size,
        tiny=VAEConfig(latent=4, net="mlp", width=16, depth=1, likelihood="bernoulli"),
        small=VAEConfig(latent=20, net="mlp", width=400, depth=1, likelihood="bernoulli"),
        base=VAEConfig(latent=50, net="mlp", width=1000, depth=2, likelihood="bernoulli"),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=100_000),
        batch=by_size(size, tiny=32, small=128, base=128),
        opts={"main": OptConfig(lr=1e-3)},
    )
    stage = Stage(method=VAE, model=model, train=train)
    return Recipe((stage,), family="vae", paper=PAPER, summary="the first VAE: two perceptrons, binarized images",
                  expect=on_mnist(size, "vae-mlp", "2m", fd=20.0))
