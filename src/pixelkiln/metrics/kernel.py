"""Kernel distance: an unbiased distance of two sets of features that needs no Gaussian assumption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelkiln.core.rng import generator

from .checks import vectors

__all__ = ["Kernel", "KernelDistance", "kernel_distance", "mmd2", "polynomial", "rbf"]

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) -> (n, m)
BLOCK = 2048  # rows of a Gram matrix at a time


@dataclass(frozen=True)
class KernelDistance:
    """The estimate (it may be negative), its standard error, and the subsets that gave it."""

    value: float
    error: float
    num_subsets: int
    subset: int


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / d + 1)^3, (n, m): the kernel of KID (Binkowski et al., 2018, section 4); sees moments up to the third."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(sigma: float = 10.0) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), in (0, 1]: characteristic, so that MMD is 0 for equal distributions only.

    CMMD (Jayasumana et al., 2024, arXiv 2401.09603) is 1000 mmd2 with sigma = 10 and CLIP embeddings. ValueError unless sigma > 0.
    """
    if not sigma > 0:
        raise ValueError(f"the width of a kernel is positive, and sigma is {sigma}")


    def kernel(x: Tensor, y: Tensor) -> Tensor:
        square = x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)
        return torch.exp(square.clamp(min=0) / (-2 * sigma**2))

    return kernel


def _total(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """sum_ij k(x_i, y_j), in blocks of rows."""
    return torch.stack([kernel(part, y).sum() for part in torch.split(x, BLOCK)]).sum()


def mmd2(x: Tensor, y: Tensor, kernel: Kernel = polynomial) -> Tensor:
    """Unbiased squared maximum mean discrepancy of x (n, d) and y (m, d), a scalar that may be negative; n, m >= 2 (ValueError).

    MMD^2 = sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1) - 2 sum_ij k(x_i, y_j) / nm

    Gretton et al., 2012, eq. 3. Memory grows with n and m, not with their product.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a discrepancy needs at least 2 features on each side, and there are {n} and {m}")
    inner = []
    for z in (x, y):
        own = torch.stack([kernel(part, part).trace() for part in torch.split(z, BLOCK)]).sum()
        inner.append((_total(z, z, kernel) - own) / (len(z) * (len(z) - 1)))
    return inner[0] + inner[1] - 2 * _total(x, y, kernel) / (n * m)


def kernel_distance(
    *, real: Tensor, fake: Tensor, seed: int = 0, num_subsets: int = 50, subset: int = 1000, kernel: Kernel = polynomial
) -> KernelDistance:
    """Mean of MMD^2 over random subsets of real (N, d) and fake (M, d), in float64, from a generator of its own.

    A subset holds b = min(`subset`, min(N, M) / 2) features of each side. The error is the delete-d jackknife's, d = n - b with
    n = min(N, M): s sqrt(b / (n - b)) for the deviation s over the subsets (Shao and Wu, 1989), the sampling error of both sets
    and not merely of the choice of subsets; it is on the safe side when the distance is near 0. Needs 4 features a side (ValueError).
    """
    real, fake = (x.double() for x in vectors("a kernel distance", 4, real=real, fake=fake))
    n = min(len(real), len(fake))
    b = min(subset, n // 2)
    gen, found = generator(seed, "kernel distance"), []
    for _ in range(num_subsets):
        x = real[torch.randperm(len(real), generator=gen)[:b]]
        y = fake[torch.randperm(len(fake), generator=gen)[:b]]
        found.append(mmd2(x, y, kernel))
    values = torch.stack(found)
    return KernelDistance(float(values.mean()), float(values.std()) * (b / (n - b)) ** 0.5, num_subsets, b)
