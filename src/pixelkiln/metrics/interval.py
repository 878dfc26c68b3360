"""Confidence interval of any score of features, free of the score's bias to first order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelkiln.core.rng import permutation

__all__ = ["Interval", "bootstrap"]


@dataclass(frozen=True)
class Interval:
    """value: the score of all samples; corrected: that without its bias; low, high: the interval at `level`; error: one standard error."""

    value: float
    corrected: float
    low: float
    high: float
    error: float
    level: float
    num: int


def bootstrap(score: Callable[..., float], *features: Tensor, num: int = 100, seed: int = 0, level: float = 0.95) -> Interval:
    """Basic interval of `score(*features)` from `num` random halves of every set, drawn without replacement in complementary pairs.

    theta = score of all, theta_h = score of halves;   corrected = 2 theta - mean theta_h,   [2 theta - q_{1 - a/2}, 2 theta - q_{a/2}]

    with q the quantiles of theta_h and a = 1 - level. Half-samples (Shao and Wu, 1989; Politis and Romano, 1994): a score with variance
    v/n and bias b/n has, around theta, variance v/n and bias b/n again, so that both are right without rescaling. Resampling with
    replacement is not used: its repeated images make every distance larger and every neighborhood smaller, and a percentile
    interval counts the bias twice (for the Frechet distance of few images it misses the truth always). The interval is of the
    score of infinitely many samples; it may reach below 0, and is not clamped. A set that shall not vary (a reference) is bound into
    `score`; pairs belong into one tensor. ValueError for fewer than 4 rows, `num` under 2 or a level outside (0, 1).
    """
    if not features or min(len(x) for x in features) < 4:
        raise ValueError(f"an interval needs at least 4 samples a set, and there are {[len(x) for x in features]}")
    if num < 2 or not 0 < level < 1:
        raise ValueError(f"an interval needs num >= 2 and a level between 0 and 1, not {num} and {level}")
    found = []
    for i in range(num):
        halves = [permutation(len(x), seed, "bootstrap", i // 2, j).chunk(2)[i % 2] for j, x in enumerate(features)]
        found.append(score(*(x[half] for x, half in zip(features, halves))))
    value, scores = score(*features), torch.tensor(found, dtype=torch.float64)
    tail = (1 - level) / 2
    low, high = (float(2 * value - torch.quantile(scores, q)) for q in (1 - tail, tail))
    return Interval(value, 2 * value - float(scores.mean()), low, high, float(scores.std()), level, num)
