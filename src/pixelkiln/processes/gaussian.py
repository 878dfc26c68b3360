"""Gaussian paths between data and noise, xt = alpha(t) x0 + sigma(t) eps, variance-preserving: alpha^2 + sigma^2 = 1, t in [0, 1].

Time is continuous, so a schedule does not depend on a number of steps (a table of betas has to be rescaled by 1000 / T, which is
often forgotten). Everything is derived in float64 from one function, the noise level s(t) = sigma / alpha, and its exact inverse:
alpha = 1 / sqrt(1 + s^2), sigma = s / sqrt(1 + s^2), lambda = log(alpha / sigma) = -log s, SNR = s^-2.
Dividing by alpha maps the path to variance-exploding coordinates, x_VE = xt / alpha = x0 + s eps, in which all solvers work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .parameterization import mix

__all__ = ["GaussianPath", "cosine_path", "linear_path", "times"]

BETA_0, BETA_1 = 0.1, 20.0  # 1000 times Ho's 1e-4 and 0.02
OFFSET = 0.008  # the small s of Nichol and Dhariwal, eq. 17
LAMBDA_MIN = -5.1
T_MIN = 1e-3  # the first of a thousand steps
THETA_0 = math.pi / 2 * OFFSET / (1 + OFFSET)


@final
@dataclass(frozen=True)
class GaussianPath:
    """A variance-preserving path, given by its noise level s(t) and the inverse t(s); times and results are float64 tensors.

    Use it for t_min <= t <= t_max: the smallest and the largest noise that a network is trained for.
    """

    name: str
    level: Callable[[Tensor], Tensor]  # s(t), rising, s(0) = 0
    time: Callable[[Tensor], Tensor]  # t(s)
    t_max: float = 1.0
    t_min: float = T_MIN

    def ratio(self, t: Tensor) -> Tensor:
        """Noise level s = sigma / alpha at the times t, any shape."""
        return self.level(t.double())

    def t_of_ratio(self, s: Tensor) -> Tensor:
        """The time t at which sigma / alpha = s, the exact inverse of `ratio`, any shape."""
        return self.time(s.double())

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data, alpha = (1 + s^2)^-1/2 in (0, 1]."""
        return (1 + self.ratio(t) ** 2).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, sigma = s (1 + s^2)^-1/2 in [0, 1)."""
        s = self.ratio(t)
        return s * (1 + s**2).rsqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) = 2 lambda = -2 log s; +inf at t = 0."""
        return -2 * self.ratio(t).log()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 = s^-2; +inf at t = 0."""
        return self.ratio(t) ** -2

    @property
    def s_min(self) -> float:
        """Noise level at t_min."""
        return float(self.ratio(torch.tensor(self.t_min, dtype=torch.float64)))

    @property
    def s_max(self) -> float:
        """Noise level at t_max."""
        return float(self.ratio(torch.tensor(self.t_max, dtype=torch.float64)))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """xt = alpha(t) x0 + sigma(t) eps, (B, ...), for t (B,); only the result is cast to the dtype of x0 and eps."""
        return mix(self.alpha(t), x0, self.sigma(t), eps)


def _linear_level(t: Tensor) -> Tensor:
    return torch.expm1(BETA_0 * t + (BETA_1 - BETA_0) / 2 * t**2).sqrt()


def _linear_time(s: Tensor) -> Tensor:
    integral = torch.log1p(s**2)  # BETA_0 t + (BETA_1 - BETA_0) / 2 t^2
    return 2 * integral / (BETA_0 + (BETA_0**2 + 2 * (BETA_1 - BETA_0) * integral).sqrt())


def _cosine_level(t: Tensor) -> Tensor:
    step = math.pi / 2 / (1 + OFFSET) * t  # theta(t) - theta(0)
    return (step.sin() * (step + 2 * THETA_0).sin()).sqrt() / (step + THETA_0).cos()


def _cosine_time(s: Tensor) -> Tensor:
    theta = torch.atan2((s**2 + math.sin(THETA_0) ** 2).sqrt(), torch.full_like(s, math.cos(THETA_0)))
    return (theta - THETA_0) * (1 + OFFSET) / (math.pi / 2)


def linear_path() -> GaussianPath:
    """The linear schedule in continuous time: beta(t) = 0.1 + 19.9 t, alpha(t)^2 = exp(-int_0^t beta) = exp(-0.1 t - 9.95 t^2).

    It is the limit of beta_1..beta_T = 1e-4..0.02 at T = 1000 (Ho et al. 2020, arXiv 2006.11239, section 4), as Song et al. 2021
    (arXiv 2011.13456, eq. 33) write it. s runs from 0.0105 at t_min = 1e-3, Ho's first step, to 152 at t = 1.
    """
    return GaussianPath("linear", _linear_level, _linear_time)


def cosine_path() -> GaussianPath:
    """The cosine schedule: alpha(t)^2 = f(t) / f(0), f(t) = cos^2(theta), theta = pi/2 (t + 0.008) / (1 + 0.008).

    Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17. With theta_0 = theta(0), sigma^2 cos^2 theta_0 = sin^2 theta -
    sin^2 theta_0 = sin(theta - theta_0) sin(theta + theta_0), which does not cancel at small t. At t = 1 alpha is 0: no eps
    prediction can be inverted and lambda = -inf, so (where they clip beta at 0.999) time ends at t_max, where lambda = -5.1,
    s = e^5.1 = 164: about the linear schedule's end, and 0.004 % of the variance is still data. s_min = 0.0064.
    """
    t_max = float(_cosine_time(torch.tensor(-LAMBDA_MIN, dtype=torch.float64).exp()))
    return GaussianPath("cosine", _cosine_level, _cosine_time, t_max=t_max, t_min=T_MIN * t_max)


def times(n: int, t_max: float, t_min: float = T_MIN, device: torch.device | str = "cpu") -> Tensor:
    """Stratified uniform times t_min + (t_max - t_min) (i + u_i) / n, (n,) float32, in random order; u_i ~ U[0, 1).

    Each t is uniform on [t_min, t_max], but one falls in each of n equal strata, which lowers the variance of the loss
    (Kingma et al. 2021, arXiv 2107.00630, have the form with one u). From torch's global generator.
    """
    strata = torch.randperm(n, device=device)
    t = t_min + (t_max - t_min) * (strata.double() + torch.rand(n, device=device, dtype=torch.float64)) / n
    return t.float()
