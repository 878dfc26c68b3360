"""What a solver is: a free function from a denoiser, a noisy image and falling noise levels to an image.

All solvers work in variance-exploding coordinates, x = x0 + s eps (any Gaussian path maps there by x / alpha, s = sigma / alpha).
The levels are Python floats inside the loop, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Callback", "Denoise", "Noise", "Run", "levels", "state"]

Denoise = Callable[[Tensor, float], Tensor]  # x (B, ...), s -> x0 (B, ...)
Noise = Callable[[], Tensor]  # standard normal, like x; who gives it sees to it that samples have streams of their own
Callback = Callable[[int, int, Tensor], None]  # step i in 0..n-1, n, current estimate of x0


class Run(Protocol):
    """solver(denoise, x, sigmas): x (B, ...) at the level sigmas[0] -> x0 (B, ...); sigmas (n + 1,) float64, falling, the last 0.

    noise: for stochastic solvers. eta in [0, 1]: share of ancestral noise, for solvers that take it. The state is float32
    (float64 where x is).
    """

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None
    ) -> Tensor: ...


def levels(sigmas: Tensor) -> list[float]:
    """The levels (n + 1,) as Python floats; ValueError unless they fall strictly to 0 and n >= 1."""
    s = [float(v) for v in sigmas.tolist()]
    if len(s) < 2 or s[-1] != 0 or any(a <= b for a, b in pairwise(s)):
        raise ValueError("noise levels must fall strictly, and end with 0")
    return s


def state(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
