"""Every score that can be asked for, by name: what it says, which way is better, and how it comes from two sets' statistics.

What needs single images beside each other (pairs) or the generator itself (paths) is listed here too and measured in `pairs`; what needs codes
of images with known factors, in `codes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..metrics import (
    Agreement,
    Closeness,
    K,
    KernelDistance,
    Moments,
    Neighborhoods,
    authenticity,
    bootstrap,
    copying,
    frechet_distance,
    frechet_error,
    kernel_distance,
    mmd2,
    n_curve,
    nearest_ratio,
    neighborhood_scores,
    polynomial,
    rbf,
    sliced_distance,
    vendi_score,
)
from ..metrics.disentangle import BINS
from .extractor import FeatureExtractor
from .statistics import Statistics

__all__ = ["DEFAULT", "METRICS", "Metric", "Score", "Sets", "title"]

Protocol = dict[str, str | int | float]
Better = Literal["lower", "higher", "as the floor"]
POINTS = 5  # sizes of the N-curve


@dataclass(frozen=True)
class Score:
    """A value, one standard error and an interval where there are any, and its own part of the protocol."""

    value: float
    error: float | None
    protocol: Protocol
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sets:
    """Samples, the training split that they are compared with, and as many test images; num_bootstrap 0: no intervals."""

    fake: Statistics
    train: Statistics
    test: Statistics | None
    seed: int = 0
    num_bootstrap: int = 0

    @cached_property
    def both(self) -> Protocol:
        """Sizes of the pools."""
        return {"N": len(self.fake.pool), "reference N": len(self.train.pool)}

    @cached_property
    def neighborhoods(self) -> Neighborhoods:
        """Of the pools."""
        return neighborhood_scores(real=self.train.pool, fake=self.fake.pool, k=K)

    @cached_property
    def unseen(self) -> Tensor:
        """Features of test images."""
        assert self.test is not None, "asked only where there are test images"
        return self.test.pool

    def near(self, fake: Tensor) -> Closeness:
        """How near fake (N, d) is to the training pool."""
        return nearest_ratio(train=self.train.pool, test=self.unseen, fake=fake)

    def centered(self, x: Tensor) -> Tensor:
        """Features without the training set's mean, which they share."""
        return x.double() - self.train.moments.mean


Plain = Callable[[Sets, Tensor], float]  # the score of bare features


@dataclass(frozen=True)
class Metric:
    """about: one line; least: samples that it needs; needs: "" (features), "classes" (of the data), "predictions", "labels" (of any meaning) and predictions, "test" images, "pairs", "paths" or "codes".

    plain: the score of features (N, d), what intervals are made of; score: the whole, where it is more than the plain score of the pool.
    """

    about: str
    better: Better = "higher"
    least: int = 2
    needs: Literal["", "classes", "predictions", "labels", "test", "pairs", "paths", "codes"] = ""
    plain: Plain | None = None
    score: Callable[[Sets], Score] | None = None
    own: Protocol = field(default_factory=dict)

    def of(self, sets: Sets) -> Score:
        """The score, with an interval where it has a plain form and one is asked for."""
        if self.score is not None:
            found = self.score(sets)
        else:
            assert self.plain is not None, "pairs, paths and codes are measured elsewhere"
            found = Score(self.plain(sets, sets.fake.pool), None, {**sets.both, **self.own})
        plain, pool = self.plain, sets.fake.pool
        if not sets.num_bootstrap or plain is None or len(pool) < 2 * max(self.least, 2):
            return found
        it = bootstrap(lambda x: plain(sets, x), pool, num=sets.num_bootstrap, seed=sets.seed)
        how: Protocol = {"bootstrap": it.num, "interval N": len(pool), "corrected": round(it.corrected, 6)}
        return Score(found.value, it.error, {**found.protocol, **how}, (it.low, it.high))


def _fd(sets: Sets) -> Score:
    real, fake = sets.train.moments, sets.fake.moments
    own: Protocol = {"N": fake.n, "reference N": real.n, "d": sets.fake.pool.shape[1]}
    return Score(frechet_distance(real, fake), frechet_error(real=real, fake=sets.fake.pool), own)


