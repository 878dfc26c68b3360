"""What a solver is: a free function from a denoiser, a noisy image and falling noise levels to an image.

All solvers work in variance-exploding coordinates, x = x0 + s eps (any Gaussian path maps there by x / alpha, s = sigma / alpha).
The levels are Python floats inside the loop, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Callback", "Denoise", "Noise", "NoisePath", "draw", "fresh", "levels", "march", "state"]

Denoise = Callable[[Tensor, float], Tensor]  # x (B, ...), s -> x0 (B, ...)
Noise = Callable[[], Tensor]  # standard normal, like x; who gives it sees to it that samples have streams of their own
Callback = Callable[[int, int, Tensor], None]  # step i in 0..n-1, n, current estimate of x0
Step = Callable[[int, Tensor, Tensor], Tensor]  # i, x at the level s[i], D(x, s[i]) -> x at s[i + 1] > 0


@runtime_checkable
class NoisePath(Protocol):
    """Noise that also knows the way: what two solvers draw between the same levels is then the same (`brownian.Brownian`)."""

    def __call__(self) -> Tensor:
        """Standard normal, like x, new at each call."""
        ...

    def between(self, s: float, r: float) -> Tensor:
        """Standard normal, like x, the same at each call with these levels s > r > 0; independent over ways that do not overlap."""
        ...


def levels(sigmas: Tensor) -> list[float]:
    """The levels (n + 1,) as Python floats; ValueError unless they fall strictly to 0 and n >= 1."""
    s = [float(v) for v in sigmas.tolist()]
    if len(s) < 2 or s[-1] != 0 or any(a <= b for a, b in pairwise(s)):
        raise ValueError("noise levels must fall strictly, and end with 0")
    return s


def state(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def march(denoise: Denoise, x: Tensor, s: list[float], callback: Callback | None, step: Step) -> Tensor:
    """The loop of every solver that evaluates D at each level: `step` goes from a level to the next; the last step, to 0, is D itself.

    In no solver is there another last step: lambda = -log s is infinite at 0, where extrapolation would give NaN, and noise would stay.
    """
    x, n = state(x), len(s) - 1
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        x = D if i == n - 1 else step(i, x, D)
        if callback is not None:
            callback(i, n, D)
    return x


def fresh(noise: Noise | None) -> Tensor:
    """Standard normal noise; ValueError where there is none."""
    if noise is None:
        raise ValueError("a stochastic solver needs noise: pass a function that draws it")
    return noise()


def draw(noise: Noise | None, s: float, r: float) -> Tensor:
    """Standard normal noise for the way from level s down to r > 0: that of the path, if the noise knows it; else `fresh`."""
    return noise.between(s, r) if isinstance(noise, NoisePath) else fresh(noise)
