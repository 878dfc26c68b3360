"""Disentanglement: whether each known factor of the images is held by one unit of the code, and each unit holds one factor.

Codes are (N, J), one row an image. Factors are tensors (N,) by name: whole numbers are categories without an order (a shape, a color),
floating-point numbers are quantities (a position, a size). All three scores are functions of codes and factors alone: nothing is generated.
A factor that is held perfectly, but by two units together (an angle as sine and cosine), scores like one that is smeared out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import vectors

__all__ = ["BINS", "DCI", "Gaps", "dci", "mig", "mutual_information", "sap"]

BINS = 20  # of equal width, as Locatello et al. 2019 have it
TREES, LEAF = 20, 5  # of a forest; images in a leaf at least
PER_VALUE = 10  # images for each category at least, on average
INACTIVE = 1e-12  # variance of a unit below which it holds nothing
Factors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Gaps:
    """A mean over the factors, and the value of each factor."""

    value: float
    factors: Mapping[str, float]


@dataclass(frozen=True)
class DCI:
    """disentanglement: does a unit hold one factor; completeness: is a factor held by one unit; informativeness: can it be read at all, all in
    [0, 1]; importance (J, F): how much the forest of a factor uses each unit, columns of sum 1."""

    disentanglement: float
    completeness: Gaps
    informativeness: Gaps
    importance: Tensor


def _categorical(factor: Tensor) -> bool:
    return not factor.is_floating_point()


def _checked(what: str, codes: Tensor, factors: Factors) -> tuple[Tensor, dict[str, Tensor]]:
    """Codes and factors in float64, categories as int64 0..K-1. Errors: `ValueError` that names what cannot be scored."""
    (codes,) = vectors(what, 2, codes=codes)
    if not factors:
        raise ValueError(f"{what} needs at least one factor")
    found = {}
    for name, factor in factors.items():
        if factor.shape != (len(codes),):
            raise ValueError(f"{what} needs one value of {name} a code, and there are {tuple(factor.shape)} for {len(codes)} codes")
        factor = factor.detach().cpu()
        if not factor.isfinite().all():
            raise ValueError(f"{what}: {name} is not finite")
        if _categorical(factor):
            factor = factor.unique(return_inverse=True)[1]
            if len(codes) < PER_VALUE * (num := int(factor.max()) + 1):
                raise ValueError(f"{what} needs {PER_VALUE} images for each of the {num} values of {name}, and there are {len(codes)} images")
        if factor.min() == factor.max():
            raise ValueError(f"{what}: {name} is the same in all images, and says nothing")
        found[name] = factor if _categorical(factor) else factor.double()
    return codes.double(), found


def _gaps(scores: Tensor) -> Tensor:
    """The best less the second best of each column of (J, F), (F,); the second best of one unit is 0."""
    best = torch.cat([scores, scores.new_zeros(1, scores.shape[1])]).sort(dim=0, descending=True).values
    return best[0] - best[1]


def _named(values: Tensor, factors: Factors) -> Gaps:
    """Values (F,) by name, and their mean."""
    return Gaps(float(values.mean()), dict(zip(factors, values.tolist(), strict=True)))


def _binned(x: Tensor, num: int) -> Tensor:
    """Quantities (N,) to 0..num-1: bins of equal width between the smallest and the largest."""
    low, high = x.min(), x.max()
    return torch.zeros_like(x, dtype=torch.int64) if low == high else ((x - low) / (high - low) * num).long().clamp(max=num - 1)


def _entropy(counts: Tensor) -> Tensor:
    """Of counts, in nats."""
    p = counts[counts > 0].double() / counts.sum()
    return -(p * p.log()).sum()


def mutual_information(a: Tensor, b: Tensor) -> float:
    """I(a; b) = H(a) + H(b) - H(a, b) in nats, for categories int64 (N,) from 0, of their empirical distribution: too high by about
    (A - 1)(B - 1) / 2N where a and b are independent."""
    pair = a * (int(b.max()) + 1) + b
    return max(0.0, float(_entropy(a.bincount()) + _entropy(b.bincount()) - _entropy(pair.bincount())))


def mig(codes: Tensor, factors: Factors, bins: int = BINS) -> Gaps:
    """Mutual information gap, in [0, 1], higher is better: for each factor v, 1/H(v) times

        I(z_j; v) - max_{i != j} I(z_i; v),   z_j the unit that knows most of v,

    and the mean over factors (Chen et al. 2018, arXiv 1802.04942, section 4). The information is that of the codes as they are, cut into
    `bins` bins of equal width (as Locatello et al. 2019, arXiv 1811.12359), not the paper's estimate over q(z|x), which asks for more than a code;
    quantities are cut likewise. Blind to a factor beside another that it follows from (each unit knows both), to how much a unit knows
    besides v, and to what lies between bins. Errors: `ValueError` as all here.
    """
    codes, factors = _checked("MIG", codes, factors)
    units = [_binned(z, bins) for z in codes.unbind(1)]
    values = [v if _categorical(v) else _binned(v, bins) for v in factors.values()]
    known = torch.tensor([[mutual_information(z, v) for v in values] for z in units], dtype=torch.float64)  # (J, F)
    return _named(_gaps(known / torch.stack([_entropy(v.bincount()) for v in values])), factors)


def _thresholds(codes: Tensor, labels: Tensor) -> Tensor:
    """Best balanced accuracy (J,) of K intervals at most of each unit, each with a class, for codes (N, J) and labels (N,) in 0..K-1.

    Exact, by dynamic programming over the sorted codes: state (class of the interval that we are in, intervals so far); a new one begins only
    between different values.
    """
    num, units = int(labels.max()) + 1, torch.arange(codes.shape[1])
    order = codes.argsort(dim=0)  # (N, J)
    z, y = codes.gather(0, order), labels[order]
    gain = 1 / (num * labels.bincount().double())[y]  # (N, J)
    begins = torch.cat([torch.zeros_like(z[:1]), z[1:] - z[:-1]]) > 0
    score = torch.full((len(units), num, num), -torch.inf, dtype=torch.float64)  # (J, class, intervals - 1)
    score[:, :, 0] = 0
    for label, more, new in zip(y, gain, begins, strict=True):
        other = score.amax(dim=1, keepdim=True)[:, :, :-1]  # whatever the class before
        moved = torch.cat([score[:, :, :1], torch.maximum(score[:, :, 1:], other)], dim=2)
        score = torch.where(new[:, None, None], moved, score)
        score[units, label] += more[:, None]
    return score.amax(dim=(1, 2))


def sap(codes: Tensor, factors: Factors) -> Gaps:
    """Separated attribute predictability, in [0, 1], higher is better: how much better the best single unit predicts a factor than the second best, the
    mean over factors (Kumar et al. 2018, arXiv 1711.00848, section 3).

    A unit's score is cov^2 / (var var), the R^2 of a line, for a quantity; for K categories the balanced accuracy of K - 1 thresholds, the
    best ones for these codes. An unrelated unit reaches about 1/K, so that a gap over categories is at most 1 - 1/K. A unit that does not vary
    scores 0. Blind to relations to a quantity that are not monotone, and to what a unit holds besides.
    """
    codes, factors = _checked("SAP", codes, factors)
    active = codes.var(dim=0) > INACTIVE
    centered = codes - codes.mean(0)
    columns = []
    for v in factors.values():
        if _categorical(v):
            found = _thresholds(codes, v)
        else:
            d = v - v.mean()
            found = (d @ centered).square() / (centered.square().sum(0) * d.square().sum()).clamp_min(1e-300)
        columns.append(torch.where(active, found, 0.0))
    return _named(_gaps(torch.stack(columns, dim=1)), factors)


def _unmixed(shares: Tensor) -> Tensor:
    """1 - H(p) / log n of each row p of shares (m, n) that need not sum to 1; 0 for a row of zeros."""
    total = shares.sum(1)
    p = shares / total.clamp_min(1e-300)[:, None]
    return torch.where(total > 0, 1 + torch.special.xlogy(p, p).sum(1) / math.log(shares.shape[1]), 0.0).clamp(0, 1)


def _forest(codes: Tensor, factor: Tensor, seed: int) -> tuple[Tensor, float]:
    """Importances (J,) and what the forest knows of the second half: fitted on every other image."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor  # slow to import

    x, y = codes.numpy(), factor.numpy()
    kind: Any = RandomForestClassifier if _categorical(factor) else RandomForestRegressor
    model = kind(TREES, min_samples_leaf=LEAF, max_features=None, random_state=seed % 2**32, n_jobs=1).fit(x[::2], y[::2])
    said, true = torch.from_numpy(model.predict(x[1::2])), factor[1::2]
    if _categorical(factor):
        wrong, guess = (said != true).double().mean(), (factor[::2].bincount().argmax() != true).double().mean()
    else:
        wrong, guess = (said - true).square().mean(), (factor[::2].mean() - true).square().mean()
    return torch.from_numpy(model.feature_importances_), max(0.0, 1 - float(wrong / guess.clamp_min(1e-300)))