def _fd_plain(sets: Sets, x: Tensor) -> float:
    return frechet_distance(sets.train.moments, Moments.of(x))


def _fd_infinity(sets: Sets) -> Score:
    """As `frechet_infinity`, with the curve that it extrapolates."""
    curve = n_curve(lambda x: _fd_plain(sets, x), sets.fake.pool, num_points=POINTS, seed=sets.seed)
    line = curve.line()
    error = (line.error**2 + frechet_error(real=sets.train.moments, fake=sets.fake.pool) ** 2) ** 0.5
    shown = " ".join(f"{n}:{v:.4g}" for n, v in zip(curve.sizes, curve.values, strict=True))
    own: Protocol = {"N": len(sets.fake.pool), "reference N": sets.train.moments.n, "N-curve": shown, "slope": round(line.slope, 4)}
    return Score(line.value, error, own)


def _kernel(sets: Sets, found: KernelDistance, scale: float = 1) -> Score:
    return Score(scale * found.value, scale * found.error, {**sets.both, "subsets": found.num_subsets, "subset size": found.subset})


def _kd(sets: Sets) -> Score:
    return _kernel(sets, kernel_distance(real=sets.train.pool, fake=sets.fake.pool, seed=sets.seed))


def _mmd(sets: Sets) -> Score:
    found = _kernel(sets, kernel_distance(real=sets.train.pool, fake=sets.fake.pool, seed=sets.seed, kernel=rbf()), 1000)
    return Score(found.value, found.error, {**found.protocol, "kernel": "Gaussian, sigma 10", "scale": 1000})


def _mind(sets: Sets) -> Score:
    found = sliced_distance(real=sets.train.pool, fake=sets.fake.pool, seed=sets.seed)
    return Score(found.mind, 3 * found.dim * found.error, {**sets.both, "projections": found.num_projections})


def _accuracy(sets: Sets) -> Score:
    found, num = sets.fake.agreement, sets.fake.agreement.num
    p = found.right / num
    return Score(p, (p * (1 - p) / num) ** 0.5, {"N": num, "classes": sets.fake.extractor.num_classes})


def _agreement(sets: Sets, value: Callable[[Agreement], float]) -> Score:
    """Of what the samples were asked for with what the classifier says."""
    found = sets.fake.agreement
    return Score(value(found), None, {"N": found.num, "labels": len(found.counts), "outputs": sets.fake.extractor.num_classes})


def _inception(sets: Sets) -> Score:
    found = sets.fake.inception.score
    return Score(found.value, found.error, {"N": sets.fake.inception.seen, "splits": found.num, "outputs": sets.fake.extractor.num_classes})


def _modes(sets: Sets) -> Score:
    return Score(sets.fake.modes.num_found(), None, {"N": int(sets.fake.modes.counts.sum()), "outputs": sets.fake.extractor.num_classes})


def _modes_kl(sets: Sets) -> Score:
    modes, real = sets.fake.modes, sets.train.modes
    return Score(modes.kl(real), None, {"N": int(modes.counts.sum()), "reference N": int(real.counts.sum())})


def _neighborhood(name: str, about: str) -> Metric:
    """One of the four scores that are computed together."""
    return Metric(about, "higher", K + 1, "", lambda s, x: getattr(neighborhood_scores(real=s.train.pool, fake=x, k=K), name),
                  lambda s: Score(getattr(s.neighborhoods, name), None, {**s.both, "k": K}))


