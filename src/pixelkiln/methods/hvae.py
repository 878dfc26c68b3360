"""A very deep hierarchical VAE (Child, Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2021, arXiv 2011.10650).

Idea: many small latent maps in place of one vector, drawn from coarse to fine, each by a Gaussian that sees all of the earlier ones,

    p(z) = prod_l p(z_l | z_<l),   q(z | x) = prod_l q(z_l | z_<l, x),   log p(x) >= E_q[log p(x | z)] - sum_l KL(q(z_l | z_<l, x) || p(z_l | z_<l)),

so that a net of L layers can choose a pixel in the light of the others, as a pixel by pixel model does, in L steps (sections 2 and 3). The KL of two
Gaussians is in closed form. The net, and what keeps it stable, is in `nets/ladder.py`. The paper also skips updates whose gradient is large; where
gradients stay large that skips every later one, so here the gradient is clipped, and deviations are bounded. KL warm-up and free bits (per
layer, after the batch mean), which the paper does without, are options.

Likelihoods: `bernoulli` models dynamically binarized images, `logistic` and `mixture` the 256 levels, by a discretized logistic per number or a mixture
of them per pixel. Sums over dimensions, means over the batch, in nats. Samples are means of p(x | z), or draws from it. Codes and
latents are u = (z - prior mean) / prior deviation of all layers, side by side: N(0, I) under the prior; `temperature` multiplies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from ..core import rng
from ..core.protocols import Codec, Latent, Likelihood, Method, Score, Update
from ..core.recipe import DataConfig, EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Batch, DataInfo, Moment, Request, UserError
from ..nets.ladder import Drawn, LadderConfig, LadderDecoder, LadderEncoder
from ..objectives import likelihoods as lik
from ..objectives import variational as vi
from ..objectives.amortized import thresholds

__all__ = ["HVAE", "HVAEConfig", "hvae"]

CHUNK = 512  # images decoded at once for the importance-weighted bound
COMMAND = "pixelkiln train hvae --data mnist --out R --model.likelihood bernoulli --steps 10000 --threads 1; pixelkiln evaluate R --iw 50"
MEASURED = (Expect("nats", 80.5, "mnist", COMMAND, "32 minutes of a core of an AMD EPYC with AVX2, fp32"),)
USED = 0.05  # nats of KL from which a layer counts as one that says something


@dataclass(frozen=True)
class HVAEConfig:
    """The ladder and what it models. beta weighs the KL in ELBO units, and rises to its value over the first `warmup` of training."""

    net: LadderConfig = field(default_factory=LadderConfig)
    likelihood: Literal["bernoulli", "logistic", "mixture"] = "mixture"
    mixtures: int = 10  # logistics of a mixture
    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0  # nats of a layer that cost the same whether used or not
    temperature: float = 1.0  # of samples, unless the request says otherwise
    pixels: Literal["mean", "draw"] = "mean"  # of p(x | z), for samples


@final
class HVAE(Method, Codec, Latent, Likelihood):
    """encoder: x -> a map for each level; decoder: z_1 .. z_L, and p(x | z)."""

    averaged = ("encoder", "decoder")
    abilities = frozenset({Ability.TEMPERATURE})

    def __init__(self, info: DataInfo, config: HVAEConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = c = config
        if min(c.beta, c.warmup, c.free_bits) < 0 or c.mixtures < 1:
            raise UserError("--model.beta, --model.warmup and --model.free_bits cannot be negative, and --model.mixtures must be 1 or more")
        channels = info.shape.channels
        outs = {"bernoulli": channels, "logistic": 2 * channels, "mixture": lik.mixture_size(c.mixtures, channels)}[c.likelihood]
        self.encoder = LadderEncoder(info.shape, c.net)
        self.decoder = LadderDecoder(info.shape, c.net, outs)

    def updates(self) -> Sequence[Update]:
        return (Update("elbo", self.averaged, self.loss, opt="main"),)

    def observed(self, x: Tensor, u: Tensor) -> Tensor:
        """The images that the likelihood models, in [-1, 1], made of 8-bit images x and uniform u (both (B, C, H, W))."""
        return 2 * lik.binarize(x, u) - 1 if self.config.likelihood == "bernoulli" else x

    def infer(self, x: Tensor, eps: Tensor) -> tuple[Tensor, list[Drawn]]:
        """Parameters of p(x | z) (k B, ..., H, W), and what each layer drew, for images x (B, C, H, W) and eps (k B, T): image i draws rows i, i + B, ..."""
        times = len(eps) // len(x)
        seen = self.encoder(x)
        features, drawn = self.decoder.infer(seen if times == 1 else [e.repeat(times, 1, 1, 1) for e in seen], eps)
        return self.decoder(features).float(), drawn

    def log_likelihood(self, x: Tensor, out: Tensor) -> Tensor:
        """log p(x | z), (B,), for what `observed` returns and the head's output."""
        match self.config.likelihood:
            case "bernoulli":
                return lik.bernoulli_log_prob((x + 1) / 2, out)
            case "logistic":
                mean, log_scale = out.chunk(2, dim=1)
                return lik.logistic_log_prob(x, mean, lik.soft_floor(log_scale))
        return lik.mixture_logistic_log_prob(x, lik.mixture_of(out, self.shape.channels))

    def picture(self, out: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1], of the head's output."""
        match self.config.likelihood:
            case "bernoulli":
                return 2 * torch.sigmoid(out) - 1
            case "logistic":
                mean, log_scale = out.chunk(2, dim=1)
                return lik.logistic_mean(mean, lik.soft_floor(log_scale))
        return lik.mixture_logistic_mean(lik.mixture_of(out, self.shape.channels))

    def drawn(self, out: Tensor, u: Tensor) -> Tensor:
        """Draws from p(x | z), (B, C, H, W) in [-1, 1], of the head's output and uniform u (B, 1 + C, H, W)."""
        if self.config.likelihood == "bernoulli":
            return 2 * (u[:, 1:] < torch.sigmoid(out)).float() - 1
        if self.config.likelihood == "mixture":
            return lik.mixture_logistic_sample(lik.mixture_of(out, self.shape.channels), u)
        mean, log_scale = out.chunk(2, dim=1)
        return lik.mixture_logistic_sample(lik.single(mean, lik.soft_floor(log_scale)), u)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-L(x) averaged over the batch, in nats, with `beta`, warm-up and free bits; `rec` and `kl` are the plain terms, `HxW/kl` the KL of a
        level, `HxW.i/layer_kl` that of its i-th layer."""
        c = self.config
        x = self.observed(batch.x, torch.rand_like(batch.x))
        out, drawn = self.infer(x, torch.randn(len(x), self.decoder.total, device=x.device))
        rec = -self.log_likelihood(x, out).mean()
        layers = kl_of(drawn)  # (B, L)
        each = layers.mean(0)
        kl = each.sum()
        cost = vi.free_bits(layers, c.free_bits) if c.free_bits else kl
        terms = {"rec": rec, "kl": kl, "used_layers": (each > USED).sum(), **self.by_level(each)}
        if self.per_dim is not None:
            terms["bits_per_dim"] = lik.bits_per_dim(-(rec + kl), self.shape.numel, self.per_dim)
        weight = c.beta * vi.warmed_up(moment.progress, c.warmup)
        return {"loss": rec + weight * cost} | {name: term.detach() for name, term in terms.items()}

    def by_level(self, each: Tensor) -> dict[str, Tensor]:
        """The layers' KL (L,) added up by their size, {"1x1/kl": ..., "7x7/kl": ...}, and one by one, {"1x1.1/layer_kl": ...}: two charts of the report."""
        sums: dict[str, Tensor] = {}
        single: dict[str, Tensor] = {}
        for kl, ((height, width), _) in zip(each, self.decoder.places, strict=True):
            level = f"{height}x{width}"
            sums[f"{level}/kl"] = sums.get(f"{level}/kl", 0.0) + kl
            number = 1 + sum(name.startswith(f"{level}.") for name in single)
            single[f"{level}.{number}/layer_kl"] = kl
        return sums | single

    @property
    def per_dim(self) -> float | None:
        """What turns nats into a probability of 8-bit images, per dimension; None for binarized images."""
        return None if self.config.likelihood == "bernoulli" else 0.0

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, T) of what the likelihood models of images, every layer's z being its posterior's mean."""
        _, drawn = self.infer(self.observed(x, thresholds(x)), torch.zeros(len(x), self.decoder.total, device=x.device))
        return torch.cat([((d.z - d.prior_mean) * torch.exp(-d.prior_log_std)).flatten(1) for d in drawn], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] (B, C, H, W) in [-1, 1] for codes (B, T)."""
        return self.picture(self.decoder(self.decoder.generate(z)).float())

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return rng.noise(rng.streams(seeds, "latent"), (self.decoder.total,), self.device)

    def cooled(self, z: Tensor, request: Request) -> Tensor:
        """The head's output for codes (B, T), times the temperature."""
        temperature = self.config.temperature if request.temperature is None else request.temperature
        if temperature < 0:
            raise UserError(f"temperature {temperature:g}: give 0, for the priors' means, or more")
        return self.decoder(self.decoder.generate(temperature * z)).float()

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """E[x | z] for codes (B, T), times the temperature."""
        return self.picture(self.cooled(z, request))

    def draw(self, request: Request) -> Tensor:
        """Images for codes from N(0, temperature^2 I)."""
        out = self.cooled(self.latents(request.seeds), request)
        if self.config.pixels == "mean":
            return self.picture(out)
        channels, height, width = self.shape
        u = torch.special.ndtr(rng.noise(rng.streams(request.seeds, "pixels"), (1 + channels, height, width), self.device))
        return self.drawn(out, u)

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """The bound log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = samples, for images x (B, C, H, W) in [-1, 1].

        gen draws the binarization, then z. (Burda et al. 2016, eq. 8.)
        """
        x = self.observed(x, torch.rand(x.shape, generator=gen).to(x))
        step = max(1, CHUNK // len(x))
        parts = [self._log_weights(x, min(step, samples - k), gen) for k in range(0, samples, step)]
        of = "dynamically binarized images" if self.config.likelihood == "bernoulli" else "8-bit images"
        return Score(vi.importance_bound(torch.cat(parts)), "bound", of, self.per_dim, f"{samples} importance samples")

    def _log_weights(self, x: Tensor, k: int, gen: torch.Generator) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) for k samples z of q(z|x), (k, B)."""
        out, drawn = self.infer(x, torch.randn((k * len(x), self.decoder.total), generator=gen).to(x))
        log_w = self.log_likelihood(x.repeat(k, 1, 1, 1), out) + log_ratio(drawn)
        return log_w.unflatten(0, (k, len(x)))


def kl_of(drawn: Sequence[Drawn]) -> Tensor:
    """KL(q(z_l | z_<l, x) || p(z_l | z_<l)), nats (B, L)."""
    return torch.stack([vi.kl_between(d.mean, d.log_std, d.prior_mean, d.prior_log_std).flatten(1).sum(1) for d in drawn], dim=1)


def log_ratio(drawn: Sequence[Drawn]) -> Tensor:
    """log p(z) - log q(z | x) of the samples, (B,)."""
    prior = [vi.log_normal(d.z.flatten(1), d.prior_mean.flatten(1), 2 * d.prior_log_std.flatten(1)) for d in drawn]
    posterior = [vi.log_normal(d.z.flatten(1), d.mean.flatten(1), 2 * d.log_std.flatten(1)) for d in drawn]
    return torch.stack(prior).sum(0) - torch.stack(posterior).sum(0)


def hvae(size: Size = "small") -> Recipe:
    """A VAE with many layers of latent maps, for grey and color images with sides that are multiples of 4 (size base: of 8, the paper's net for CIFAR-10)."""
    model = by_size(
        size,
        tiny=HVAEConfig(LadderConfig(width=(8, 8, 8), squeeze=2, latent=2, up=(1, 1, 1), down=(1, 1, 1)), mixtures=2),
        small=HVAEConfig(LadderConfig(width=(16, 64, 128), squeeze=2, latent=8, up=(1, 2, 1), down=(1, 2, 2), patch=2), mixtures=5, warmup=0.2),
        base=HVAEConfig(LadderConfig(width=(384,) * 5, squeeze=4, latent=16, up=(12, 7, 7, 4, 3), down=(22, 11, 6, 3, 1))),
    )
    kind, lr, beta2 = by_size(size, tiny=("adamw", 6e-3, 0.99), small=("muon", 1e-2, 0.99), base=("adamw", 2e-4, 0.9))
    opt = OptConfig(kind, lr=lr, betas=(0.9, beta2), weight_decay=0.01, clip=200.0, warmup=0.05, decay="cosine", final=0.05)
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=20_000, base=500_000),
        batch=32,
        opts={"main": opt},
        ema=EmaConfig(half_life=by_size(size, tiny=2_000, small=20_000, base=200_000)),
    )
    stage = Stage(method=HVAE, model=model, data=DataConfig(multiple=by_size(size, tiny=2, small=4, base=8)), train=train)
    return Recipe(
        stages=(stage,),
        family="vae",
        paper="Child, Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2021, arXiv 2011.10650",
        summary="a deep ladder of latent maps, from coarse to fine, with a likelihood",
        expect=by_size(size, tiny=(), small=MEASURED, base=()),
    )
