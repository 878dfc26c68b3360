"""Vectors of mean 0 and covariance I, whatever those are that come in."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Whitened"]

DECAY = 0.99  # of the moving averages
RIDGE = 1e-5  # of the mean variance, added to all
LEAST = 1e-8  # and this, for vectors that are all alike


@final
class Whitened(nn.Module):
    """y (n, d) -> L^-1 (y - m), L L^T = cov(y) + RIDGE tr(cov(y)) / d I: whitening by Cholesky's factor, which moves continuously with the covariance
    (Siarohin, Sangineto, Sebe 2019, arXiv 1806.00420, section 3.1).

    In training m and cov are those of the batch, and gradients go through them, so that nothing can run away from being divided; otherwise, and where
    the loop holds the net's statistics still (`track_running_stats`), those of moving averages, which begin at 0 and are divided by what they lack.
    Before the first step nothing is done.
    """

    mean: Tensor
    cov: Tensor
    age: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.track_running_stats = True
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("cov", torch.zeros(dim, dim))
        self.register_buffer("age", torch.zeros(()))  # 1 - DECAY^t

    def forward(self, y: Tensor) -> Tensor:
        """Of the same shape."""
        eye = torch.eye(y.shape[1], device=y.device, dtype=y.dtype)
        if self.training and self.track_running_stats:
            mean = y.mean(0)
            cov = (y - mean).T @ (y - mean) / len(y)
            self._keep(mean.detach(), cov.detach())
        else:
            age = self.age.clamp_min(1 - DECAY)
            mean = self.mean / age
            cov = torch.where(self.age > 0, self.cov / age, eye)
        ridge = RIDGE * cov.trace() / len(mean) + LEAST
        out: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(cov + ridge * eye), (y - mean).T, upper=False).T
        return out

    @torch.no_grad()
    def _keep(self, mean: Tensor, cov: Tensor) -> None:
        """A step of the averages. That of covariances has no negative eigenvalue, as one of squares less the squared mean may have by rounding."""
        for kept, new in ((self.mean, mean), (self.cov, cov), (self.age, torch.ones_like(self.age))):
            kept.lerp_(new, 1 - DECAY)
