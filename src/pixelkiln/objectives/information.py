"""A bound on the mutual information of a code and the image that was made with it, in nats (Chen et al. 2016, arXiv 1606.03657).

    L_I = E_{c ~ P, x ~ G(z, c)}[log Q(c | x)] + H(c) <= I(c; G(z, c))                                                eq. 5

with equality where Q is the posterior. One bound for each code, of independent codes; means over the batch.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .likelihoods import soft_floor

__all__ = ["category_information", "style_information"]

SHARPEST = -4.0  # log-deviation that a learned Q does not fall below: 0.018 of a style, whose own deviation is 0.58 or 1


def category_information(logits: Tensor, category: Tensor) -> Tensor:
    """E[log Q(c | x)] + log K of a uniform category: logits (n, K), category (n,) -> a scalar <= log K."""
    return math.log(logits.shape[1]) - F.cross_entropy(logits.float(), category)


def style_information(mean: Tensor, log_scale: Tensor | float, styles: Tensor, entropy: float) -> Tensor:
    """The sum over c styles of E[log N(s; mean, scale^2)] + H(s): mean, log_scale, styles (n, c) -> a scalar, not bounded above.

    A tensor log_scale is a learned one, and kept above -4 smoothly; a number is fixed. entropy: H(s) of one style.
    """
    log_scale = soft_floor(log_scale.float(), SHARPEST) if isinstance(log_scale, Tensor) else mean.new_full((), log_scale)
    each = -0.5 * ((styles - mean) * (-log_scale).exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)  # (n, c)
    return (each + entropy).sum(1).mean()
