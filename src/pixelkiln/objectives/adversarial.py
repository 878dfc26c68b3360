"""Adversarial losses as pure functions of the discriminator's logits (never of probabilities: no sigmoid, no log, no epsilon)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["adaptive_weight", "hinge_d", "hinge_g", "non_saturating_d", "non_saturating_g"]

MOST = 1e4  # of an adaptive weight


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


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))), a scalar >= 0; halved, so that it starts at 1 (Lim and Ye 2017, arXiv 1705.02894, eq. 9)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def hinge_g(fake: Tensor) -> Tensor:
    """-mean D(G(z)), what goes with `hinge_d`."""
    return -fake.float().mean()


def adaptive_weight(rec: Tensor, adversarial: Tensor, last: Tensor, delta: float = 1e-4) -> Tensor:
    """|grad rec| / (|grad adversarial| + delta), a scalar, detached: gradients of both losses at the decoder's last weights, so that the adversarial
    one pulls as hard as the reconstruction (Esser et al. 2021, arXiv 2012.09841, eq. 7)."""
    of_rec, of_adversarial = (torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (rec, adversarial))
    return (of_rec / (of_adversarial + delta)).clamp(0, MOST).detach()
