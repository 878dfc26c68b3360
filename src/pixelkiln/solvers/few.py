"""Noise levels that are best for few steps, found by dynamic programming on data whose flow is known: Gaussian, with a natural spectrum.

Along a direction in which the data have the standard deviation c, D = c^2 / (c^2 + s^2) x, the exact flow from s to r multiplies x by
sqrt((c^2 + r^2) / (c^2 + s^2)), and Euler's step by (c^2 + r s) / (c^2 + s^2). So the standard deviation of what comes out is too small by
the product of (c^2 + r s) / sqrt((c^2 + s^2) (c^2 + r^2)) over the steps, each factor at most 1 (Cauchy and Schwarz): its logarithm is a sum
of one cost a step, all of one sign,

    cost(s, r) = mean_c [ log((c^2 + s^2) (c^2 + r^2)) / 2 - log(c^2 + r s) ],

and the best n levels are a shortest path of n edges, r = 0 at the end. c is uniform in log c: equal energy in each octave, which is what
images with a power spectrum of 1 / f^2 have. For h = log(s / r) to 0, cost = h^2 g(s) / 2 with g = mean_c c^2 s^2 / (c^2 + s^2)^2, so that
many steps lie with density sqrt(g) in log s (equal shares of its integral).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FEW", "cost", "few_levels"]

FEW = 20  # up to here by dynamic programming, above by its limit
C_MIN, C_MAX = 0.05, 10.0  # standard deviations along the directions of data in [-1, 1], from the finest detail to the mean of an image
FINE = 400  # levels to choose from, uniform in log s


def cost(s: Tensor, r: Tensor) -> Tensor:
    """How much too small, in log, Euler's step from s to r leaves the standard deviation, on average; float64, broadcast; 0 <= r <= s."""
    c = torch.exp(torch.linspace(math.log(C_MIN), math.log(C_MAX), 32, dtype=torch.float64)) ** 2
    s, r = s[..., None], r[..., None]
    return (((c + s**2).log() + (c + r**2).log()) / 2 - (c + r * s).log()).mean(-1)


@lru_cache(maxsize=64)
def few_levels(n: int, s_min: float, s_max: float) -> tuple[float, ...]:
    """The n levels above 0, from s_max on and none below s_min; n >= 1."""
    if n > FEW:
        return _limit(n, s_min, s_max)
    s, edge = _edges(s_min, s_max)
    best = torch.full((FINE,), math.inf, dtype=torch.float64)
    best[0] = 0
    came_from = []
    for _ in range(n - 1):
        best, before = (best[:, None] + edge).min(0)
        came_from.append(before)
    at = int((best + cost(s, torch.zeros_like(s))).argmin())
    chosen = [at]
    for before in reversed(came_from):
        at = int(before[at])
        chosen.insert(0, at)
    return tuple(s[chosen].tolist())


@lru_cache(maxsize=4)
def _edges(s_min: float, s_max: float) -> tuple[Tensor, Tensor]:
    """The levels to choose from (FINE,), falling, and the cost from each to each (from, to), infinite unless it falls."""
    s = torch.exp(torch.linspace(math.log(s_max), math.log(s_min), FINE, dtype=torch.float64)).clamp(s_min, s_max)
    edge = cost(s[:, None], s[None])
    return s, edge.masked_fill(torch.ones_like(edge, dtype=torch.bool).tril(), math.inf)


def _limit(n: int, s_min: float, s_max: float) -> tuple[float, ...]:
    """n points from s_max to s_min that divide the integral of sqrt(g) d(log s) evenly."""
    u = torch.linspace(math.log(s_max), math.log(s_min), 1024, dtype=torch.float64)
    c = torch.exp(torch.linspace(math.log(C_MIN), math.log(C_MAX), 32, dtype=torch.float64))
    g = (torch.exp(u)[:, None] / c + c / torch.exp(u)[:, None]).pow(-2).mean(1).sqrt()
    share = torch.cat([g.new_zeros(1), torch.cumsum((g[1:] + g[:-1]) / 2, 0)])
    share = share / share[-1]
    want = torch.arange(n, dtype=torch.float64) / (n - 1)
    k = torch.searchsorted(share, want).clamp(1, len(u) - 1)
    at = u[k - 1] + (want - share[k - 1]) / (share[k] - share[k - 1]) * (u[k] - u[k - 1])
    return tuple(at.exp().clamp(s_min, s_max).tolist())
