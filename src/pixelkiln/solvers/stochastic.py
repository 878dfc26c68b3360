"""Ancestral and SDE solvers: each step draws from a Gaussian given the denoised image, so that the marginals stay right.

Legend: s the level now, r the next one (0 < r < s), D the denoised image, z standard normal; the last step, to 0, is D, free of noise.
The papers index steps of one table of betas; here every formula holds for any pair of levels, so there is no "previous time step" to
get wrong. ValueError where noise is needed and none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..core.types import UserError
from .contract import Callback, Denoise, Noise, draw, levels, march
from .multistep import extrapolated

__all__ = ["ddim", "ddpm", "ddpm_large", "ddpm_learned", "dpmpp_2m_sde", "dpmpp_sde", "euler_ancestral", "variances"]

Moments = Callable[[Tensor, float], tuple[Tensor, Tensor]]  # x (B, ...), s -> D (B, ...) and f (B, ...) in [0, 1]


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0, callback: Callback | None = None) -> Tensor:
    """DDIM with a share eta in [0, 1] of ancestral noise, n evaluations: x <- D + sqrt(r^2 - up^2) (x - D) / s + up z.

    up = eta r sqrt(s^2 - r^2) / s, which is sigma_tau(eta) / alpha of Song et al. 2021 (arXiv 2010.02502), eq. 16, in eq. 12
    divided by alpha: (1 - abar_r) / abar_r = r^2 and (1 - abar_s / abar_r) / (1 - abar_s) = (s^2 - r^2) / s^2.
    eta = 0 is Euler's method, eta = 1 the DDPM posterior. UserError for another eta.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta {eta} is not in [0, 1]: 0 is deterministic, 1 is ancestral sampling")
    s = levels(sigmas)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        up = eta * s[i + 1] * math.sqrt(s[i] ** 2 - s[i + 1] ** 2) / s[i]
        x = D + math.sqrt(s[i + 1] ** 2 - up**2) / s[i] * (x - D)
        return x + up * draw(noise, s[i], s[i + 1]) if up > 0 else x

    return march(denoise, x, s, callback, step)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None) -> Tensor:
    """Euler's method to the level sqrt(r^2 - up^2), then noise up to r, up = r sqrt(s^2 - r^2) / s, n evaluations.

    The "Euler a" of k-diffusion. It is `ddim` with eta = 1, and `ddpm` with small variance, on other levels.
    """
    return ddim(denoise, x, sigmas, noise=noise, eta=1.0, callback=callback)


def variances(s: float, r: float) -> tuple[float, float]:
    """The variances ("small", "large") = (beta_tilde, beta) of a DDPM step from s to r > 0, divided by abar_r.

    beta_tilde = beta (1 - abar_r) / (1 - abar_s), beta = 1 - abar_s / abar_r (Ho et al. 2020, arXiv 2006.11239, eq. 7 and section
    3.2). With abar = 1 / (1 + s^2): 1 - abar_s = abar_s s^2 and beta = abar_s (s^2 - r^2), hence
    small = r^2 (s^2 - r^2) / s^2 and large = (s^2 - r^2) (1 + r^2) / (1 + s^2).
    """
    gap = s**2 - r**2
    return gap * (r / s) ** 2, gap * (1 + r**2) / (1 + s**2)


def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None, variance: Literal["small", "large"] = "small"
) -> Tensor:
    """DDPM's ancestral sampling with a fixed variance, n evaluations: x <- D + (r / s)^2 (x - D) + std z.

    Ho et al. 2020 (arXiv 2006.11239), eq. 7: mean (sqrt(abar_r) beta x0 + sqrt(a) (1 - abar_r) xt) / (1 - abar_s), a = abar_s / abar_r,
    which is the mean above times sqrt(abar_r); std^2 by `variances`.
    """
    f = float(variance == "large")
    return ddpm_learned(lambda x, s: (denoise(x, s), torch.full((), f)), x, sigmas, noise=noise, callback=callback)


def ddpm_large(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None) -> Tensor:
    """`ddpm` with the large variance, beta: right for data that are themselves standard normal; the small one for a single point."""
    return ddpm(denoise, x, sigmas, noise=noise, callback=callback, variance="large")


def ddpm_learned(moments: Moments, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None) -> Tensor:
    """DDPM's ancestral sampling with a learned variance, n evaluations: x <- D + (r / s)^2 (x - D) + std z.

    moments(x, s) -> (D, f): the estimate of x0 and, for every pixel (or any shape that broadcasts against x), where the log variance
    lies between "small" = beta_tilde (f = 0) and "large" = beta (f = 1): std^2 = exp(f log large + (1 - f) log small), Nichol and
    Dhariwal 2021 (arXiv 2102.09672), eq. 15, their v = f (as networks write it, f = (v + 1) / 2 for an output v in [-1, 1]). beta and
    beta_tilde are those of this very step from s to r (`variances`), so a shorter list of levels needs no other betas. They are divided
    by abar_r, which changes no interpolation. At r = 0, where log beta_tilde = -inf, nothing is drawn and f is unused.
    """
    s = levels(sigmas)
    share = x  # f of the step now

    def denoise(x: Tensor, level: float) -> Tensor:
        nonlocal share
        D, share = moments(x, level)
        return D

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        small, large = variances(s[i], s[i + 1])
        std = (0.5 * (math.log(small) + share.to(x) * math.log(large / small))).exp()
        return D + (s[i + 1] / s[i]) ** 2 * (x - D) + std * draw(noise, s[i], s[i + 1])

    return march(denoise, x, s, callback, step)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None) -> Tensor:
    """SDE-DPM-Solver++(2M), n evaluations: as `ddpm` with small variance, but D extrapolated from the last two.

    x <- E + (r / s)^2 (x - E) + r sqrt(1 - r^2 / s^2) z, E = (1 + 1/2q) D - 1/2q D_last: Lu et al. 2022 (arXiv 2211.01095), appendix B,
    divided by alpha; e^(-h) = r / s.
    """
    s, past = levels(sigmas), [x]

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        E = extrapolated(s, i, D, past[0])
        past[0] = D
        return _posterior(x, E, s[i], s[i + 1], draw(noise, s[i], s[i + 1]))

    return march(denoise, x, s, callback, step)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None) -> Tensor:
    """SDE-DPM-Solver++ in one step with D taken in the middle, at m = sqrt(s r), 2n - 1 evaluations.

    As `dpmpp_2s` (r_1 = 1/2) with the exact solution of the SDE in the place of the ODE's: to the middle with z_1, then the whole step
    with D(y, m) and the noise of both halves. That noise is one Brownian path: increments over 1/m^2 - 1/s^2 and 1/r^2 - 1/m^2.
    """
    s = levels(sigmas)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        m = math.sqrt(s[i] * s[i + 1])
        z_1, z_2 = draw(noise, s[i], m), draw(noise, m, s[i + 1])
        middle = denoise(_posterior(x, D, s[i], m, z_1), m).to(x.dtype)
        first, second = m**-2 - s[i] ** -2, s[i + 1] ** -2 - m**-2
        z = (math.sqrt(first) * z_1 + math.sqrt(second) * z_2) / math.sqrt(first + second)
        return _posterior(x, middle, s[i], s[i + 1], z)

    return march(denoise, x, s, callback, step)


def _posterior(x: Tensor, D: Tensor, s: float, r: float, z: Tensor) -> Tensor:
    """A draw of q(x_r | x_s, x0 = D): D + (r / s)^2 (x - D) + r sqrt(1 - r^2 / s^2) z."""
    return D + (r / s) ** 2 * (x - D) + r * math.sqrt(1 - (r / s) ** 2) * z
