"""Adversarial losses as pure functions of the discriminator's logits (never of probabilities: no sigmoid, no log, no epsilon)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["non_saturating_d", "non_saturating_g"]


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's cross-entropy, a scalar >= 0 in nats: the mean over the batch.

    -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) = softplus(-D(x)) + softplus(D(G(z))). Logits of any shapes.
    Goodfellow et al. 2014, arXiv 1406.2661, eq. 1.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """Generator's non-saturating loss, a scalar >= 0 in nats: the mean over the batch.

    -log sigmoid(D(G(z))) = softplus(-D(G(z))), whose slope in the logit tends to -1 where the discriminator rejects the image,
    while that of log(1 - sigmoid(D(G(z)))) dies. Logits of any shape. Goodfellow et al. 2014, arXiv 1406.2661, section 3.
    """
    return F.softplus(-fake.float()).mean()
