"""What the network predicts: pure conversions between eps, x0 and v for xt = alpha x0 + sigma eps.

Legend: x0 data, eps standard normal noise, xt their mixture, all (B, ...); alpha, sigma (B,) or scalars;
v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D). The coefficients are never cast below float32:
in bfloat16, alpha rounds to 1 and the smallest noise levels vanish. Only the result is cast.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Kind", "column", "mix", "target", "to_eps", "to_v", "to_x0"]

Kind = Literal["eps", "x0", "v"]


def column(coef: Tensor | float, like: Tensor) -> Tensor:
    """The coefficient (B,) or scalar as (B, 1, ..., 1) to go with `like` (B, ...), in float32 or, where `like` is, in float64."""
    if not isinstance(coef, Tensor):
        coef = torch.tensor(coef, dtype=torch.float64, device=like.device)
    coef = coef.to(torch.promote_types(like.dtype, torch.float32))
    return coef.reshape(-1, *[1] * (like.ndim - 1)) if coef.ndim else coef


def mix(a: Tensor | float, x: Tensor, b: Tensor | float, y: Tensor) -> Tensor:
    """a x + b y for coefficients (B,) or scalars; computed in float32 at least, cast to the common dtype of x and y at the end."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x, y = x.to(wide), y.to(wide)
    return (column(a, x) * x + column(b, y) * y).to(dtype)


def target(kind: Kind, x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """What a network of this kind is trained to output: eps, x0, or v = alpha eps - sigma x0; (B, ...) like x0."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    return mix(alpha, eps, -sigma, x0)


def to_x0(kind: Kind, out: Tensor, xt: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """x0 (B, ...) from the network's output: out; (xt - sigma eps) / alpha; (alpha xt - sigma v) / (alpha^2 + sigma^2).

    alpha > 0 for kind "eps". For a variance-preserving path the last denominator is 1.
    """
    if kind == "x0":
        return out
    if kind == "eps":
        return mix(1 / alpha, xt, -sigma / alpha, out)
    power = alpha**2 + sigma**2
    return mix(alpha / power, xt, -sigma / power, out)


def to_eps(kind: Kind, out: Tensor, xt: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """eps (B, ...) from the network's output: out; (xt - alpha x0) / sigma; (sigma xt + alpha v) / (alpha^2 + sigma^2).

    sigma > 0 for kind "x0".
    """
    if kind == "eps":
        return out
    if kind == "x0":
        return mix(1 / sigma, xt, -alpha / sigma, out)
    power = alpha**2 + sigma**2
    return mix(sigma / power, xt, alpha / power, out)


def to_v(kind: Kind, out: Tensor, xt: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """v (B, ...) from the network's output: out; ((alpha^2 + sigma^2) eps - sigma xt) / alpha; (alpha xt - (alpha^2 + sigma^2) x0) / sigma.

    alpha > 0 for kind "eps", sigma > 0 for kind "x0".
    """
    if kind == "v":
        return out
    power = alpha**2 + sigma**2
    if kind == "eps":
        return mix(power / alpha, out, -sigma / alpha, xt)
    return mix(alpha / sigma, xt, -power / sigma, out)
