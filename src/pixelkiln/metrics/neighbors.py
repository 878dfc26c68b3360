"""Precision and recall, density and coverage: how much of each set of features lies in the other's neighborhoods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import vectors

__all__ = ["K", "Neighborhoods", "nearest", "neighborhood_scores"]

K = 5
BLOCK = 2**21  # squared distances in memory at a time: 16 MiB, which the cache may hold
ROUNDING = 1e-12  # of a matrix product in float64, relative to the squared lengths
SLACK = 1 + 1e-9  # a ball holds the neighbor that it is drawn through, whatever the order of the sums


@dataclass(frozen=True)
class Neighborhoods:
    """precision, recall and coverage in [0, 1]; density >= 0, 1 on average where both sets have the same distribution."""

    precision: float
    recall: float
    density: float
    coverage: float


def blocks(x: Tensor, y: Tensor, block: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the squared distances of x (n, d) to y (m, d): a slice of x and its (c, m) float64, with c m <= block (one row at least).

    |x - y|^2 = |x|^2 - 2 x . y + |y|^2, ten times as fast as differences, after both are centered and in float64: as accurate as
    differences in float32, and what drowns in rounding, as between equal vectors, is exactly 0.
    """
    center = y.double().mean(0)
    x, y = x.double() - center, y.double() - center
    xx, yy = x.square().sum(1, keepdim=True), y.square().sum(1)
    step = max(1, block // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        d = torch.addmm(yy[None], x[rows], y.T, alpha=-2).add_(xx[rows])
        yield rows, d.masked_fill_(d <= ROUNDING * (xx[rows] + yy.max()), 0)


def radii(x: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Distance of each x_i to its k-th nearest other member of x (n, d), n > k -> (n,) float64."""
    found = []
    for rows, d in blocks(x, x, block):
        here = torch.arange(len(d))
        d[here, rows.start + here] = torch.inf  # not itself
        found.append(d.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found).sqrt()


def nearest(queries: Tensor, pool: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) float64 and row (N,) in `pool` (M, d) of the nearest neighbor of each of `queries` (N, d); 0 for a copy."""
    found = [d.min(1) for _, d in blocks(queries, pool, block)]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def neighborhood_scores(*, real: Tensor, fake: Tensor, k: int = K, block: int = BLOCK) -> Neighborhoods:
    """Scores of fake (M, d) against real (N, d), with B(x_i) the closed ball around x_i through its k-th nearest neighbor in its own set.

    precision = share of fake in any B(real_i)        recall = share of real in any B(fake_j)    (Kynkaanniemi et al., 2019, eq. 1 and 2)
    density = sum_ij [fake_j in B(real_i)] / (k M)    coverage = share of B(real_i) that hold any fake    (Naeem et al., 2020, section 3)

    Balls are closed, so that repeated images, whose radius is 0, still hold each other. At most `block` distances are in memory at a
    time: N and M are limited by time only. Both sets need more than k members (ValueError); precision is about
    fidelity and falls with bad samples, recall is about variety and falls with missing modes.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"neighborhoods of k = {k} need more than {k} features on each side, and there are {len(real)} and {len(fake)}")
    real, fake = vectors("a neighborhood", k + 1, real=real, fake=fake)
    r_real, r_fake = (radii(x, k, block).square() * SLACK for x in (real, fake))
    balls = torch.zeros(len(fake), dtype=torch.int64)  # real balls that hold fake_j
    recalled, covered = 0, 0
    for rows, d in blocks(real, fake, block):  # (c, M)
        inside = d <= r_real[rows, None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((d <= r_fake).any(1).sum())
    n, m = len(real), len(fake)
    return Neighborhoods(float((balls > 0).sum()) / m, recalled / n, float(balls.sum()) / (k * m), covered / n)
