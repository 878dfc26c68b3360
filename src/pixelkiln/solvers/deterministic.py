"""Solvers of the probability-flow ODE dx/ds = (x - D(x, s)) / s, from s = sigmas[0] to 0 (Karras et al. 2022, arXiv 2206.00364, eq. 1).

Legend: s the level now, r the next one, D the denoised image. `noise` and `eta` are part of the contract and unused here.
Every step is written so that r = 0 returns D exactly.
"""

from __future__ import annotations

import math

from torch import Tensor

from .contract import Callback, Denoise, Noise, levels, state

__all__ = ["dpmpp_2m", "euler", "heun"]


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None
) -> Tensor:
    """Euler's method, first order, n evaluations: x + (r - s) (x - D) / s = D + (r / s) (x - D).

    Karras et al. 2022, algorithm 1 without lines 6 to 8; in these coordinates it equals DDIM with eta = 0.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        x = D + s[i + 1] / s[i] * (x - D)
        if callback is not None:
            callback(i, n, D)
    return x


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None
) -> Tensor:
    """Heun's method, second order, 2n - 1 evaluations: the mean of the slopes at both ends; the last step, to 0, is Euler's.

    Karras et al. 2022, algorithm 1. Below some ten steps it is among the worst solvers.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        y = D + s[i + 1] / s[i] * (x - D)
        if s[i + 1] > 0:
            slope = (x - D) / s[i]
            ahead = (y - denoise(y, s[i + 1]).to(x.dtype)) / s[i + 1]
            y = x + (s[i + 1] - s[i]) * (slope + ahead) / 2
        x = y
        if callback is not None:
            callback(i, n, D)
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M), second order, n evaluations: exact in the linear part, D extrapolated from the last two.

    With lambda = -log s, h = log(s / r) and q = h_last / h: x <- (r / s) x + (1 - r / s) ((1 + 1/2q) D - 1/2q D_last)
    (Lu et al. 2022, arXiv 2211.01095, algorithm 2, divided by alpha). First order in the first step, and in the last one,
    where h is infinite and extrapolation would give NaN.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    last = x
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        E = D
        if i > 0 and s[i + 1] > 0:
            q = math.log(s[i - 1] / s[i]) / math.log(s[i] / s[i + 1])
            E = D + (D - last) / (2 * q)
        x = E + s[i + 1] / s[i] * (x - E)
        last = D
        if callback is not None:
            callback(i, n, D)
    return x
