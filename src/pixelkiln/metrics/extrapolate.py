"""How a score depends on the number of samples, and what it would be with infinitely many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelkiln.core.rng import permutation

from .checks import vectors
from .gaussian import Moments, frechet_distance, frechet_error
from .result import Estimate

__all__ = ["Curve", "Line", "frechet_infinity", "n_curve"]

Score = Callable[..., float]  # of feature tensors (N, d)


@dataclass(frozen=True)
class Line:
    """value + slope / N: the score of infinitely many samples, its error as a least-squares intercept, and the bias times N."""

    value: float
    error: float
    slope: float


@dataclass(frozen=True)
class Curve:
    """Mean score at each number of samples, largest first."""

    sizes: tuple[int, ...]
    values: tuple[float, ...]

    def line(self) -> Line:
        """Least squares of the values on 1/N, with the intercept's usual error (what the points scatter about the line). 3 sizes at least."""
        if len(self.sizes) < 3:
            raise ValueError(f"a line with an error needs at least 3 sizes, and there are {len(self.sizes)}")
        x, y = 1 / torch.tensor(self.sizes, dtype=torch.float64), torch.tensor(self.values, dtype=torch.float64)
        u = x - x.mean()
        slope = u @ y / (u @ u)
        value = y.mean() - slope * x.mean()
        variance = (y - value - slope * x).square().sum() / (len(x) - 2)
        error = (variance * (1 / len(x) + x.mean().square() / (u @ u))).sqrt()
        return Line(float(value), float(error), float(slope))


def n_curve(score: Score, *features: Tensor, num_points: int = 5, seed: int = 0) -> Curve:
    """Mean of `score(*parts)` over g disjoint random parts of N/g rows of each of `features`, for g = 1..num_points.

    The sizes lie evenly in 1/N, and every point uses all samples, so that the points share their sampling error instead of adding it.
    What shall not shrink with N (a fixed reference) is bound into `score`. `sizes` are those of the smallest set. ValueError if there
    are fewer samples than 2 a part.
    """
    if min(len(x) for x in features) < 2 * num_points:
        raise ValueError(f"{num_points} sizes need at least {2 * num_points} samples a set, and there are {min(len(x) for x in features)}")
    orders = [permutation(len(x), seed, "n-curve", i) for i, x in enumerate(features)]
    sizes, values = [], []
    for g in range(1, num_points + 1):
        parts = [[x[rows] for rows in order[: len(x) // g * g].chunk(g)] for x, order in zip(features, orders)]
        found = [score(*part) for part in zip(*parts, strict=True)]
        sizes.append(min(len(x) for x in features) // g)
        values.append(sum(found) / g)
    return Curve(tuple(sizes), tuple(values))


def frechet_infinity(*, real: Moments, fake: Tensor, num_points: int = 5, seed: int = 0) -> Estimate:
    """Frechet distance to a fixed reference extrapolated to infinitely many samples: the intercept of `n_curve`. It may be negative.

    FD_N = FD_inf + b / N,   b depends on the model        (Chong and Forsyth, 2020, arXiv 1911.07023, where it is FID_inf)

    The published form draws 15 overlapping random subsets and states no error; here the parts are disjoint, and the error joins what
    the points scatter about the line with `frechet_error`. The line holds where the smallest part, N / num_points, is several times d;
    below that the estimate is too high. The reference's own bias stays: give it all images.
    """
    (x,) = vectors("an extrapolation", 2 * num_points, fake=fake)
    line = n_curve(lambda part: frechet_distance(real, Moments.of(part)), x, num_points=num_points, seed=seed).line()
    return Estimate(line.value, (line.error**2 + frechet_error(real=real, fake=x) ** 2) ** 0.5, num_points)
