"""What all models share that code an image as a vector by an encoder: codes, samples; and for those with a likelihood, the bound on it.

    q(z|x) = N(mu(x), sigma^2(x)),   z = mu + sigma eps,   log p(x) >= E_q[log p(x|z) + log p(z) - log q(z|x)]     Kingma and Welling 2014, eq. 3

Terms are summed over pixels and latent units and averaged over the batch, in nats, so that a weight means the same at any resolution.
A family hands over an encoder x -> (n, 2J), a decoder z -> (n, C, H, W), and an invertible prior u -> z with `inverse`, or None for N(0, I).
Where `labeled`, all three take a label (n,) besides, -1 = none. Codes and latents are u (u = z under N(0, I)).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.protocols import Codec, Latent, Likelihood, Method, Posterior, Score
from ..core.types import DataInfo, Request, UserError
from . import likelihoods as lik
from . import variational as vi

__all__ = ["Amortized", "Coded", "Coding", "Decoder", "Modeled", "Parts", "Setting", "checked", "thresholds"]

CHUNK = 2048  # images decoded at once for the importance-weighted bound
Modeled = Literal["bernoulli", "continuous-bernoulli", "gaussian", "logistic"]  # what a pixel is drawn of, given the code
SCALE_SPEED = 10.0  # the log-scales learn so many times faster than the weights


@dataclass(frozen=True)
class Coding:
    """The networks between images and codes."""

    latent: int = 20  # units of z
    net: Literal["mlp", "conv"] = "conv"
    width: int = 32  # mlp: hidden units; conv: channels of the largest map
    depth: int = 0  # mlp: hidden layers; conv: residual blocks at every size
    hidden: int = 256  # conv: units of the layer next to z


@dataclass(frozen=True)
class Setting(Coding):
    """... and the distributions, of codes and of images."""

    prior: Literal["normal", "flow"] = "normal"
    flow_width: int = 64  # hidden units of a coupling
    flow_layers: int = 6
    likelihood: Modeled = "logistic"


class Parts(NamedTuple):
    """The bound's terms: rec = -log p(x|z) and kl, means over the batch in nats, with gradients; units, the KL of each unit (B, J), under the
    normal prior only; and what is to be logged."""

    rec: Tensor
    kl: Tensor
    units: Tensor | None
    logged: dict[str, Tensor]


@final
class Decoder(nn.Module):
    """z (B, J) to the parameters of p(x|z): `net(z)`, logits or means (B, C, H, W), and one log-scale per channel where there is one."""

    def __init__(self, net: nn.Module, channels: int | None) -> None:
        super().__init__()
        self.net = net
        self.raw_scale = None if channels is None else nn.Parameter(torch.full((channels, 1, 1), -1.0 / SCALE_SPEED))

    def forward(self, z: Tensor, *label: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = None if self.raw_scale is None else lik.soft_floor(self.raw_scale.float() * SCALE_SPEED)
        return self.net(z, *label).float(), scale


class Coded(Method, Codec, Latent):
    """An image is J numbers, which are standard normal for samples."""

    latent: int  # J

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return rng.noise(rng.streams(seeds, "latent"), (self.latent,), self.device)

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        return self.decode(z, request.cond.label)

    def draw(self, request: Request) -> Tensor:
        """Decoder means for codes from N(0, I)."""
        return self.from_latents(self.latents(request.seeds), request)


class Amortized(Coded, Posterior, Likelihood):
    """encoder: x -> (mu, log sigma^2); decoder: z -> p(x|z); prior: u -> z, where it is learned. `labeled`: the nets take labels."""

    def __init__(self, info: DataInfo, config: Setting, nets: tuple[nn.Module, nn.Module], prior: nn.Module | None,
                 parents: Mapping[str, Method] | None = None, labeled: bool = False) -> None:
        super().__init__(info, parents)
        self.setting, self.latent, self.labeled = config, config.latent, labeled
        self.encoder, net = nets
        self.decoder = Decoder(net, info.shape.channels if config.likelihood in ("gaussian", "logistic") else None)
        self.prior: Any = prior
        self.averaged = ("encoder", "decoder") if prior is None else ("encoder", "decoder", "prior")

    # -- distributions

    def beside(self, label: Tensor | None, n: int) -> tuple[Tensor, ...]:
        """What the nets take besides their input: labels (n,), -1 where there are none, or nothing."""
        if not self.labeled:
            return ()
        return (torch.full((n,), -1, device=self.device) if label is None else label,)

    def posterior(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 of q(z|x), (B, J) each, for what `observed` returns."""
        mean, log_var = self.encoder((x + 1) / 2, *self.beside(label, len(x))).float().chunk(2, dim=1)  # black is 0, as padding is
        return mean, log_var.clamp(-30, 20)

    def observed(self, x: Tensor, u: Tensor) -> Tensor:
        """The images that the likelihood models, in [-1, 1], made of 8-bit images x and uniform u (both (B, C, H, W))."""
        match self.setting.likelihood:
            case "bernoulli":
                return 2 * lik.binarize(x, u) - 1
            case "continuous-bernoulli":
                return 2 * lik.dequantize_unit(x, u) - 1
            case "gaussian":
                return lik.dequantize(x, u)
        return x

    def log_likelihood(self, x: Tensor, z: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x|z), (B,), for what `observed` returns and z (B, J)."""
        out, log_scale = self.decoder(z, *self.beside(label, len(z)))
        if log_scale is None:
            of_logits = lik.bernoulli_log_prob if self.setting.likelihood == "bernoulli" else lik.continuous_bernoulli_log_prob
            return of_logits((x + 1) / 2, out)
        log_prob = lik.gaussian_log_prob if self.setting.likelihood == "gaussian" else lik.logistic_log_prob
        return log_prob(x, out, log_scale)

    def log_prior(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(z), (..., B), for z (..., B, J); under the flow log N(g^-1(z); 0, I) + log |det dg^-1/dz|."""
        u, log_det = (z, 0.0) if self.prior is None else self.prior.inverse(z, *self.beside(label, z.shape[-2]))
        return vi.log_normal(u, torch.zeros_like(u), torch.zeros_like(u)) + log_det

    def log_weights(self, x: Tensor, z: Tensor, mean: Tensor, log_var: Tensor, label: Tensor | None = None, weight: float = 1.0) -> Tensor:
        """log p(x|z) + weight (log p(z) - log q(z|x)), (K, B), for x (B, C, H, W) and z (K, B, J)."""
        k = len(z)
        xs = x.expand(k, *x.shape).flatten(0, 1)  # (K B, C, H, W)
        labels = None if label is None else label.repeat(k)
        log_p_x = self.log_likelihood(xs, z.flatten(0, 1), labels).unflatten(0, (k, len(x)))
        return log_p_x + weight * self.log_prior(z, label) - weight * vi.log_normal(z, mean, log_var)

    # -- training

    def parts(self, x: Tensor, label: Tensor | None = None) -> Parts:
        """The bound's terms at one z for each of x (B, C, H, W), 8-bit images; randomness from torch's global generator."""
        x = self.observed(x, torch.rand_like(x))
        mean, log_var = self.posterior(x, label)
        z = vi.reparameterize(mean, log_var, torch.randn_like(mean))
        rec = -self.log_likelihood(x, z, label).mean()
        if self.prior is None:
            units = vi.kl_per_unit(mean, log_var)  # (B, J)
            kl = units.sum(1).mean()
        else:
            units, kl = None, (vi.log_normal(z, mean, log_var) - self.log_prior(z, label)).mean()
        return Parts(rec, kl, units, {"rec": rec.detach(), "kl": kl.detach(), **self.told(-(rec + kl), mean, units)})

    def told(self, nats: Tensor, mean: Tensor, units: Tensor | None) -> dict[str, Tensor]:
        """For the log: units whose mean varies, the smallest and the largest KL of a unit, and the bound `nats`, a scalar, in bits/dim."""
        found = {"active_units": vi.active_units(mean)}
        if units is not None:
            found |= dict(zip(("kl_min", "kl_max"), units.mean(0).aminmax(), strict=True))
        if self.per_dim is not None:
            found["bits_per_dim"] = lik.bits_per_dim(nats, self.shape.numel, self.per_dim)
        return {name: term.detach() for name, term in found.items()}

    @property
    def per_dim(self) -> float | None:
        """What turns nats into a probability of 8-bit images, per dimension; None for binarized images."""
        return {"bernoulli": None, "continuous-bernoulli": -math.log(256), "gaussian": math.log(2 / 255), "logistic": 0.0}[self.setting.likelihood]

    # -- codes and scores

    def encode(self, x: Tensor) -> Tensor:
        """Codes of the posterior means, (B, J), of what the likelihood models: binarized or dequantized images by `thresholds`."""
        mean, _ = self.posterior(self.observed(x, thresholds(x)))
        return mean if self.prior is None else self.prior.inverse(mean, *self.beside(None, len(x)))[0]

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Decoder means (B, C, H, W) in [-1, 1] for codes (B, J)."""
        return self.paint(z if self.prior is None else self.prior(z, *self.beside(label, len(z))), label)

    def paint(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Decoder means (B, C, H, W) in [-1, 1] for z (B, J)."""
        out, _ = self.decoder(z, *self.beside(label, len(z)))
        match self.setting.likelihood:
            case "bernoulli":
                return 2 * torch.sigmoid(out) - 1
            case "continuous-bernoulli":  # of (v + u) / 256; u's mean is 1/2
                return ((512 * lik.continuous_bernoulli_mean(out) - 1) / 255 - 1).clamp(-1, 1)
        return out.clamp(-1, 1)

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """The bound log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = samples, for images x (B, C, H, W) in [-1, 1].

        gen draws the binarization or dequantization, then z. (Burda et al. 2016, eq. 8.)
        """
        x = self.observed(x, torch.rand(x.shape, generator=gen).to(x))
        mean, log_var = self.posterior(x)
        step, parts = max(1, CHUNK // len(x)), []
        for done in range(0, samples, step):
            eps = torch.randn((min(step, samples - done), *mean.shape), generator=gen).to(mean)
            parts.append(self.log_weights(x, vi.reparameterize(mean, log_var, eps), mean, log_var))
        of = {
            "bernoulli": "dynamically binarized images",
            "continuous-bernoulli": "density on [0, 1] of uniformly dequantized 8-bit images",
            "gaussian": "density of uniformly dequantized 8-bit images",
            "logistic": "8-bit images",
        }
        what = of[self.setting.likelihood] + ", without their labels" * self.labeled
        return Score(vi.importance_bound(torch.cat(parts)), "bound", what, self.per_dim, f"{samples} importance samples")


def thresholds(x: Tensor) -> Tensor:
    """Uniform numbers as many as x (B, C, H, W), the same for every image, so that a code depends on its image alone.

    An encoder that has seen binarized images only does not know grey ones: on CIFAR-10 their reconstructions are worse than the mean image.
    """
    return torch.rand(x.shape[1:], generator=rng.generator("thresholds")).to(x).expand_as(x)


def checked(c: Setting) -> Setting:
    """The configuration, if it can be. Raises `UserError`."""
    least = 2 if c.prior == "flow" else 1
    if c.latent < least:
        raise UserError(f"--model.latent is {c.latent}: a VAE with a {c.prior} prior needs at least {least}")
    return c
