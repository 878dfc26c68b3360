"""Vendi score: the effective number of different samples, with no reference at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import vectors
from .kernel import Kernel

__all__ = ["Vendi", "vendi_score"]


def _effective(matrix: Tensor) -> float:
    """exp of the entropy of the eigenvalues of a symmetric matrix of trace 1."""
    lam = torch.linalg.eigvalsh(matrix).clamp(min=0)
    return float((-torch.special.xlogy(lam, lam).sum()).exp())


class Vendi:
    """Second moment of normalized features, in constant memory: batches of any size, workers merged in any order."""

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.total = torch.zeros(dim, dim, dtype=torch.float64)  # sum of u u^T, u = x / |x|

    def update(self, features: Tensor) -> Vendi:
        """Add features (B, d), finite and none of them 0 (ValueError)."""
        u = _directions(features)
        self.n, self.total = self.n + len(u), self.total + u.T @ u
        return self

    def merge(self, other: Vendi) -> Vendi:
        """Add other features (of another worker, say)."""
        self.n, self.total = self.n + other.n, self.total + other.total
        return self

    @property
    def score(self) -> float:
        """`vendi_score` of all features so far; ValueError without any."""
        if not self.n:
            raise ValueError("a Vendi score needs at least one feature")
        return _effective(self.total / self.n)


def _directions(features: Tensor) -> Tensor:
    """Features (N, d) of length 1, float64."""
    (x,) = vectors("a Vendi score", 0, features=features)
    if len(x) and not x.norm(dim=1).min() > 0:
        raise ValueError("a Vendi score compares directions, and a feature is 0")
    return F.normalize(x.double(), dim=1, eps=0)


def vendi_score(features: Tensor, kernel: Kernel | None = None) -> float:
    """Effective number of different samples among features (N, d), in [1, N]: 1 if all are equal, N if all are orthogonal.

    VS = exp(-sum_i lambda_i log lambda_i),   lambda the eigenvalues of K / N, K_ii = 1             (Friedman and Dieng, 2022, arXiv 2210.02410)

    K is the cosine similarity unless a kernel with k(x, x) = 1 is given (`rbf(sigma)`). The cosine kernel has rank d: for d < N the same
    eigenvalues come from the (d, d) second moment, and the score cannot exceed d. Features that share a large mean look alike: subtract
    the reference's first. No reference: noise is diverse. ValueError for other kernels, features that are 0, or none.
    """
    (x,) = vectors("a Vendi score", 1, features=features)
    if kernel is None:
        u = _directions(x)
        return _effective((u.T @ u if u.shape[1] < len(u) else u @ u.T) / len(u))
    gram = kernel(x.double(), x.double())
    if (gram.diagonal() - 1).abs().max() > 1e-9:
        raise ValueError("a Vendi score needs a kernel with k(x, x) = 1")
    return _effective(gram / len(x))
