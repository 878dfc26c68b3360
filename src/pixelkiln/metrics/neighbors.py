"""Precision and recall, density and coverage: how much of each set of features lies in the other's neighborhoods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["K", "Neighborhoods", "neighborhood_scores"]

K = 5


@dataclass(frozen=True)
class Neighborhoods:
    """precision, recall and coverage in [0, 1]; density >= 0, 1 on average where both sets have the same distribution."""

    precision: float
    recall: float
    density: float
    coverage: float


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (n, m), exactly 0 between equal vectors (the matrix-product form is not)."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int, chunk: int) -> Tensor:
    """Distance of each x_i to its k-th nearest other member of x (n, d) -> (n,)."""
    found = []
    for start in range(0, len(x), chunk):
        d = distances(x[start : start + chunk], x)  # (c, n)
        rows = torch.arange(len(d))
        d[rows, start + rows] = torch.inf  # not itself
        found.append(d.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found)


def neighborhood_scores(*, real: Tensor, fake: Tensor, k: int = K, chunk: int = 1024) -> Neighborhoods:
    """Scores of fake (M, d) against real (N, d), with B(x_i) the closed ball around x_i through its k-th nearest neighbor in its own set.

    precision = share of fake in any B(real_i)        recall = share of real in any B(fake_j)    (Kynkaanniemi et al., 2019, eq. 1 and 2)
    density = sum_ij [fake_j in B(real_i)] / (k M)    coverage = share of B(real_i) that hold any fake    (Naeem et al., 2020, section 3)

    Balls are closed, so that repeated images, whose radius is 0, still hold each other. Distances are made `chunk` rows at a time, in
    float32 or better. Both sets need more than k members (ValueError); precision is about fidelity and falls with bad samples,
    recall is about variety and falls with missing modes.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"neighborhoods of k = {k} need more than {k} features on each side, and there are {len(real)} and {len(fake)}")
    r_real, r_fake = radii(real, k, chunk), radii(fake, k, chunk)
    balls = torch.zeros(len(fake), dtype=torch.int64)  # real balls that hold fake_j
    recalled, covered = 0, 0
    for start in range(0, len(real), chunk):
        d = distances(real[start : start + chunk], fake)  # (c, M)
        inside = d <= r_real[start : start + chunk, None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((d <= r_fake).any(1).sum())
    n, m = len(real), len(fake)
    return Neighborhoods(float((balls > 0).sum()) / m, recalled / n, float(balls.sum()) / (k * m), covered / n)
