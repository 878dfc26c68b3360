"""Truncation: less extreme latents give better and less varied images. Three different things have this name in the literature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.types import Truncation, UserError

__all__ = ["Truncation", "truncated"]


def inside(z: Tensor, bound: float) -> Tensor:
    """A standard normal restricted to (-bound, bound), from z ~ N(0, I) of any shape: Phi^-1(Phi(-t) + (2 Phi(t) - 1) Phi(z)), elementwise,
    which has the law of drawing again whatever falls outside, and moves continuously with z."""
    u = 0.5 + (torch.special.ndtr(z.double()) - 0.5) * math.erf(bound / math.sqrt(2))
    return torch.special.ndtri(u).clamp(-bound, bound).to(z.dtype)


def truncated(z: Tensor, by: float | tuple[Truncation, float], kind: Truncation) -> Tensor:
    """z ~ N(0, I) of any shape, made less extreme by t > 0: `by` is t, in the way `kind`, or a way and t.

    resampled: each number restricted to |z| < t (Brock et al. 2019, arXiv 1809.11096, section 3.1). scaled: t times one restricted to |z| < 2
    (what the published BigGAN generators take). narrowed: t z, a smaller deviation and no bound. Raises `UserError` for t <= 0.
    """
    kind, t = by if isinstance(by, tuple) else (kind, by)
    if not 0 < t < math.inf:
        raise UserError(f"--truncation {t:g}: give a number above 0; 1 is mild and 0.3 strong")
    if kind == "resampled":
        return inside(z, t)
    return t * inside(z, 2.0) if kind == "scaled" else t * z