METRICS: dict[str, Metric] = {
    "fd": Metric("Frechet distance of Gaussians fitted to the features", "lower", 2, "", _fd_plain, _fd),
    "kd": Metric("kernel distance: unbiased, cubic polynomial kernel", "lower", 4, "", lambda s, x: float(mmd2(s.train.pool.double(), x.double(), polynomial)),
                 _kd),
    "precision": _neighborhood("precision", "share of samples within the neighborhoods of real images: fidelity"),
    "recall": _neighborhood("recall", "share of real images within the neighborhoods of samples: variety"),
    "density": _neighborhood("density", "how many real neighborhoods hold a sample, 1 on average for real images"),
    "coverage": _neighborhood("coverage", "share of real neighborhoods that hold a sample"),
    "accuracy": Metric("share of samples that the classifier recognizes as their label", "higher", 1, "classes", None, _accuracy),
    "mind": Metric("sliced Wasserstein distance in MIND's scale", "lower", 2, "",
                   lambda s, x: sliced_distance(real=s.train.pool, fake=x, seed=s.seed, num_projections=200).mind, _mind),
    "authenticity": Metric("share of samples that are no closer to their training image than its neighbors are: 0 for copies", "as the floor", 1, "",
                           lambda s, x: authenticity(train=s.train.pool, fake=x)),
    "nn-ratio": Metric("median distance to the training images over that of test images: 0 for copies", "as the floor", 1, "test",
                       lambda s, x: s.near(x).ratio),
    "nn-closer": Metric("share of samples nearer to a training image than 95 % of the test images: 0.05 for real ones", "as the floor", 1, "test",
                        lambda s, x: s.near(x).closer),
    "ct": Metric("C_T: z-score of data-copying, far below 0 for copies", "as the floor", 30, "test",
                 lambda s, x: copying(train=s.train.pool, test=s.unseen, fake=x, num_cells=max(1, min(10, len(x) // 100)), seed=s.seed)),
    "vendi": Metric("Vendi score: effective number of different samples, mean removed", "as the floor", 2, "",
                    lambda s, x: vendi_score(s.centered(x)), None, {"kernel": "cosine"}),
    "fd-inf": Metric("Frechet distance extrapolated to infinitely many samples, with its N-curve", "lower", 2 * POINTS, "", None, _fd_infinity),
    "mmd": Metric("1000 times the kernel distance with a Gaussian kernel of width 10", "lower", 4, "", None, _mmd),
    "cs": Metric("classifier score, the Inception Score's formula with this extractor's classes", "higher", 10, "predictions", None, _inception),
    "modes": Metric("number of classes with at least one sample", "higher", 1, "predictions", None, _modes),
    "modes-kl": Metric("divergence of the classes' shares from the training split's", "lower", 1, "predictions", None, _modes_kl),
    "purity": Metric("share of samples that are of the commonest class of their label, or code", "higher", 1, "labels", None, lambda s: _agreement(s, lambda a: a.purity)),
    "label-nats": Metric("mutual information of labels, or codes, and recognized classes, nats", "higher", 1, "labels", None, lambda s: _agreement(s, lambda a: a.nats)),
    "psnr": Metric("decibel between pairs of images", "higher", 1, "pairs"),
    "ssim": Metric("structural similarity of pairs", "higher", 1, "pairs"),
    "ms-ssim": Metric("structural similarity of pairs on several scales", "higher", 1, "pairs"),
    "pd": Metric("perceptual distance of pairs in the extractor's feature maps", "lower", 1, "pairs"),
    "ppl": Metric("perceptual path length of the latent space", "lower", 2, "paths"),
    "mig": Metric("mutual information gap of codes, where factors are known: is each in one unit", "higher", 2, "codes", own={"bins": BINS}),
    "dci": Metric("three scores of codes: disentanglement, completeness, informativeness", "higher", 2, "codes", own={"model": "random forest"}),
    "sap": Metric("separated attribute predictability of codes", "higher", 2, "codes"),
}
DEFAULT = ("fd", "kd", "precision", "recall", "density", "coverage", "accuracy", "mind", "authenticity", "nn-ratio", "nn-closer")


def title(name: str, extractor: FeatureExtractor) -> str:
    """What a score is called: "fd", with a named extractor "fd-dinov2", and "FID" with the network and weights of that name only."""
    if METRICS[name].needs == "pairs" and name != "pd":
        return name
    return extractor.quoted.get(name, name + extractor.suffix)


def finite(x: float) -> bool:
    """Whether JSON can hold it."""
    return bool(torch.tensor(x).isfinite())
