"""An adaptive Runge-Kutta solver of the probability flow, in u = log s: dx/du = x - D(x, e^u)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contract import Callback, Denoise, levels, state

__all__ = ["rk45"]

# Dormand and Prince 1980, A family of embedded Runge-Kutta formulae, table 2 (RK5(4)7M): nodes, stages, and 5th minus 4th order.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
DEEPEST = 8


def rk45(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None, tolerance: float = 1e-4) -> Tensor:
    """Dormand and Prince's method of order 5(4); from level to level of the list, each interval halved in log s until it is good enough.

    Good enough is decided for each sample alone: its estimated error, the root mean square over pixels of |error| / (1 + max(|x|, |y|)),
    is at most `tolerance`, an absolute one for x near 0 and a relative one where x is large (of one step: the image may be off by ten times
    that, and by more with few levels, as the estimate supposes short steps). A sample that is good enough keeps its step;
    the others take the two halves, at most 8 times. So the grid is dyadic, the levels are shared by the batch (a denoiser takes one), and
    no sample depends on its neighbors, except that all pay for the worst: 6 evaluations a trial and 1 in front, at least 6n - 5.
    The step from the last level to 0 is D. To know the number, count the calls of the denoiser.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    D = denoise(x, s[0]).to(x.dtype)
    all_of_them = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for i in range(n):
        if callback is not None:
            callback(i, n, D)
        if i < n - 1:
            x, D = _walk(denoise, x, D, s[i], s[i + 1], all_of_them, tolerance, 0)
    return D


def _walk(denoise: Denoise, x: Tensor, D: Tensor, s: float, r: float, wanted: Tensor, tolerance: float, depth: int) -> tuple[Tensor, Tensor]:
    """x and D at the level r from those at s: one step where it is good enough, halves elsewhere. wanted (B,): whose result is used."""
    y, E, error = _trial(denoise, x, D, s, r)
    bad = wanted & (error > tolerance)
    if depth == DEEPEST or not bool(bad.any()):
        return y, E
    middle = math.sqrt(s * r)
    half = _walk(denoise, x, D, s, middle, bad, tolerance, depth + 1)
    whole = _walk(denoise, *half, middle, r, bad, tolerance, depth + 1)
    mask = bad.view(-1, *[1] * (x.ndim - 1))
    return torch.where(mask, whole[0], y), torch.where(mask, whole[1], E)


def _trial(denoise: Denoise, x: Tensor, D: Tensor, s: float, r: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step of length log(r / s): x and D at r (the last stage is the first of the next step), and the error (B,)."""
    h = math.log(r / s)
    slopes, y = [x - D], x
    for c, row in zip(NODES, STAGES, strict=True):
        y = x + h * sum(a * k for a, k in zip(row, slopes, strict=True))
        level = r if c == 1 else s * math.exp(c * h)
        D = denoise(y, level).to(x.dtype)
        slopes.append(y - D)
    error = h * sum(a * k for a, k in zip(ERROR, slopes, strict=True))
    scaled = error / (1 + torch.maximum(x.abs(), y.abs()))
    return y, D, scaled.flatten(1).square().mean(1).sqrt()
