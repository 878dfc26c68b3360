"""The discrete chain of a path: T steps with the betas that its noise levels imply, for methods and bounds that need a table.

Legend: r < s the levels before and after a step, abar = alpha^2 = 1 / (1 + s^2), which is so on paths that keep the variance only.
The table is derived from the continuous path, so it needs no rescaling: beta_1..beta_T = 1e-4..0.02 belong to T = 1000, and for
another T all have to be multiplied by 1000 / T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianPath, keeps_variance

__all__ = ["Betas", "beta", "beta_tilde", "betas"]


def beta(s: Tensor, r: Tensor) -> Tensor:
    """Variance of the step from level r up to s, 1 - abar_s / abar_r = (s^2 - r^2) / (1 + s^2); 1 where s = inf. Like s."""
    return torch.where(s.isinf(), torch.ones_like(s), (s - r) * (s + r) / (1 + s**2))


def beta_tilde(s: Tensor, r: Tensor) -> Tensor:
    """Variance of the posterior q(x_r | x_s, x0), beta (1 - abar_r) / (1 - abar_s) = (1 - r^2 / s^2) r^2 / (1 + r^2); 0 for r = 0.

    Ho et al. 2020 (arXiv 2006.11239), eq. 7. Of both variances these are the exact ones for any two levels: a sampler that leaves
    steps out must not take the table's.
    """
    return (1 - (r / s) ** 2) * (r / torch.hypot(torch.ones_like(r), r)) ** 2


@dataclass(frozen=True)
class Betas:
    """The table of T steps, each (T,) float64, entry i - 1 for step i = 1..T: times, levels, abar, beta, and the posterior's variance.

    The posterior of step 1 has variance 0. Where its logarithm is needed (learned variances, bounds) `beta_tilde` has step 2's
    instead, as Nichol and Dhariwal 2021 (arXiv 2102.09672) do it; with T = 1 it is beta_1.
    """

    t: Tensor
    s: Tensor
    abar: Tensor
    beta: Tensor
    beta_tilde: Tensor


def betas(path: GaussianPath, T: int) -> Betas:
    """The chain at t_i = i t_max / T, i = 1..T, starting from data; for paths that keep the variance."""
    assert path.scale is keeps_variance and T >= 1
    t = path.t_max * torch.arange(1, T + 1, dtype=torch.float64) / T
    s = path.ratio(t)
    r = torch.cat([s.new_zeros(1), s[:-1]])
    step, post = beta(s, r), beta_tilde(s, r)
    return Betas(t, s, keeps_variance(s) ** 2, step, torch.cat([post[1:2] if T > 1 else step, post[1:]]))
