"""How far a reconstruction is from its image: means over all pixels, so that they do not depend on the resolution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .likelihoods import logistic_log_prob

__all__ = ["Distance", "feature_distance", "reconstruction"]

Distance = Literal["l1", "l2", "logistic"]


def reconstruction(kind: Distance, x: Tensor, mean: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """A scalar for images x and what is made of them, (B, C, H, W) each.

    l1: mean |x - y|. l2: mean (x - y)^2 / Var(x), the share of the batch's variance that is lost. logistic: -log p(x | y) of the 256 levels in
    nats per dimension, with one log-scale a channel (C, 1, 1).
    """
    match kind:
        case "l1":
            return F.l1_loss(mean, x)
        case "l2":
            return F.mse_loss(mean, x) / x.var(correction=0).clamp_min(1e-4)
        case "logistic":
            assert log_scale is not None
            return -logistic_log_prob(x, mean, log_scale).mean() / x[0].numel()


def feature_distance(f: list[Tensor], g: list[Tensor]) -> Tensor:
    """mean_l mean_hw |f_l / |f_l| - g_l / |g_l||^2, a scalar, over feature maps (B, C_l, h_l, w_l) of two batches of images, of length 1 at each
    position (Zhang et al. 2018, arXiv 1801.03924, eq. 1, all weights 1)."""
    each = [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in zip(f, g, strict=True)]
    return torch.stack(each).mean()
