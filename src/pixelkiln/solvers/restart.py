"""Restart sampling: solve the flow, and in between go back up by adding noise, several times (Xu et al. 2023, arXiv 2306.14878)."""

from __future__ import annotations

import math

from torch import Tensor

from .contract import Callback, Denoise, Noise, fresh, levels, march
from .deterministic import heun_step
from .spacing import karras

__all__ = ["REPEATS", "STEPS", "restart"]

REPEATS, STEPS = 2, 3  # K and N_restart: 12 evaluations


def restart(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None, low: float = 0.06, ratio: float = 5.0, repeats: int = REPEATS, steps: int = STEPS
) -> Tensor:
    """Heun's method with restarts in one interval, 2n - 1 + 2 repeats steps evaluations (n > 1; with n = 1 nothing restarts).

    When the level r_min is reached: x <- x + sqrt(r_max^2 - r_min^2) z, which has the right marginal at r_max, and back down in `steps`
    of Heun on Karras levels; that `repeats` times (algorithm 1). The added noise contracts the errors made above, at the price of the
    errors made in the interval. r_min is the level of the list nearest to `low` (in log s, the first one excluded), r_max = ratio r_min,
    at most the first level: [0.06, 0.30] is the interval that they restart at low noise.
    ValueError where noise is needed and none is given.
    """
    s = levels(sigmas)
    n = len(s) - 1
    at = min(range(1, n), key=lambda i: abs(math.log(s[i] / low)), default=-1)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        x = heun_step(denoise, x, D, s[i], s[i + 1])
        if i + 1 != at:
            return x
        low, high = s[at], min(ratio * s[at], s[0])
        way = karras(steps + 1, low, high).tolist()[:-1]
        for _ in range(repeats):
            x = x + math.sqrt(high**2 - low**2) * fresh(noise)
            for a, b in zip(way, way[1:], strict=False):
                x = heun_step(denoise, x, denoise(x, a).to(x.dtype), a, b)
        return x

    return march(denoise, x, s, callback, step)
