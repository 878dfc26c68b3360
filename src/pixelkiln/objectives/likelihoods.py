"""What a decoder's output says about an image: log p(x|z), summed over all dimensions, one number per image.

Images x are in [-1, 1]; the 256 levels of 8-bit images lie at x = 2v/255 - 1, 2/255 apart.
Shapes: x, logits, mean (..., C, H, W); log_scale broadcasts against them, (C, 1, 1) for one scale per channel; results (...,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MIN_LOG_SCALE",
    "Mixture",
    "bernoulli_log_prob",
    "binarize",
    "bits_per_dim",
    "continuous_bernoulli_log_prob",
    "continuous_bernoulli_mean",
    "dequantize",
    "dequantize_unit",
    "discrete_levels",
    "discretized_gaussian_log_prob",
    "gaussian_log_prob",
    "logistic_log_prob",
    "logistic_mean",
    "mixture_logistic_log_prob",
    "mixture_logistic_mean",
    "mixture_logistic_sample",
    "mixture_of",
    "mixture_size",
    "single",
    "soft_floor",
]

MIN_LOG_SCALE = -7.0  # a scale of 0.0009, a ninth of a level
FAR = 1e15  # standard deviations: infinity whose gradients are finite
NEAR = 0.5  # logits: below, the Taylor polynomials of the continuous Bernoulli


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


def dequantize_unit(x: Tensor, u: Tensor, levels: int = 256) -> Tensor:
    """The same on [0, 1], without a rest: (v + u) / levels of level v. A density there is `levels` times a level's probability."""
    return (discrete_levels(x, levels) + u) / levels


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
    return _logistic_each(x, mean, log_scale, levels).flatten(-3).sum(-1)


