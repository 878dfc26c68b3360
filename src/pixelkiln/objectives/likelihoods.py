"""What a decoder's output says about an image: log p(x|z), summed over all dimensions, one number per image.

Images x are in [-1, 1]; the 256 levels of 8-bit images lie at x = 2v/255 - 1, 2/255 apart.
Shapes: x, logits, mean (..., C, H, W); log_scale broadcasts against them, (C, 1, 1) for one scale per channel; results (...,).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MIN_LOG_SCALE",
    "bernoulli_log_prob",
    "binarize",
    "bits_per_dim",
    "dequantize",
    "discrete_levels",
    "discretized_gaussian_log_prob",
    "gaussian_log_prob",
    "logistic_log_prob",
    "soft_floor",
]

MIN_LOG_SCALE = -7.0  # a scale of 0.0009, a ninth of a level
FAR = 1e15  # standard deviations: infinity whose gradients are finite


def soft_floor(log_scale: Tensor, low: float = MIN_LOG_SCALE) -> Tensor:
    """A log-scale kept above `low`, smoothly: low + softplus(log_scale - low); unlike a clamp it never loses its gradient."""
    return low + F.softplus(log_scale - low)


def binarize(x: Tensor, u: Tensor) -> Tensor:
    """Dynamic binarization: a pixel is 1 with probability (x + 1) / 2, else 0.

    x in [-1, 1] and u uniform in [0, 1), of the same shape. Images that are binary already stay as they are.
    (Salakhutdinov and Murray 2008.)
    """
    return (u < (x + 1) / 2).to(x.dtype)


def dequantize(x: Tensor, u: Tensor, levels: int = 256) -> Tensor:
    """Uniform noise as wide as one level, x + (2u - 1) / (levels - 1), with u uniform in [0, 1).

    Under it E log p(x + noise) + D log(2 / (levels - 1)) is at most the log-probability of the discrete image (Theis et al. 2016).
    """
    return x + (2 * u - 1) / (levels - 1)


def discrete_levels(x: Tensor, levels: int = 256) -> Tensor:
    """The integer level v in 0 .. levels - 1 of x = 2v / (levels - 1) - 1."""
    return ((x + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1)


def bernoulli_log_prob(b: Tensor, logits: Tensor) -> Tensor:
    """sum_d b_d log p_d + (1 - b_d) log(1 - p_d), with p = sigmoid(logits); b must be 0 or 1. (Kingma and Welling 2014, eq. 11.)"""
    return -F.binary_cross_entropy_with_logits(logits, b.expand_as(logits), reduction="none").flatten(-3).sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """sum_d log N(x_d; mean_d, sigma^2), sigma = exp(log_scale), with its -D/2 log(2 pi sigma^2). (Kingma and Welling 2014, eq. 12.)"""
    each = -0.5 * ((x - mean) * torch.exp(-log_scale)) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
    return each.flatten(-3).sum(-1)


def logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256) -> Tensor:
    """sum_d log P(v_d) of the discretized logistic: P(v) = F(x + h) - F(x - h), h = 1 / (levels - 1), F the logistic CDF.

    The bins of level 0 and level - 1 reach to infinity; which bin it is, is decided on the integer level. The difference of sigmoids
    is taken as sig(a) - sig(b) = sig(a) sig(-b) (1 - exp(b - a)), exact in both tails, so that no fallback is needed.
    (Kingma et al. 2016, arXiv 1606.04934, appendix; edges as in Salimans et al. 2017, arXiv 1701.05517, eq. 2.)
    """
    v = discrete_levels(x, levels)
    h = 1 / (levels - 1)
    centered, precision = v * (2 * h) - 1 - mean, torch.exp(-log_scale)
    below_top = torch.where(v < levels - 1, F.logsigmoid((centered + h) * precision), 0.0)
    above_bottom = torch.where(v > 0, F.logsigmoid((h - centered) * precision), 0.0)
    width = torch.where((v > 0) & (v < levels - 1), torch.log(-torch.expm1(-2 * h * precision)), 0.0)
    return (below_top + above_bottom + width).flatten(-3).sum(-1)


def discretized_gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256) -> Tensor:
    """sum_d log P(v_d) of the discretized Gaussian: P(v) = Phi((x + h - mean) / sigma) - Phi((x - h - mean) / sigma), h = 1 / (levels - 1).

    The bins of level 0 and levels - 1 reach to infinity (Ho et al. 2020, arXiv 2006.11239, eq. 13). With a > b the bin's ends in standard
    deviations, log(Phi(a) - Phi(b)) = log Phi(a) + log(1 - exp(log Phi(b) - log Phi(a))), taken in the lower tail (a, b <- -b, -a
    above the mean), where it is exact; with a tanh for Phi, or a difference of probabilities, far bins have no gradient.
    """
    v = discrete_levels(x, levels)
    h = 1 / (levels - 1)
    centered, precision = v * (2 * h) - 1 - mean, torch.exp(-log_scale)
    upper = torch.where(v < levels - 1, (centered + h) * precision, FAR)
    lower = torch.where(v > 0, (centered - h) * precision, -FAR)
    below = centered <= 0
    top = torch.special.log_ndtr(torch.where(below, upper, -lower))
    bottom = torch.special.log_ndtr(torch.where(below, lower, -upper))
    return (top + torch.log(-torch.expm1(bottom - top))).flatten(-3).sum(-1)


def bits_per_dim(nats: Tensor, dims: int, per_dim: float = 0.0) -> Tensor:
    """-(nats / dims + per_dim) / log 2; per_dim turns a density into a probability of levels (log(2/255) for densities on [-1, 1])."""
    return -(nats / dims + per_dim) / math.log(2)
