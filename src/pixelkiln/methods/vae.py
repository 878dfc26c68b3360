"""The variational autoencoder (Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv 1312.6114).

Idea: a decoder turns z ~ p(z) into the parameters of a distribution p(x|z) over images, and an encoder turns an image into
q(z|x) = N(mu(x), sigma^2(x)), a guess at which z it came from. Both are trained to raise the evidence lower bound (eq. 3)

    log p(x) >= L(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)),

with z = mu + sigma * eps, so that the gradient flows through the sample (section 2.4, eq. 10). Terms are summed over pixels and
latent units and averaged over the batch, in nats; `beta` (Higgins et al. 2017) weighs the KL in those units, at any resolution.

Prior: `normal` is N(0, I). No encoder fills N(0, I) evenly, and what decodes from its holes are the ugly samples of plain VAEs; `flow`
learns p(z) instead, as z = g(u) with u ~ N(0, I) and an invertible g (Chen et al., Variational Lossy Autoencoder, 2017, arXiv 1611.02731).
Likelihoods: `bernoulli` models dynamically binarized images (every step draws its own), `gaussian` the density of dequantized 8-bit
images, `logistic` the 256 levels themselves; the last two with one learned scale per channel. Samples are decoder means, not draws
from p(x|z). The test score is the importance-weighted bound (Burda et al. 2016, arXiv 1509.00519, eq. 8).
Codes and latents are u throughout (u = z under the normal prior).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.protocols import Codec, Latent, Likelihood, Method, Score, Update
from ..core.recipe import DataConfig, EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Batch, DataInfo, Moment, Request, UserError
from ..nets.convae import ConvDecoder, ConvEncoder
from ..nets.mlp import CouplingFlow, MLPDecoder, MLPEncoder
from ..objectives import likelihoods as lik
from ..objectives import variational as vi

__all__ = ["VAE", "VAEConfig", "vae", "vae_mlp"]

CHUNK = 2048  # images decoded at once for the importance-weighted bound
SCALE_SPEED = 10.0  # the log-scales learn so many times faster than the weights
MEASURED = {
    "vae": (Expect("fd", 5.09, "mnist", "pixelkiln train vae --data mnist --out R --budget 2m", "2 cores of a Xeon with AMX, bf16"),),
    "vae-mlp": (Expect("fd", 20.0, "mnist", "pixelkiln train vae-mlp --data mnist --out R --budget 2m", "2 cores of a Xeon with AMX, bf16"),),
}
PAPER = "Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv 1312.6114"


@dataclass(frozen=True)
class VAEConfig:
    """A VAE. beta weighs the KL in ELBO units, and rises to its value over the first `warmup` of training."""

    latent: int = 20  # units of z
    net: Literal["mlp", "conv"] = "conv"
    width: int = 32  # mlp: hidden units; conv: channels of the largest map
    depth: int = 0  # mlp: hidden layers; conv: residual blocks at every size
    hidden: int = 256  # conv: units of the layer next to z
    prior: Literal["normal", "flow"] = "normal"
    flow_width: int = 64  # hidden units of a coupling
    flow_layers: int = 6
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "logistic"
    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0  # nats per latent unit that cost the same whether used or not (normal prior)


@final
class Decoder(nn.Module):
    """z (B, J) to the parameters of p(x|z): `net(z)`, logits or means (B, C, H, W), and one log-scale per channel where there is one."""

    def __init__(self, net: nn.Module, channels: int | None) -> None:
        super().__init__()
        self.net = net
        self.raw_scale = None if channels is None else nn.Parameter(torch.full((channels, 1, 1), -1.0 / SCALE_SPEED))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = None if self.raw_scale is None else lik.soft_floor(self.raw_scale.float() * SCALE_SPEED)
        return self.net(z).float(), scale


@final
class VAE(Method, Codec, Latent, Likelihood):
    """encoder: x -> (mu, log sigma^2); decoder: z -> p(x|z); prior: u -> z, where it is learned."""

    def __init__(self, info: DataInfo, config: VAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        _check(config)
        self.config = c = config
        shape = info.shape
        if c.net == "mlp":
            self.encoder: nn.Module = MLPEncoder(shape, 2 * c.latent, c.width, c.depth)
            net: nn.Module = MLPDecoder(c.latent, shape, c.width, c.depth)
        else:
            self.encoder = ConvEncoder(shape, 2 * c.latent, c.width, c.depth, c.hidden)
            net = ConvDecoder(c.latent, shape, c.width, c.depth, c.hidden)
        self.decoder = Decoder(net, None if c.likelihood == "bernoulli" else shape.channels)
        self.prior = CouplingFlow(c.latent, c.flow_width, c.flow_layers) if c.prior == "flow" else None
        self.averaged = ("encoder", "decoder") if self.prior is None else ("encoder", "decoder", "prior")

    def updates(self) -> Sequence[Update]:
        return (Update("elbo", self.averaged, self.loss, opt="main"),)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 of q(z|x), (B, J) each, for what `observed` returns."""
        mean, log_var = self.encoder((x + 1) / 2).float().chunk(2, dim=1)  # black is 0, as padding is
        return mean, log_var.clamp(-30, 20)

    def observed(self, x: Tensor, u: Tensor) -> Tensor:
        """The images that the likelihood models, in [-1, 1], made of 8-bit images x and uniform u (both (B, C, H, W))."""
        match self.config.likelihood:
            case "bernoulli":
                return 2 * lik.binarize(x, u) - 1
            case "gaussian":
                return lik.dequantize(x, u)
        return x

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), (B,), for what `observed` returns and z (B, J)."""
        out, log_scale = self.decoder(z)
        if log_scale is None:
            return lik.bernoulli_log_prob((x + 1) / 2, out)
        log_prob = lik.gaussian_log_prob if self.config.likelihood == "gaussian" else lik.logistic_log_prob
        return log_prob(x, out, log_scale)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), (...,), for z (..., J); under the flow log N(g^-1(z); 0, I) + log |det dg^-1/dz|."""
        u, log_det = (z, 0.0) if self.prior is None else self.prior.inverse(z)
        return vi.log_normal(u, torch.zeros_like(u), torch.zeros_like(u)) + log_det

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-L(x) averaged over the batch, in nats, with `beta`, warm-up and free bits; `rec` and `kl` are the plain terms."""
        c = self.config
        x = self.observed(batch.x, torch.rand_like(batch.x))
        mean, log_var = self.posterior(x)
        z = vi.reparameterize(mean, log_var, torch.randn_like(mean))
        rec = -self.log_likelihood(x, z).mean()
        if self.prior is None:
            units = vi.kl_per_unit(mean, log_var)  # (B, J)
            kl = units.sum(1).mean()
        else:
            kl = (vi.log_normal(z, mean, log_var) - self.log_prior(z)).mean()
        cost = vi.free_bits(units, c.free_bits) if c.free_bits else kl
        terms = {"rec": rec, "kl": kl, "active_units": vi.active_units(mean)}
        if self.per_dim is not None:
            terms["bits_per_dim"] = lik.bits_per_dim(-(rec + kl), self.shape.numel, self.per_dim)
        weight = c.beta * vi.warmed_up(moment.progress, c.warmup)
        return {"loss": rec + weight * cost} | {name: term.detach() for name, term in terms.items()}

    @property
    def per_dim(self) -> float | None:
        """What turns nats into a probability of 8-bit images, per dimension; None for binarized images."""
        return {"bernoulli": None, "gaussian": math.log(2 / 255), "logistic": 0.0}[self.config.likelihood]

    def encode(self, x: Tensor) -> Tensor:
        """Codes of the posterior means, (B, J)."""
        mean, _ = self.posterior(x)
        return mean if self.prior is None else self.prior.inverse(mean)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Decoder means (B, C, H, W) in [-1, 1] for codes (B, J)."""
        out, _ = self.decoder(z if self.prior is None else self.prior(z))
        return 2 * torch.sigmoid(out) - 1 if self.config.likelihood == "bernoulli" else out.clamp(-1, 1)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return rng.noise(rng.streams(seeds, "latent"), (self.config.latent,), self.device)

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        return self.decode(z)

    def draw(self, request: Request) -> Tensor:
        """Decoder means for codes from N(0, I)."""
        return self.decode(self.latents(request.seeds))

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """The bound log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = samples, for images x (B, C, H, W) in [-1, 1].

        gen draws the binarization or dequantization, then z. (Burda et al. 2016, eq. 8.)
        """
        x = self.observed(x, torch.rand(x.shape, generator=gen).to(x))
        mean, log_var = self.posterior(x)
        step = max(1, CHUNK // len(x))
        parts = [self._log_weights(x, mean, log_var, min(step, samples - k), gen) for k in range(0, samples, step)]
        of = {
            "bernoulli": "dynamically binarized images",
            "gaussian": "density of uniformly dequantized 8-bit images",
            "logistic": "8-bit images",
        }
        return Score(vi.importance_bound(torch.cat(parts)), "bound", of[self.config.likelihood], self.per_dim, f"{samples} importance samples")

    def _log_weights(self, x: Tensor, mean: Tensor, log_var: Tensor, k: int, gen: torch.Generator) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) for k samples z of q(z|x), (k, B)."""
        eps = torch.randn((k, *mean.shape), generator=gen).to(mean)
        z = vi.reparameterize(mean, log_var, eps)  # (k, B, J)
        xs = x.expand(k, *x.shape).flatten(0, 1)  # (k B, C, H, W)
        log_p_x = self.log_likelihood(xs, z.flatten(0, 1)).unflatten(0, (k, len(x)))
        return log_p_x + self.log_prior(z) - vi.log_normal(z, mean, log_var)


def _check(c: VAEConfig) -> None:
    """Refuse what cannot be, before anything is built."""
    least = 2 if c.prior == "flow" else 1
    if c.latent < least:
        raise UserError(f"--model.latent is {c.latent}: a VAE with a {c.prior} prior needs at least {least}")
    if min(c.beta, c.warmup, c.free_bits) < 0:
        raise UserError("--model.beta, --model.warmup and --model.free_bits cannot be negative")
    if c.free_bits and c.prior == "flow":
        raise UserError("--model.free_bits counts nats per unit, which a flow prior does not have: set --model.prior normal")


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
    return Recipe((stage,), family="vae", paper=PAPER, summary=summary, expect=by_size(size, tiny=(), small=MEASURED["vae"], base=()))


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
                  expect=by_size(size, tiny=(), small=MEASURED["vae-mlp"], base=()))
