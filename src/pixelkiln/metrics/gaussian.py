"""Frechet distance of two sets of features through their Gaussian statistics, streamed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import vectors

__all__ = ["Moments", "frechet_distance", "frechet_error"]


class Moments:
    """Count, mean and scatter of feature vectors, in constant memory: batches of any size, in any order.

    delta = mean_b - mean_a      mean = mean_a + delta n_b / n      M2 = M2_a + M2_b + delta delta^T n_a n_b / n      n = n_a + n_b

    The pairwise update of Chan, Golub and LeVeque, 1979, after Welford, 1962. Raw second moments (sum x x^T - n mu mu^T)
    cancel: with mean 10 and deviation 0.1 they are 5 % off in float32.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor, batch: int = 4096) -> Moments:
        """The moments of features (N, d)."""
        moments = cls(features.shape[1])
        for part in torch.split(features, batch):
            moments.update(part)
        return moments

    def update(self, features: Tensor) -> Moments:
        """Add features (B, d); finite values only (ValueError)."""
        x = features.detach().to("cpu", torch.float64)
        if not x.isfinite().all():
            raise ValueError("features are not finite: the extractor returned NaN or infinity")
        if len(x):
            self._add(len(x), x.mean(0), (centred := x - x.mean(0)).T @ centred)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the moments of other features (of another worker, say)."""
        if other.n:
            self._add(other.n, other.mean, other.scatter)
        return self

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total, delta = self.n + n, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance M2 / (n - 1), (d, d) float64; ValueError for fewer than two features."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 features, and there are {self.n}")
        return self.scatter / (self.n - 1)

    @property
    def error(self) -> Tensor:
        """Standard error of the mean, (d,): `Moments(1)` of one number an image (a PSNR, say) is its streamed average with error."""
        return (self.cov.diagonal() / self.n).sqrt()


def psd_sqrt(s: Tensor) -> Tensor:
    """Symmetric root of a covariance (d, d); what is rounding noise among its eigenvalues counts as exactly 0."""
    lam, q = torch.linalg.eigh((s + s.T) / 2)
    lam = torch.where(lam > lam[-1] * len(lam) * torch.finfo(lam.dtype).eps, lam, torch.zeros_like(lam))
    root: Tensor = (q * lam.sqrt()) @ q.T
    return root


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the two Gaussians, >= 0, in squared units of the features.

    d^2 = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2)        (Heusel et al., 2017, eq. 6)
        = |mu_a - mu_b|^2 + min_U |S_a^1/2 - S_b^1/2 U|_F^2        U orthogonal (Bhatia, Jain and Lim, 2019, Theorem 1)

    The second form, with U = W V^T from the singular vectors of S_b^1/2 S_a^1/2 = W D V^T, is a sum of squares: it cannot be negative,
    loses nothing to cancellation near 0, and is exact for covariances of any rank (fewer features than dimensions). The plug-in
    estimate is biased upwards by about 1/n: compare scores at equal n only. Needs two features on each side (ValueError).
    """
    root_a, root_b = psd_sqrt(a.cov), psd_sqrt(b.cov)
    w, _, vt = torch.linalg.svd(root_b @ root_a)
    return float((a.mean - b.mean).square().sum() + (root_a - root_b @ (w @ vt)).square().sum())


def frechet_error(*, real: Moments, fake: Tensor) -> float:
    """One standard error of `frechet_distance` from the choice of the fake (N, d) alone; the reference counts as known.

    The delta method: sd_x psi(x) / sqrt(N) with the influence of one sample, c = x - mu_f,

    psi(x) = 2 (mu_f - mu_r) . c + c^T (I - T) c - tr (I - T) S_f,   T = S_f^-1/2 (S_f^1/2 S_r S_f^1/2)^1/2 S_f^-1/2

    T is the transport map of the Gaussians, I - T the derivative of d^2 in S_f (Bhatia, Jain and Lim, 2019). It is of
    first order: small beside the bias where the distance is near its floor. Pseudo-inverse for fewer features than dimensions.
    """
    (x,) = vectors("an error", 2, fake=fake)
    own = Moments.of(x)
    lam, q = torch.linalg.eigh(own.cov)
    kept = lam > lam[-1] * len(lam) * torch.finfo(lam.dtype).eps
    inverse = (q * torch.where(kept, lam, torch.inf).rsqrt()) @ q.T
    root = psd_sqrt(own.cov)
    slope = torch.eye(len(lam), dtype=lam.dtype) - inverse @ psd_sqrt(root @ real.cov @ root) @ inverse  # I - T
    influence = []
    for part in torch.split(x, 4096):
        c = part.double() - own.mean
        influence.append(2 * c @ (own.mean - real.mean) + ((c @ slope) * c).sum(1))
    return float(torch.cat(influence).std()) / own.n**0.5
