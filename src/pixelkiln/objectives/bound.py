"""The variational bound of a diffusion model, exactly: -log p(x0) <= L_T + sum_i L_i + L_0, in nats (Sohl-Dickstein et al. 2015).

A chain of T steps has the levels s_0 = 0 < s_1 < ... < s_T, xi = x0 + s_i eps, in variance-exploding coordinates x = xt / alpha. No KL
changes when both sides are scaled, so these are the terms of the variance-preserving chain of Ho et al. 2020 (arXiv 2006.11239, eq. 5):

    L_T = KL(q(x_T | x0) || p(x_T)),   L_{i-1} = KL(q(x_{i-1} | x_i, x0) || p(x_{i-1} | x_i)),   L_0 = -log p(x0 | x_1).

With r = s_{i-1}, s = s_i, and D the denoised image, q has the mean x0 + (r / s)^2 (xi - x0) and p the same with D for x0.
Legend: B images; x0, D, share (B, ...); i (B,) or (B, K) int64 in 1..T; levels (T + 1,) float64, rising from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import beta, beta_tilde
from ..processes.parameterization import column
from .likelihoods import discretized_gaussian_log_prob

__all__ = ["Bound", "Decoder", "Moments", "chosen_steps", "continuous_rate", "log_ranges", "prior_nats", "step_nats", "variational_bound"]

Moments = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x (B, ...), s (B,) float64 -> D and share, (B, ...) each
Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]  # x0, mean, log of the standard deviation, (B, ...) each -> log p(x0 | x_1), (B,)


@dataclass(frozen=True)
class Bound:
    """prior: L_T, (B,). terms: L_{i-1} at the steps i, (B, K). weights: what makes sum_k weights terms an estimate of their sum over all i."""

    prior: Tensor
    terms: Tensor
    i: Tensor
    weights: Tensor

    @property
    def nats(self) -> Tensor:
        """The bound on -log p(x0) of each image, (B,)."""
        return self.prior + (self.weights * self.terms).sum(1)

    def curve(self) -> Tensor:
        """(K, 2): step and mean nats of one step, over the images and the stratum of steps that column k stands for."""
        total = self.weights.sum(0)
        return torch.stack([(self.weights * v).sum(0) / total for v in (self.i, self.terms)], dim=1)


def log_ranges(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-variances of p(x_{i-1} | x_i) between which a network chooses, (T,) float64 each, entry i - 1 for step i.

    small: beta_tilde / abar_r = r^2 (s^2 - r^2) / s^2, the variance of q, right where x0 is a point; large: beta / abar_r =
    (s^2 - r^2) (1 + r^2) / (1 + s^2), right where x0 is N(0, I) (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.1). beta_i =
    1 - abar_i / abar_{i-1} of these very levels, so a respaced chain has betas of its own. Step 1 would have log 0: it takes the beta_tilde
    of step 2 (of a chain of one step: beta).
    """
    r, s = levels[:-1].double(), levels[1:].double()
    large, small = beta(s, r).log(), beta_tilde(s, r).log()
    small[0] = small[1] if len(small) > 1 else large[0]
    scale = (r**2).log1p()  # -log abar_r
    return small + scale, large + scale


def step_nats(x0: Tensor, D: Tensor, share: Tensor, i: Tensor, levels: Tensor, decoder: Decoder = discretized_gaussian_log_prob) -> Tensor:
    """L_{i-1} of each image, (B,) nats, for i (B,); D and share as the network gives them at level s_i.

    The variance of p is log var = share log large + (1 - share) log small (Nichol and Dhariwal 2021, eq. 15), so with d = log var - log small
    KL = sum_dims (d + e^-d - 1 + (1 - r^2 / s^2)^2 (x0 - D)^2 / var) / 2. Step 1 is -log p(x0 | x_1), p = N(D, var), by default integrated over
    the 256 levels of 8-bit images. What must not reach the mean (the hybrid objective) is given as D.detach().
    """
    levels = levels.to(i.device)
    low, high = log_ranges(levels)
    small, width = column(low[i - 1], x0), column((high - low)[i - 1], x0)  # (B, 1, ...)
    pull = column(1 - (levels[i - 1] / levels[i]) ** 2, x0)
    d = share.to(small.dtype) * width
    log_var = small + d
    kl = 0.5 * (d + torch.expm1(-d) + (pull * (x0 - D)) ** 2 * torch.exp(-log_var)).flatten(1).sum(1)
    first = i == 1
    log_std = torch.where(column(first, x0) > 0, 0.5 * log_var, 0.0)  # elsewhere something harmless, whose gradient is multiplied by 0
    return torch.where(first, -decoder(x0, D, log_std), kl)


def prior_nats(x0: Tensor, s: float, std: float) -> Tensor:
    """L_T = KL(N(x0, s^2 I) || N(0, std^2 I)), (B,) nats; a variance-preserving chain starts from std^2 = 1 + s^2."""
    each = 0.5 * ((x0.double() ** 2 + s**2) / std**2 - 1) + math.log(std / s)
    return each.flatten(1).sum(1)


def chosen_steps(n: int, T: int, num: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Steps i and weights, (n, K) each, K = min(num, T): sum_k weights L_i has the expectation sum_{i=1..T} L_i for every image.

    All T steps with weight 1 where num allows it. Else step 1 always, and num - 1 >= 1 of the others, stratified, with the density p_i ~ 1 / i, about as the
    terms fall (figure 2 of Nichol and Dhariwal 2021), and weights 1 / ((num - 1) p_i).
    """
    if num >= T:
        return torch.arange(1, T + 1).expand(n, T), torch.ones(n, T, dtype=torch.float64)
    num = max(num, 2)
    p = 1 / torch.arange(2, T + 1, dtype=torch.float64)
    p = p / p.sum()
    u = (torch.arange(num - 1) + torch.rand(n, num - 1, generator=gen, dtype=torch.float64)) / (num - 1)
    j = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=T - 2)  # (n, num - 1)
    one = torch.ones(n, 1)
    return torch.cat([one.long(), j + 2], dim=1), torch.cat([one.double(), 1 / ((num - 1) * p[j])], dim=1)


def variational_bound(
    moments: Moments,
    x0: Tensor,
    levels: Tensor,
    steps: tuple[Tensor, Tensor],
    noise: Callable[[], Tensor],
    std: float,
    decoder: Decoder = discretized_gaussian_log_prob,
) -> Bound:
    """The bound for images x0, one evaluation of `moments` for each column of `steps` (as `chosen_steps` gives them), with its own noise.

    std: standard deviation of the prior at the last level. The bound holds in expectation over the noise.
    """
    i, weights = (v.to(x0.device) for v in steps)
    levels = levels.to(x0.device)
    terms = []
    for k in range(i.shape[1]):
        s = levels[i[:, k]]  # (B,)
        D, share = moments(x0 + column(s, x0) * noise(), s)
        terms.append(step_nats(x0, D, share, i[:, k], levels, decoder).double())
    return Bound(prior_nats(x0, float(levels[-1]), std), torch.stack(terms, dim=1), i, weights)


def continuous_rate(x0: Tensor, D: Tensor, s: Tensor) -> Tensor:
    """|x0 - D|^2 / s^2, (B,): nats of the bound per unit of log s in the limit of infinitely many steps, for D at level s (B,).

    -1/2 int SNR'(t) |x0 - D|^2 dt with SNR = s^-2 (Kingma et al. 2021, arXiv 2107.00630, eq. 15 and 16): no schedule between the ends matters.
    """
    return ((x0 - D) / column(s, x0)).square().flatten(1).sum(1)
