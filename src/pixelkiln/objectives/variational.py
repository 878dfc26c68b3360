"""Variational inference with Gaussian posteriors q(z|x) = N(mean, exp(log_var)) and the prior p(z) = N(0, I).

Sums run over dimensions, means over the batch, everything in nats; so beta means the same at any resolution.
Legend: B batch, J latent units, K importance samples; mean, log_var, z, eps (..., J).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "active_units",
    "doubly_reparameterized",
    "free_bits",
    "importance_bound",
    "kl_between",
    "kl_per_unit",
    "log_normal",
    "reparameterize",
    "warmed_up",
]


def reparameterize(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """z = mean + sigma * eps with eps ~ N(0, I): a sample of q(z|x) that gradients pass. (Kingma and Welling 2014, section 2.4.)"""
    return mean + torch.exp(0.5 * log_var) * eps


def kl_per_unit(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(z_j|x) || N(0, 1)) = (mean^2 + sigma^2 - 1 - log sigma^2) / 2, (..., J). (Kingma and Welling 2014, eq. 10 and appendix B.)"""
    return 0.5 * (mean**2 + torch.exp(log_var) - 1 - log_var)


def kl_between(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL(N(mean, sigma^2) || N(prior_mean, prior_sigma^2)) of every unit, (..., J), for logarithms of deviations (not of variances):

    log(prior_sigma / sigma) + (sigma^2 + (mean - prior_mean)^2) / (2 prior_sigma^2) - 1/2.
    """
    apart, ratio = (mean - prior_mean) * torch.exp(-prior_log_std), log_std - prior_log_std
    return 0.5 * (apart**2 + torch.expm1(2 * ratio)) - ratio


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """sum_j max(floor, mean over the batch of KL_j), a scalar, for kl (B, J): per unit, after the batch mean.

    Not the true KL: report that one beside it. (Kingma et al. 2016, arXiv 1606.04934, eq. 15.)
    """
    return kl.mean(0).clamp_min(floor).sum()


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)) summed over the last dimension, (...,)."""
    each = -0.5 * (math.log(2 * math.pi) + log_var + (z - mean) ** 2 * torch.exp(-log_var))
    return each.sum(-1)


def importance_bound(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k, (B,), for log_w (K, B) = log p(x|z) + log p(z) - log q(z|x) at sampled z. (Burda et al. 2016, eq. 8.)"""
    return torch.logsumexp(log_w, dim=0) - math.log(len(log_w))


def doubly_reparameterized(log_w: Tensor, z: Tensor, weight: float = 1.0) -> Tensor:
    """The same bound, (B,), with another gradient of the same mean: w~_k for what the weights depend on directly, w~_k^2 for what they depend on
    through z_k. (Tucker et al. 2019, arXiv 1810.04152.)

    log_w (K, B), made of z (K, B, J) and of q's parameters *without their gradients*: d log q / d phi at fixed z, with mean E[w~_k d log q / d phi],
    is reparameterized once more, into E[(w~_k - w~_k^2) (d log w_k / d z_k) (d z_k / d phi)]. With log p(z) - log q(z|x) weighted by `weight` that
    part is, too, which leaves (1 - weight) w~_k + weight w~_k^2. A graph serves one backward pass, which scales the gradient at z on its way.
    """
    share = torch.softmax(log_w.detach(), dim=0)  # w~, (K, B)
    if z.requires_grad:
        z.register_hook(lambda grad: grad * (1 - weight + weight * share)[..., None])
    return importance_bound(log_w)


def active_units(mean: Tensor) -> Tensor:
    """Number of latent units whose posterior mean (B, J) varies over the batch: Var_x(E[z_j|x]) > 0.01. (Burda et al. 2016.)"""
    return (mean.var(0, correction=0) > 0.01).sum()


def warmed_up(progress: float, share: float) -> float:
    """min(1, progress / share): rises from 0 to 1 over the first `share` of training; 1 where share is 0. (Sonderby et al. 2016.)"""
    return 1.0 if share <= 0 else min(1.0, progress / share)
