"""Gaussian paths between data and noise, xt = alpha(t) x0 + sigma(t) eps, t in [0, 1].

Time is continuous, so a schedule does not depend on a number of steps (a table of betas has to be rescaled by 1000 / T, which is
often forgotten). Everything is derived in float64 from two functions and one exact inverse: the noise level s(t) = sigma / alpha,
t(s), and the scale alpha(s), which says how the path is normalized:

    keeps the variance   alpha = 1 / sqrt(1 + s^2)       alpha^2 + sigma^2 = 1   (VP; linear, cosine, sigmoid, laplace)
    keeps the data       alpha = 1                       sigma = s               (VE, EDM)
    straight             alpha = 1 / (1 + s)             alpha + sigma = 1       (rectified flow)
    sub-VP               alpha = 2 / (sqrt(4 + s^2) + s) sigma = 1 - alpha^2

lambda = log(alpha / sigma) = -log s, SNR = s^-2. Dividing by alpha maps every path to variance-exploding coordinates,
x_VE = xt / alpha = x0 + s eps, in which all solvers work: for them paths differ in s(t) alone. The paths: [schedules](schedules.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .parameterization import mix

__all__ = ["S_CAP", "T_MIN", "GaussianPath", "keeps_data", "keeps_variance", "straight", "sub_variance"]

T_MIN = 1e-3  # the first of a thousand steps
S_CAP = 1e4  # where sampling starts on a path that ends in pure noise: the data have 1e-8 of the variance there


def keeps_variance(s: Tensor) -> Tensor:
    """alpha = (1 + s^2)^-1/2; 0 for s = inf."""
    return 1 / torch.hypot(torch.ones_like(s), s)


def keeps_data(s: Tensor) -> Tensor:
    """alpha = 1."""
    return torch.ones_like(s)


def straight(s: Tensor) -> Tensor:
    """alpha = 1 / (1 + s); 0 for s = inf."""
    return 1 / (1 + s)


def sub_variance(s: Tensor) -> Tensor:
    """alpha = (sqrt(4 + s^2) - s) / 2, written so that nothing cancels; 0 for s = inf."""
    return 2 / (torch.hypot(torch.full_like(s, 2), s) + s)


@final
@dataclass(frozen=True)
class GaussianPath:
    """A path, given by its noise level s(t), the inverse t(s) and the scale alpha(s); times and results are float64 tensors.

    Use it for t_min <= t <= t_max: the smallest and the largest noise that a network is trained for. s(t_max) may be inf, pure noise
    (alpha = 0, sigma = 1); `s_max`, where sampling starts, is finite even then.
    """

    name: str
    level: Callable[[Tensor], Tensor]  # s(t), rising
    time: Callable[[Tensor], Tensor]  # t(s)
    t_max: float = 1.0
    t_min: float = T_MIN
    scale: Callable[[Tensor], Tensor] = keeps_variance  # alpha(s)

    def ratio(self, t: Tensor) -> Tensor:
        """Noise level s = sigma / alpha at the times t, any shape."""
        return self.level(t.double())

    def t_of_ratio(self, s: Tensor) -> Tensor:
        """The time t at which sigma / alpha = s, the exact inverse of `ratio`, any shape."""
        return self.time(s.double())

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data, in [0, 1]."""
        return self.scale(self.ratio(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, s alpha; 1 where s is infinite."""
        s = self.ratio(t)
        return torch.where(s.isinf(), torch.ones_like(s), s * self.scale(s))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) = 2 lambda = -2 log s; +inf at s = 0."""
        return -2 * self.ratio(t).log()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 = s^-2; +inf at s = 0."""
        return self.ratio(t) ** -2

    @property
    def s_min(self) -> float:
        """Noise level at t_min."""
        return float(self.ratio(torch.tensor(self.t_min, dtype=torch.float64)))

    @property
    def s_max(self) -> float:
        """Noise level at t_max; S_CAP = 1e4 where that is larger, as on paths that end in pure noise. Sampling starts here."""
        return min(float(self.ratio(torch.tensor(self.t_max, dtype=torch.float64))), S_CAP)

    @property
    def t_top(self) -> float:
        """The time of s_max: t_max but for paths that end in pure noise, where it is a little less."""
        s = self.s_max
        return self.t_max if s < S_CAP else float(self.t_of_ratio(torch.tensor(s, dtype=torch.float64)))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """xt = alpha(t) x0 + sigma(t) eps, (B, ...), for t (B,); only the result is cast to the dtype of x0 and eps."""
        return mix(self.alpha(t), x0, self.sigma(t), eps)
