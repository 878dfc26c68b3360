"""Kernel distance: an unbiased distance of two sets of features that needs no Gaussian assumption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pixelkiln.core.rng import generator

__all__ = ["KernelDistance", "kernel_distance", "polynomial_mmd2"]


@dataclass(frozen=True)
class KernelDistance:
    """The estimate (it may be negative), its standard error, and the subsets that gave it."""

    value: float
    error: float
    num_subsets: int
    subset: int


def gram(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / d + 1)^3, (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def polynomial_mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of x (n, d) and y (m, d), a scalar that may be negative; n, m >= 2.

    MMD^2 = sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1) - 2 sum_ij k(x_i, y_j) / nm,   k = (x . y / d + 1)^3

    Gretton et al., 2012, eq. 3; the kernel is that of KID (Binkowski et al., 2018, section 4).
    """
    n, m = len(x), len(y)
    kxx, kyy, kxy = gram(x, x), gram(y, y), gram(x, y)
    return (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1)) - 2 * kxy.mean()


def kernel_distance(*, real: Tensor, fake: Tensor, seed: int = 0, num_subsets: int = 50, subset: int = 1000) -> KernelDistance:
    """Mean of MMD^2 over random subsets of real (N, d) and fake (M, d), in float64, from a generator of its own.

    A subset holds b = min(`subset`, min(N, M) / 2) features of each side. The error is the delete-d jackknife's, d = n - b with
    n = min(N, M): s sqrt(b / (n - b)) for the deviation s over the subsets (Shao and Wu, 1989), the sampling error of both sets
    and not merely of the choice of subsets; it is on the safe side when the distance is near 0. Needs 4 features a side (ValueError).
    """
    n = min(len(real), len(fake))
    b = min(subset, n // 2)
    if b < 2:
        raise ValueError(f"a kernel distance needs at least 4 features on each side, and there are {len(real)} and {len(fake)}")
    real, fake = real.double(), fake.double()
    gen, found = generator(seed, "kernel distance"), []
    for _ in range(num_subsets):
        x = real[torch.randperm(len(real), generator=gen)[:b]]
        y = fake[torch.randperm(len(fake), generator=gen)[:b]]
        found.append(polynomial_mmd2(x, y))
    values = torch.stack(found)
    return KernelDistance(float(values.mean()), float(values.std()) * (b / (n - b)) ** 0.5, num_subsets, b)
