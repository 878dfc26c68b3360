"""Adversarial objectives as pure functions of the discriminator's logits (never of probabilities: no sigmoid, no log, no epsilon).

Every one is a pair: L_D(real, fake, smoothing), L_G(real, fake), means over the batch to be minimised, in fp32 at least. real = D(x), fake = D(G(z)), of
equal shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OBJECTIVES", "Name", "Objective", "adaptive_weight", "critic_g", "hinge_d", "non_saturating_d", "non_saturating_g", "wide"]

Name = Literal["minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"]

MOST = 1e4  # of an adaptive weight


def wide(x: Tensor) -> Tensor:
    """The same in fp32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Objective:
    """One game: L_D = d(real, fake, smoothing) and L_G = g(real, fake). `smooths`: it has a target for real images, which smoothing lowers. `paired`:
    L_G looks at D(x), too. `false`: what L_D says of generated images alone, for games with several kinds of them; None where L_D is no such sum, or
    where it is linear, so that more generated images than real ones would let D fall without end."""

    d: Callable[..., Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    smooths: bool = False
    paired: bool = False
    false: Callable[[Tensor], Tensor] | None = None


def non_saturating_d(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """Discriminator's cross-entropy, a scalar >= 0 in nats: the mean over the batch.

    -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) = softplus(-D(x)) + softplus(D(G(z))). Logits of any shapes.
    Goodfellow et al. 2014, arXiv 1406.2661, eq. 1. smoothing s: the target of real images is 1 - s, that of generated ones stays 0
    (one-sided: Salimans et al. 2016, arXiv 1606.03498, section 3.4).
    """
    real, fake = wide(real), wide(fake)
    return (1 - smoothing) * F.softplus(-real).mean() + smoothing * F.softplus(real).mean() + minimax_false(fake)


def non_saturating_g(fake: Tensor) -> Tensor:
    """Generator's non-saturating loss, a scalar >= 0 in nats: the mean over the batch.

    -log sigmoid(D(G(z))) = softplus(-D(G(z))), whose slope in the logit tends to -1 where the discriminator rejects the image,
    while that of log(1 - sigmoid(D(G(z)))) dies. Logits of any shape. Goodfellow et al. 2014, arXiv 1406.2661, section 3.
    """
    return F.softplus(-wide(fake)).mean()


def minimax_g(fake: Tensor) -> Tensor:
    """log(1 - sigmoid(D(G(z)))) = -softplus(D(G(z))), a scalar <= 0 in nats, whose slope dies where D is sure. Goodfellow et al. 2014, eq. 1."""
    return -minimax_false(fake)


def minimax_false(fake: Tensor) -> Tensor:
    """-log(1 - sigmoid(D(G(z)))) = softplus(D(G(z))), the cross-entropy's second term."""
    return F.softplus(wide(fake)).mean()


def least_squares_d(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """((D(x) - 1)^2 + D(G(z))^2) / 2, the target 1 lowered by smoothing. Mao et al. 2017, arXiv 1611.04076, eq. 9 (a = 0, b = c = 1)."""
    return 0.5 * (wide(real) - (1 - smoothing)).square().mean() + least_squares_false(fake)


def least_squares_false(fake: Tensor) -> Tensor:
    """D(G(z))^2 / 2, its second term."""
    return 0.5 * wide(fake).square().mean()


def least_squares_g(fake: Tensor) -> Tensor:
    """(D(G(z)) - 1)^2 / 2, likewise."""
    return 0.5 * (wide(fake) - 1).square().mean()


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))). Lim and Ye 2017, arXiv 1705.02894; Miyato et al. 2018, arXiv 1802.05957, eq. 16."""
    return F.relu(1 - wide(real)).mean() + hinge_false(fake)


def hinge_false(fake: Tensor) -> Tensor:
    """max(0, 1 + D(G(z))), its second term."""
    return F.relu(1 + wide(fake)).mean()


def critic_d(real: Tensor, fake: Tensor) -> Tensor:
    """D(G(z)) - D(x): minus the estimate of W1 where D is 1-Lipschitz. Arjovsky et al. 2017, arXiv 1701.07875, eq. 2."""
    return wide(fake).mean() - wide(real).mean()


def critic_g(fake: Tensor) -> Tensor:
    """-D(G(z)): Arjovsky et al. 2017, eq. 3; with the hinge, too (Miyato et al. 2018, eq. 17)."""
    return -wide(fake).mean()


def relativistic(above: Tensor, below: Tensor) -> Tensor:
    """softplus(-(above - below)) of pairs of answers. Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2025, arXiv 2501.05441, eq. 2."""
    return F.softplus(wide(below) - wide(above)).mean()


OBJECTIVES: Mapping[str, Objective] = {
    "minimax": Objective(non_saturating_d, lambda real, fake: minimax_g(fake), smooths=True, false=minimax_false),
    "non-saturating": Objective(non_saturating_d, lambda real, fake: non_saturating_g(fake), smooths=True, false=minimax_false),
    "least-squares": Objective(least_squares_d, lambda real, fake: least_squares_g(fake), smooths=True, false=least_squares_false),
    "hinge": Objective(lambda real, fake, smoothing=0.0: hinge_d(real, fake), lambda real, fake: critic_g(fake), false=hinge_false),
    "wasserstein": Objective(lambda real, fake, smoothing=0.0: critic_d(real, fake), lambda real, fake: critic_g(fake)),
    "relativistic": Objective(lambda real, fake, smoothing=0.0: relativistic(real, fake), lambda real, fake: relativistic(fake, real), paired=True),
}


def adaptive_weight(rec: Tensor, adversarial: Tensor, last: Tensor, delta: float = 1e-4) -> Tensor:
    """|grad rec| / (|grad adversarial| + delta), a scalar, detached: gradients of both losses at the decoder's last weights, so that the adversarial
    one pulls as hard as the reconstruction (Esser et al. 2021, arXiv 2012.09841, eq. 7)."""
    of_rec, of_adversarial = (torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (rec, adversarial))
    return (of_rec / (of_adversarial + delta)).clamp(0, MOST).detach()
