"""Mixtures of Gaussians over vectors, and their maximum likelihood by expectation and maximization (Dempster, Laird, Rubin, Maximum Likelihood from
Incomplete Data via the EM Algorithm, 1977; Bishop, Pattern Recognition and Machine Learning, 2006, section 9.2.2).

    p(z) = sum_m w_m N(z; mu_m, C_m),      r_bm = w_m N(z_b; mu_m, C_m) / p(z_b)                                                  eq. 9.13
    w_m = N_m / N,   mu_m = sum_b r_bm z_b / N_m,   C_m = sum_b r_bm (z_b - mu_m)(z_b - mu_m)^T / N_m,   N_m = sum_b r_bm          eq. 9.24 to 9.26

A covariance is kept as what makes its Gaussian white: A (J, J), lower triangular, with A C A^T = I, or (J,), one over the deviations, where C is diagonal.
A floor is added to every variance, without which a component that has found one single vector has an infinite likelihood.
B vectors, M components, J dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

__all__ = ["Components", "Mixture", "expectation_maximization", "log_components", "maximize", "spread"]

AT_ONCE = 2**23  # numbers of vectors less means that are held at a time
LLOYD = 10  # rounds of k-means before EM


class Components(NamedTuple):
    """weights (M,), means (M, J), white (M, J, J) or (M, J)."""

    weights: Tensor
    means: Tensor
    white: Tensor


def log_components(z: Tensor, means: Tensor, white: Tensor) -> Tensor:
    """log N(z; mu_m, C_m), (B, M), for z (B, J)."""
    return torch.cat([_log_components(part, means, white) for part in torch.split(z, max(1, AT_ONCE // means.numel()))])


def _log_components(z: Tensor, means: Tensor, white: Tensor) -> Tensor:
    if white.ndim == 2:
        e = (z[:, None] - means) * white  # (B, M, J)
        log_det = white.log().sum(1)
    else:
        e = torch.einsum("bj,mkj->bmk", z, white) - torch.einsum("mj,mkj->mk", means, white)
        log_det = white.diagonal(dim1=1, dim2=2).log().sum(1)
    return log_det - 0.5 * (e.square().sum(2) + z.shape[1] * math.log(2 * math.pi))


def spread(z: Tensor, num: int, gen: torch.Generator) -> Tensor:
    """Responsibilities (B, num) of 0 and 1 to begin with: nearest centers, chosen far apart (Arthur and Vassilvitskii, k-means++, 2007), then moved by k-means."""
    centers = z[torch.randint(len(z), (1,), generator=gen)]
    for _ in range(num - 1):
        far = torch.cdist(z, centers).amin(1).square().cpu()
        chosen = torch.multinomial(far + 1e-300, 1, generator=gen) if len(far) < 2**24 else far.argmax()[None]  # as many as multinomial takes
        centers = torch.cat([centers, z[chosen.to(z.device)]])
    for _ in range(LLOYD):
        near = torch.cdist(z, centers).argmin(1)
        sums = torch.zeros_like(centers).index_add_(0, near, z)
        counts = torch.bincount(near, minlength=num)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
    return torch.nn.functional.one_hot(torch.cdist(z, centers).argmin(1), num).to(z)


def maximize(z: Tensor, r: Tensor, full: bool, floor: float) -> Components:
    """The components that fit vectors z (B, J) with responsibilities r (B, M) best (eq. 9.24 to 9.26), `floor` added to all variances."""
    n = r.sum(0) + 10 * torch.finfo(z.dtype).eps  # (M,)
    means = r.T @ z / n[:, None]
    if not full:
        variances = (torch.stack([r[:, m] @ (z - mean).square() for m, mean in enumerate(means)]) / n[:, None]) + floor
        return Components(n / n.sum(), means, variances.rsqrt())
    eye = torch.eye(z.shape[1]).to(z)
    centered = ((z - mean, r[:, m, None]) for m, mean in enumerate(means))
    covariances = torch.stack([(w * d).T @ d for d, w in centered]) / n[:, None, None] + floor * eye
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), eye.expand_as(covariances), upper=False)
    return Components(n / n.sum(), means, white)


def expectation_maximization(z: Tensor, r: Tensor, full: bool = True, floor: float = 1e-6, most: int = 100,
                             tolerance: float = 1e-3) -> tuple[Components, list[float]]:
    """EM of z (B, J) from responsibilities r (B, M), at most `most` rounds, until one gains less than `tolerance` nats a vector.

    Returns the components and the mean of log p(z) before each round; it never falls, but for what the floor takes.
    """
    found, seen = maximize(z, r, full, floor), list[float]()
    for _ in range(most):
        joint = log_components(z, found.means, found.white) + found.weights.log()
        total = torch.logsumexp(joint, dim=1)  # log p(z), (B,)
        seen.append(float(total.mean()))
        if len(seen) > 1 and abs(seen[-1] - seen[-2]) < tolerance:
            break
        found = maximize(z, (joint - total[:, None]).exp(), full, floor)
    return found, seen


@final
class Mixture(nn.Module):
    """Components that are weighed in several ways: row y of `weights` (rows, M) for the label y, the last row for none. Every row sums to 1."""

    weights: Tensor
    means: Tensor
    white: Tensor

    def __init__(self, rows: int, components: int, dims: int, full: bool) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((rows, components), 1 / components))
        self.register_buffer("means", torch.zeros(components, dims))
        self.register_buffer("white", torch.eye(dims).repeat(components, 1, 1) if full else torch.ones(components, dims))

    def take(self, weights: Tensor, means: Tensor, white: Tensor) -> None:
        """Become these."""
        for mine, other in ((self.weights, weights), (self.means, means), (self.white, white)):
            mine.copy_(other)

    def log_prob(self, z: Tensor, row: Tensor) -> Tensor:
        """log p(z) of the rows' own mixtures, (B,), for z (B, J) and row (B,) int64."""
        return torch.logsumexp(log_components(z, self.means, self.white) + self.weights[row].log(), dim=1)

    def forward(self, e: Tensor, k: Tensor) -> Tensor:
        """mu_k + A_k^-1 e, (B, J), for e (B, J) ~ N(0, I) and components k (B,)."""
        if self.white.ndim == 2:
            return self.means[k] + e / self.white[k]
        return self.means[k] + torch.linalg.solve_triangular(self.white[k], e[:, :, None], upper=False)[:, :, 0]