def _logistic_each(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log P(v_d) of every dimension."""
    v = discrete_levels(x, levels)
    h = 1 / (levels - 1)
    centered, precision = v * (2 * h) - 1 - mean, torch.exp(-log_scale)
    below_top = torch.where(v < levels - 1, F.logsigmoid((centered + h) * precision), 0.0)
    above_bottom = torch.where(v > 0, F.logsigmoid((h - centered) * precision), 0.0)
    width = torch.where((v > 0) & (v < levels - 1), torch.log(-torch.expm1(-2 * h * precision)), 0.0)
    return below_top + above_bottom + width


def logistic_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """E[clip(X, -1, 1)] of a logistic X, elementwise: -1 + integral of 1 - F over [-1, 1] = -1 + s (softplus((mean + 1) / s) - softplus((mean - 1) / s)).

    Rounding to a level moves a number by half a level at most, so that the discretized logistic's mean is no farther from this one.
    """
    scale = torch.exp(log_scale)
    return (scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale)) - 1).clamp(-1, 1)


class Mixture(NamedTuple):
    """K discretized logistics with a color's channels one after the other: logits (..., K, H, W) of the weights; mean and log_scale
    (..., K, C, H, W); coeff (..., K, C (C - 1) / 2, H, W), what each channel's mean takes of those before it: (g, r), (b, r), (b, g)."""

    logits: Tensor
    mean: Tensor
    log_scale: Tensor
    coeff: Tensor


def mixture_size(num: int, channels: int) -> int:
    """Numbers a pixel that describe a mixture of `num` logistics: 3 each for one channel, 10 each for three."""
    return num * (1 + 2 * channels + channels * (channels - 1) // 2)


def mixture_of(raw: Tensor, channels: int) -> Mixture:
    """The mixture that a net's output (..., `mixture_size`, H, W) stands for. Scales have a soft floor; coefficients are in (-1, 1) by a tanh,
    as in the program of Salimans et al. 2017."""
    num = raw.shape[-3] // mixture_size(1, channels)
    logits, rest = raw.split([num, raw.shape[-3] - num], dim=-3)
    parts = (channels, channels, channels * (channels - 1) // 2)
    mean, log_scale, coeff = rest.unflatten(-3, (num, sum(parts))).split(parts, dim=-3)
    return Mixture(logits, mean, soft_floor(log_scale), torch.tanh(coeff))


def single(mean: Tensor, log_scale: Tensor) -> Mixture:
    """One discretized logistic for each number, as a mixture of one whose channels do not see each other: mean and log_scale (..., C, H, W)."""
    *some, channels, height, width = mean.shape
    none = mean.new_zeros(*some, 1, channels * (channels - 1) // 2, height, width)
    return Mixture(mean.new_zeros(*some, 1, height, width), mean[..., None, :, :, :], log_scale.expand_as(mean)[..., None, :, :, :], none)


def _shift(mix: Mixture, channel: int, before: Tensor) -> Tensor:
    """The mean (..., K, H, W) of a channel, given those before it, (..., K or 1, channel, H, W). (Salimans et al. 2017, eq. 3.)"""
    first = channel * (channel - 1) // 2
    return mix.mean[..., channel, :, :] + (mix.coeff[..., first : first + channel, :, :] * before).sum(-3)


def mixture_logistic_log_prob(x: Tensor, mix: Mixture, levels: int = 256) -> Tensor:
    """sum over pixels of log sum_k pi_k prod_c P(v_c | mean_kc + sum_{c' < c} a_kcc' x_c', s_kc), P the discretized logistic.

    One component for all channels of a pixel; its means lean on the pixel's true values of the channels before. x (..., C, H, W) -> (...,).
    (Salimans et al. 2017, arXiv 1701.05517, eq. 1 to 3.)
    """
    v = discrete_levels(x, levels)[..., None, :, :, :] * (2 / (levels - 1)) - 1  # (..., 1, C, H, W)
    mean = torch.stack([_shift(mix, c, v[..., :c, :, :]) for c in range(x.shape[-3])], dim=-3)  # (..., K, C, H, W)
    each = _logistic_each(x[..., None, :, :, :], mean, mix.log_scale, levels).sum(-3)  # (..., K, H, W)
    return torch.logsumexp(mix.logits.log_softmax(-3) + each, dim=-3).flatten(-2).sum(-1)


def mixture_logistic_mean(mix: Mixture) -> Tensor:
    """E[x], (..., C, H, W) in [-1, 1]: exact to half a level for the first channel; for the others, whose means lean on the component's means of
    the channels before, as far as these are not clipped."""
    found: list[Tensor] = []
    for c in range(mix.mean.shape[-3]):
        before = torch.stack(found, dim=-3) if found else mix.mean[..., :0, :, :]
        found.append(logistic_mean(_shift(mix, c, before), mix.log_scale[..., c, :, :]))
    return (mix.logits.softmax(-3)[..., None, :, :] * torch.stack(found, dim=-3)).sum(-4)


def mixture_logistic_sample(mix: Mixture, u: Tensor, levels: int = 256) -> Tensor:
    """x (..., C, H, W), one of the levels, from uniform u (..., 1 + C, H, W) in [0, 1): the component by u_0, then channel after channel by its quantile
    mean + s log(u / (1 - u)), rounded to the level whose bin it is in, on which the next channel leans."""
    last = mix.logits.shape[-3] - 1
    below = mix.logits.softmax(-3).cumsum(-3) <= u[..., :1, :, :]
    one = below.sum(-3, keepdim=True).clamp(max=last)[..., None, :, :]  # (..., 1, 1, H, W)
    chosen = Mixture(mix.logits, *(t.gather(-4, one.expand(*one.shape[:-3], *t.shape[-3:])) for t in mix[1:]))
    found = chosen.mean[..., :0, :, :]  # (..., 1, 0, H, W)
    for c in range(mix.mean.shape[-3]):
        x = _shift(chosen, c, found) + torch.exp(chosen.log_scale[..., c, :, :]) * torch.logit(u[..., 1 + c : 2 + c, :, :], eps=1e-7)
        level = discrete_levels(x, levels) * (2 / (levels - 1)) - 1
        found = torch.cat([found, level[..., None, :, :]], dim=-3)
    return found.squeeze(-4)


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


def continuous_bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """sum_d log C(l_d) + x_d log l_d + (1 - x_d) log(1 - l_d), l = sigmoid(logits), a density of x in [0, 1].

    log C(l) = log(2 atanh(1 - 2 l) / (1 - 2 l)), log 2 at l = 1/2 (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845, section 3). In logits n the
    density is exp(n x) n / (e^n - 1), so that each term is n (x - 1/2) - log(sinh(n / 2) / (n / 2)); near n = 0 the logarithm by its Taylor polynomial.
    """
    a = logits.abs() / 2
    far = a.clamp_min(NEAR / 2)
    large = far + torch.log(-torch.expm1(-2 * far)) - torch.log(2 * far)
    a2 = a.clamp_max(NEAR / 2) ** 2
    small = a2 * (1 / 6 - a2 * (1 / 180 - a2 * (1 / 2835 - a2 / 37800)))
    return (logits * (x - 0.5) - torch.where(a < NEAR / 2, small, large)).flatten(-3).sum(-1)


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x] = 1 / (1 - e^-n) - 1 / n of the continuous Bernoulli with logits n, elementwise; its Taylor polynomial near 0, where it is 1/2."""
    far, near = logits.abs().clamp_min(NEAR), logits.clamp(-NEAR, NEAR)
    large = torch.sign(logits) * (-1 / torch.expm1(-far) - 1 / far - 0.5)
    n2 = near**2
    small = near * (1 / 12 - n2 * (1 / 720 - n2 * (1 / 30240 - n2 / 1209600)))
    return 0.5 + torch.where(logits.abs() < NEAR, small, large)


def bits_per_dim(nats: Tensor, dims: int, per_dim: float = 0.0) -> Tensor:
    """-(nats / dims + per_dim) / log 2; per_dim turns a density into a probability of levels (log(2/255) for densities on [-1, 1])."""
    return -(nats / dims + per_dim) / math.log(2)
