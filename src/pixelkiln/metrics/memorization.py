"""Is the model copying? Distances of samples to the training set, beside what unseen real images have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import vectors
from .neighbors import nearest, radii

__all__ = ["Closeness", "authenticity", "copying", "mann_whitney", "nearest_ratio"]

LEAST = 20  # samples that a cell of C_T needs beyond which its z-score counts (Meehan et al., 2020)


@dataclass(frozen=True)
class Closeness:
    """ratio: median distance to the training set, over that of unseen images (1: alike; 0: copies); closer: share of samples nearer than 95 % of
    the unseen (0.05: alike; 1: copies)."""

    ratio: float
    closer: float


def authenticity(*, train: Tensor, fake: Tensor) -> float:
    """Share of fake (M, d) that are not closer to their training image than its own nearest training neighbor is; 0 for copies.

    AuthPct = mean_j [ d(fake_j, t) > min_{t' != t} d(t, t') ],   t = training image nearest to fake_j     (Alaa et al., 2022, arXiv 2102.08921)

    Unseen real images score about a half: compare with them. Blurred, noisy or otherwise strange samples are "authentic". ValueError for fewer than two training images.
    """
    train, fake = vectors("authenticity", 1, train=train, fake=fake)
    if len(train) < 2:
        raise ValueError("authenticity needs at least 2 training images")
    distance, rows = nearest(fake, train)
    return float((distance > radii(train, 1)[rows]).double().mean())


def nearest_ratio(*, train: Tensor, test: Tensor, fake: Tensor) -> Closeness:
    """Nearest-neighbor distances to train: of fake (M, d), relative to those of unseen real images test (P, d).

    ratio = median_j d(fake_j, train) / median_i d(test_i, train)      closer = mean_j [ d(fake_j, train) < 5 % quantile of d(test_i, train) ]

    Both are needed: a model that copies one image in ten has the ratio 1. ratio is inf or NaN where the test images are copies themselves.
    """
    train, test, fake = vectors("a nearest-neighbor ratio", 1, train=train, test=test, fake=fake)
    of_test, of_fake = nearest(test, train)[0], nearest(fake, train)[0]
    close = (of_fake < torch.quantile(of_test, 0.05)) | (of_fake == 0)
    return Closeness(float(torch.quantile(of_fake, 0.5) / torch.quantile(of_test, 0.5)), float(close.double().mean()))


def mann_whitney(x: Tensor, y: Tensor) -> float:
    """z-score of the Mann-Whitney U statistic: negative where x (m,) tends to be smaller than y (n,); N(0, 1) if they are alike.

    U = sum_ij [x_i > y_j] + [x_i = y_j] / 2,   z = (U - mn/2) / s,   s^2 = mn/12 (m + n + 1 - sum_t (t^3 - t) / ((m + n)(m + n - 1)))

    over groups of t equal values (Mann and Whitney, 1947; the correction for ties of Lehmann, 1975). 0 if all values are equal.
    """
    if not len(x) or not len(y):
        raise ValueError(f"a comparison of ranks needs values on both sides, and there are {len(x)} and {len(y)}")
    x, y = x.double(), y.double().sort().values
    m, n = len(x), len(y)
    u = float(torch.searchsorted(y, x).sum() + torch.searchsorted(y, x, right=True).sum()) / 2
    t = torch.cat([x, y]).unique(return_counts=True)[1].double()
    variance = m * n / 12 * (m + n + 1 - float((t**3 - t).sum()) / ((m + n) * (m + n - 1)))
    return (u - m * n / 2) / variance**0.5 if variance > 0 else 0.0


def _cells(train: Tensor, others: tuple[Tensor, ...], num_cells: int, seed: int) -> list[Tensor]:
    """k-means on train; the cell of every row of train and of the others."""
    if num_cells == 1:
        return [torch.zeros(len(x), dtype=torch.int64) for x in (train, *others)]
    from sklearn.cluster import KMeans  # slow to import

    found = KMeans(num_cells, n_init=1, random_state=seed).fit(train.double().numpy())
    return [torch.from_numpy(found.predict(x.double().numpy())).long() for x in (train, *others)]


def copying(*, train: Tensor, test: Tensor, fake: Tensor, num_cells: int = 10, seed: int = 0) -> float:
    """C_T, the z-score of data-copying: far below 0 copies, around 0 is what unseen images have, far above 0 strays from the training set.

    C_T = sum_c P(c) z_c / sum_c P(c),   z_c = Mann-Whitney z of d(fake in c, train in c) against d(test in c, train in c)

    over k-means cells c of the training set that hold more than 20 fake, with P the share of test (Meehan et al., 2020, arXiv
    2004.05675; with the correction for ties, without one for continuity). Copies of a few training images only can hide in one cell's mean; a model of
    blurred samples hides copies too. ValueError if no cell holds enough, or for more cells than training images.
    """
    train, test, fake = vectors("C_T", 1, train=train, test=test, fake=fake)
    if not 1 <= num_cells <= len(train):
        raise ValueError(f"C_T needs between 1 cell and as many as training images, {len(train)}, and num_cells is {num_cells}")
    of_train, of_test, of_fake = _cells(train, (test, fake), num_cells, seed)
    total, weight = 0.0, 0.0
    for cell in range(num_cells):
        here, unseen, made = train[of_train == cell], test[of_test == cell], fake[of_fake == cell]
        if len(here) and len(unseen) and len(made) > LEAST:
            total += len(unseen) * mann_whitney(nearest(made, here)[0], nearest(unseen, here)[0])
            weight += len(unseen)
    if not weight:
        raise ValueError(f"none of {num_cells} cells holds more than {LEAST} samples and a test image: use fewer cells or more samples")
    return total / weight
