"""Ancestral solvers: each step draws from a Gaussian given the denoised image, so that the marginals stay right.

Legend: s the level now, r the next one (0 <= r < s), D the denoised image, z standard normal. Both papers index steps of one
table of betas; here every formula holds for any pair of levels, so there is no "previous time step" to get wrong.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ..core.types import UserError
from .contract import Callback, Denoise, Noise, levels, state

__all__ = ["ddim", "ddpm"]


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None
) -> Tensor:
    """DDIM with a share eta in [0, 1] of ancestral noise, n evaluations: x <- D + sqrt(r^2 - up^2) (x - D) / s + up z.

    up = eta r sqrt(s^2 - r^2) / s, which is sigma_tau(eta) / alpha of Song et al. 2021 (arXiv 2010.02502), eq. 16, in eq. 12
    divided by alpha: (1 - abar_r) / abar_r = r^2 and (1 - abar_s / abar_r) / (1 - abar_s) = (s^2 - r^2) / s^2.
    eta = 0 is Euler's method, eta = 1 the DDPM posterior. UserError for another eta, ValueError where eta > 0 comes without noise.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta {eta} is not in [0, 1]: 0 is deterministic, 1 is ancestral sampling")
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        up = eta * s[i + 1] * math.sqrt(s[i] ** 2 - s[i + 1] ** 2) / s[i]
        x = D + math.sqrt(s[i + 1] ** 2 - up**2) / s[i] * (x - D)
        if up > 0:
            x = x + up * _draw(noise)
        if callback is not None:
            callback(i, n, D)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    callback: Callback | None = None,
    variance: Literal["small", "large"] = "small",
) -> Tensor:
    """DDPM's ancestral sampling, n evaluations: x <- D + (r / s)^2 (x - D) + std z; the last step, to r = 0, is free of noise.

    Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7: mean (sqrt(abar_r) beta x0 + sqrt(a) (1 - abar_r) xt) / (1 - abar_s), variance
    beta_tilde = beta (1 - abar_r) / (1 - abar_s), with a = abar_s / abar_r, beta = 1 - a. With abar = 1 / (1 + s^2), xt = sqrt(abar) x:
    1 - abar_s = abar_s s^2 and beta = abar_s (s^2 - r^2), hence, divided by sqrt(abar_r), the mean above, and
    "small" std^2 = beta_tilde / abar_r = r^2 (s^2 - r^2) / s^2; "large" std^2 = beta / abar_r = (s^2 - r^2) (1 + r^2) / (1 + s^2).
    `eta` is unused. ValueError where there is no noise.
    """
    s, x = levels(sigmas), state(x)
    n = len(s) - 1
    for i in range(n):
        D = denoise(x, s[i]).to(x.dtype)
        x = D + (s[i + 1] / s[i]) ** 2 * (x - D)
        if s[i + 1] > 0:
            gap = s[i] ** 2 - s[i + 1] ** 2
            var = gap * (s[i + 1] / s[i]) ** 2 if variance == "small" else gap * (1 + s[i + 1] ** 2) / (1 + s[i] ** 2)
            x = x + math.sqrt(var) * _draw(noise)
        if callback is not None:
            callback(i, n, D)
    return x


def _draw(noise: Noise | None) -> Tensor:
    if noise is None:
        raise ValueError("a stochastic solver needs noise: pass a function that draws it")
    return noise()