def dci(codes: Tensor, factors: Factors, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness (Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled
    Representations, 2018, section 2), each in [0, 1], higher is better.

    R_ij is the importance of unit i in a random forest that predicts factor j from all units, fitted on half of the images. With P_ij = R_ij / sum_j R_ij,

        D_i = 1 - H(P_i.) / log F,   D = sum_i rho_i D_i,   rho_i = sum_j R_ij / sum R,

    and completeness is the same over the columns of R, with log J, averaged over factors. Informativeness: 1 - E / E_0 on the other half, with E the
    squared error of a quantity or the share of wrong categories, E_0 that of the best constant; not below 0. Disentanglement and completeness are
    shares of importance: what they say of a code of low informativeness is noise. Errors: `ValueError` also for fewer than two units or factors.
    """
    codes, factors = _checked("DCI", codes, factors)
    if codes.shape[1] < 2 or len(factors) < 2:
        raise ValueError(f"DCI needs two units and two factors, and there are {codes.shape[1]} and {len(factors)}")
    forests = [_forest(codes, v, seed) for v in factors.values()]
    importance = torch.stack([found for found, _ in forests], dim=1)  # (J, F)
    rho = importance.sum(1) / importance.sum().clamp_min(1e-300)
    return DCI(float((rho * _unmixed(importance)).sum()), _named(_unmixed(importance.T), factors),
               _named(torch.tensor([known for _, known in forests], dtype=torch.float64), factors), importance)
