"""One-step solvers of the probability-flow ODE dx/ds = (x - D(x, s)) / s, from s = sigmas[0] to 0 (Karras et al. 2022, arXiv 2206.00364, eq. 1).

Legend: s the level now, r the next one, D the denoised image, lambda = -log s, h = log(s / r). The last step, to 0, is D (`contract.march`).
"""

from __future__ import annotations

import math

from torch import Tensor

from .contract import Callback, Denoise, Noise, fresh, levels, march, state

__all__ = ["dpmpp_2s", "dpmpp_3s", "euler", "heun", "heun_step"]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """Euler's method, first order, n evaluations: x + (r - s) (x - D) / s = D + (r / s) (x - D).

    Karras et al. 2022, algorithm 1 without lines 6 to 8; in these coordinates it equals DDIM with eta = 0.
    """
    s = levels(sigmas)
    return march(denoise, x, s, callback, lambda i, x, D: D + s[i + 1] / s[i] * (x - D))


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, churn: float = 0.0, callback: Callback | None = None, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.0
) -> Tensor:
    """Heun's method, second order, 2n - 1 evaluations: the mean of the slopes at both ends; the last step, to 0, is Euler's.

    Karras et al. 2022, algorithm 1; with churn > 0 algorithm 2: at levels in [s_min, s_max] the noise is first raised to
    s (1 + gamma), gamma = min(churn / n, sqrt(2) - 1), but never above the first level, which may be the highest that the network knows.
    s_noise is the standard deviation of what is added; their best on ImageNet-64 are churn 40, [0.05, 50] and 1.003 (table 5).
    Below some ten steps this is among the worst solvers. ValueError where churn > 0 comes without noise.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    gamma = min(churn / n, math.sqrt(2) - 1)
    for i in range(n):
        up = min(s[i] * (1 + gamma), s[0]) if s_min <= s[i] <= s_max else s[i]
        if up > s[i]:
            x = x + math.sqrt(up**2 - s[i] ** 2) * s_noise * fresh(noise)
        D = denoise(x, up).to(x.dtype)
        x = D if i == n - 1 else heun_step(denoise, x, D, up, s[i + 1])
        if callback is not None:
            callback(i, n, D)
    return x


def heun_step(denoise: Denoise, x: Tensor, D: Tensor, s: float, r: float) -> Tensor:
    """x at the level r > 0 from x at s and D = D(x, s), one evaluation: Karras et al. 2022, algorithm 1, lines 4 to 8."""
    slope = (x - D) / s
    y = x + (r - s) * slope
    return x + (r - s) * (slope + (y - denoise(y, r).to(x.dtype)) / r) / 2


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2S), second order, 2n - 1 evaluations: D taken in the middle, at m = sqrt(s r).

    y = (m / s) x + (1 - m / s) D, x <- (r / s) x + (1 - r / s) D(y, m): Lu et al. 2022 (arXiv 2211.01095), algorithm 1 with
    r_i = 1/2, divided by alpha.
    """
    s = levels(sigmas)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        m = math.sqrt(s[i] * s[i + 1])
        middle = denoise(D + m / s[i] * (x - D), m).to(x.dtype)
        return middle + s[i + 1] / s[i] * (x - middle)

    return march(denoise, x, s, callback, step)


def dpmpp_3s(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(3S), third order, 3n - 2 evaluations: D also at lambda + h/3 and lambda + 2h/3.

    DPM-Solver-3 (Lu et al. 2022, arXiv 2206.00927, algorithm 2, r_1 = 1/3, r_2 = 2/3) with D in the place of eps, as
    DPM-Solver++ has it (arXiv 2211.01095), divided by alpha. With E = 1 - exp(-a h) and F(a) = 1 - E / (a h), a share of the step:
    y_1 = D + e^(-h/3) (x - D);   y_2 = D + e^(-2h/3) (x - D) + 2 F(2/3) (D_1 - D);   x <- D + (r / s) (x - D) + 3/2 F(1) (D_2 - D).
    """
    s = levels(sigmas)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        h = math.log(s[i] / s[i + 1])

        def F(a: float) -> float:
            return 1 + math.expm1(-a * h) / (a * h)

        near, far = (s[i] * math.exp(-a * h) for a in (1 / 3, 2 / 3))
        D_1 = denoise(D + near / s[i] * (x - D), near).to(x.dtype)
        D_2 = denoise(D + far / s[i] * (x - D) + 2 * F(2 / 3) * (D_1 - D), far).to(x.dtype)
        return D + s[i + 1] / s[i] * (x - D) + 1.5 * F(1) * (D_2 - D)

    return march(denoise, x, s, callback, step)
