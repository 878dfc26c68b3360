"""What a network predicts, and conversions between all of it, for xt = alpha x0 + sigma eps.

Legend: x0 data, eps standard normal noise, xt their mixture, all (B, ...); alpha, sigma >= 0, (B,) or numbers; s = sigma / alpha.
Every kind is a mixture a x0 + b eps of data and noise too, so that one formula converts between any two of them (`convert`):

    eps        a = 0, b = 1
    x0         a = 1, b = 0
    v          a = -sigma, b = alpha                   Salimans and Ho 2022 (arXiv 2202.00512), appendix D
    velocity   a = -1, b = 1                           d xt / dt on a straight path, Liu et al. 2022 (arXiv 2209.03003), eq. 1
    score      a = 0, b = -1 / sigma                   grad log p(xt | x0), Song et al. 2021 (arXiv 2011.13456), eq. 7; not at sigma = 0
    F          a = sigma / (sd r), b = -alpha sd / r   r^2 = sigma^2 + sd^2 alpha^2, Karras et al. 2022 (arXiv 2206.00364), eq. 7

sd is `sigma_data`, the standard deviation of the data; F = (x0 - c_skip x) / c_out for x = xt / alpha, and with sd = 1 it is -v on a
path that keeps the variance. The coefficients are never cast below float32: in bfloat16, alpha rounds to 1 and the smallest noise
levels vanish. Only the result is cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "SIGMA_DATA",
    "Kind",
    "Preconditioning",
    "coefficients",
    "column",
    "convert",
    "mix",
    "precondition",
    "target",
    "to_eps",
    "to_v",
    "to_x0",
]

Kind = Literal["eps", "x0", "v", "velocity", "score", "F"]
Coef = Tensor | float
SIGMA_DATA = 0.5  # Karras et al.'s, of images in [-1, 1]


def column(coef: Coef, like: Tensor) -> Tensor:
    """The coefficient (B,) or scalar as (B, 1, ..., 1) to go with `like` (B, ...), in float32 or, where `like` is, in float64."""
    if not isinstance(coef, Tensor):
        coef = torch.tensor(coef, dtype=torch.float64, device=like.device)
    coef = coef.to(torch.promote_types(like.dtype, torch.float32))
    return coef.reshape(-1, *[1] * (like.ndim - 1)) if coef.ndim else coef


def mix(a: Coef, x: Tensor, b: Coef, y: Tensor) -> Tensor:
    """a x + b y for coefficients (B,) or scalars; computed in float32 at least, cast to the common dtype of x and y at the end."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x, y = x.to(wide), y.to(wide)
    return (column(a, x) * x + column(b, y) * y).to(dtype)


def coefficients(kind: Kind, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> tuple[Coef, Coef]:
    """(a, b) such that the kind is a x0 + b eps, like alpha and sigma; the table above."""
    if kind == "eps":
        return 0.0, 1.0
    if kind == "x0":
        return 1.0, 0.0
    if kind == "v":
        return -sigma, alpha
    if kind == "velocity":
        return -1.0, 1.0
    if kind == "score":
        return 0.0, -1 / sigma
    r = (sigma**2 + (sigma_data * alpha) ** 2) ** 0.5
    return sigma / (sigma_data * r), -sigma_data * alpha / r


def target(kind: Kind, x0: Tensor, eps: Tensor, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> Tensor:
    """What a network of this kind is trained to output: a x0 + b eps, (B, ...) like x0."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    a, b = coefficients(kind, alpha, sigma, sigma_data)
    return mix(b, eps, a, x0)


def convert(kind: Kind, to: Kind, out: Tensor, xt: Tensor, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> Tensor:
    """The quantity `to` from a network's output of the quantity `kind`, (B, ...) like out.

    With xt = alpha x0 + sigma eps, out = a x0 + b eps and the wanted a' x0 + b' eps, eliminating x0 and eps gives
    (det' / det) out + ((a' b - a b') / det) xt, where det = alpha b - sigma a: alpha (eps), -sigma (x0), alpha^2 + sigma^2 (v),
    alpha + sigma (velocity), -alpha / sigma (score), -r / sd (F). So from eps and score alpha must not be 0, from x0 sigma must not;
    v, velocity and F convert at both ends.
    """
    if kind == to:
        return out
    a, b = coefficients(kind, alpha, sigma, sigma_data)
    a_to, b_to = coefficients(to, alpha, sigma, sigma_data)
    det = alpha * b - sigma * a
    return mix((a_to * b - a * b_to) / det, xt, (alpha * b_to - sigma * a_to) / det, out)


def to_x0(kind: Kind, out: Tensor, xt: Tensor, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> Tensor:
    """x0 from the network's output: `convert` to x0; alpha > 0 for the kinds eps and score."""
    return convert(kind, "x0", out, xt, alpha, sigma, sigma_data)


def to_eps(kind: Kind, out: Tensor, xt: Tensor, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> Tensor:
    """eps from the network's output: `convert` to eps; sigma > 0 for the kind x0."""
    return convert(kind, "eps", out, xt, alpha, sigma, sigma_data)


def to_v(kind: Kind, out: Tensor, xt: Tensor, alpha: Coef, sigma: Coef, sigma_data: float = SIGMA_DATA) -> Tensor:
    """v from the network's output: `convert` to v; alpha > 0 for the kinds eps and score, sigma > 0 for x0."""
    return convert(kind, "v", out, xt, alpha, sigma, sigma_data)


@dataclass(frozen=True)
class Preconditioning:
    """D(x) = c_skip x + c_out F(c_in x, c_noise) for x = x0 + s eps: each like s."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(s: Tensor, sigma_data: float = SIGMA_DATA) -> Preconditioning:
    """Karras et al. 2022 (arXiv 2206.00364), table 1: with r^2 = s^2 + sd^2, sd^2 / r^2, s sd / r, 1 / r and ln(s) / 4, for s > 0.

    The network's input c_in x has variance 1 where the data's is sd^2, and so has its target F. sigma_data must be that of the data:
    0.5 is too small for whitened latents.
    """
    r = (s**2 + sigma_data**2).sqrt()
    return Preconditioning((sigma_data / r) ** 2, s * sigma_data / r, 1 / r, s.log() / 4)
