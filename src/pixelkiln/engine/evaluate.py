"""Every score of a set of samples, each with its protocol and with what the real test split scores under the same protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.config import nearest
from ..core.rng import permutation
from ..core.types import UserError
from ..data import ImageSet
from ..metrics import K, Moments, Report, Result, accuracy, frechet_distance, kernel_distance, neighborhood_scores
from .features import Extractor, conform

__all__ = ["METRICS", "evaluate"]

METRICS = ("fd", "kd", "precision", "recall", "density", "coverage", "accuracy")
LEAST = {"fd": 2, "kd": 4, "accuracy": 1}  # images that a score needs; the neighborhoods need K + 1
POOL = 5_000  # at most so many images a side for kd and the neighborhoods
FEW = 1_000  # below this, fd's bias is warned of
BETTER: Mapping[str, Literal["lower", "higher"]] = {"fd": "lower", "kd": "lower"}  # the others: higher

Protocol = dict[str, str | int | float]


@dataclass(frozen=True)
class _Score:
    """A value, one standard error where there is one, and its own part of the protocol."""

    value: float
    error: float | None
    protocol: Protocol


def evaluate(
    samples: Tensor,
    labels: Tensor | None,
    reference_train: ImageSet,
    reference_test: ImageSet,
    extractor: Extractor,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Score samples uint8 (N, C, H, W), of any size, with labels int64 (N,) or None, against the training split.

    fd uses the statistics of the whole training split; kd, precision, recall, density and coverage a random POOL of it (and of the
    samples). The floor is the score of min(N, len(test)) random test images against the same reference; for accuracy, of all of them.
    metrics: names from METRICS; None is all that apply (accuracy only with labels and classes).
    Errors: `UserError` for an unknown name, too few images, labels that are missing, do not fit or mean nothing here.
    """
    names = _names(metrics, labels, extractor)
    _check(names, samples, labels, reference_train, extractor)
    images = conform(samples, extractor.shape)
    real, test = extractor.features_of(reference_train), extractor.features_of(reference_test)
    fake = extractor.features(images)
    n_floor = min(len(fake), len(test))
    floor_rows = permutation(len(test), seed, "floor")[:n_floor]
    pool = real[permutation(len(real), seed, "reference")[:POOL]]
    moments = Moments.of(real) if "fd" in names else Moments(extractor.dim)
    found = _scores([n for n in names if n != "accuracy"], fake, moments, pool, seed)
    able = [n for n in names if n != "accuracy" and n_floor >= LEAST.get(n, K + 1)]
    floors = _scores(able, test[floor_rows], moments, pool, seed)
    if "accuracy" in names and labels is not None:
        found["accuracy"] = _accuracy(extractor, fake, labels)
        if reference_test.labels is not None and len(test):
            floors["accuracy"] = _accuracy(extractor, test, reference_test.labels)
    common = _protocol(samples, reference_train, reference_test, extractor, seed)
    results = []
    for name in names:
        score, floor = found[name], floors.get(name)
        own = {**common, **score.protocol, "floor N": floor.protocol["N"] if floor else 0}
        results.append(Result(name, score.value, BETTER.get(name, "higher"), floor.value if floor else None, own, score.error))
    return Report(tuple(results), tuple(_warnings(names, images, n_floor, reference_train, reference_test, extractor)))


def _names(metrics: Sequence[str] | None, labels: Tensor | None, extractor: Extractor) -> list[str]:
    """The metrics to compute, in the order of METRICS."""
    if metrics is None:
        return [n for n in METRICS if n != "accuracy" or (labels is not None and extractor.classes)]
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    if not metrics:
        raise UserError(f"no metric was named: choose from {', '.join(METRICS)}")
    return [n for n in METRICS if n in metrics]


def _check(names: Sequence[str], samples: Tensor, labels: Tensor | None, train: ImageSet, extractor: Extractor) -> None:
    """Refuse what cannot be scored."""
    for name in names:
        least = LEAST.get(name, K + 1)
        for what, n in (("samples", len(samples)), ("reference images", len(train) if name != "accuracy" else least)):
            if n < least:
                raise UserError(f"{name} needs at least {least} {what}, and there are {n}: give more, or leave it out of the metrics")
    if "accuracy" not in names:
        return
    if not extractor.classes:
        raise UserError(f"accuracy needs classes, and {train.name} has none: leave it out of the metrics")
    if labels is None:
        raise UserError("accuracy needs the labels of the samples: store 'labels' with them, or leave it out of the metrics")
    if labels.shape != (len(samples),):
        raise UserError(f"{len(samples)} samples need as many labels, and there are {tuple(labels.shape)}: give one label a sample")
    if int(labels.min()) < 0 or int(labels.max()) >= len(extractor.classes):
        wrong, last = f"{int(labels.min())}..{int(labels.max())}", len(extractor.classes) - 1
        raise UserError(f"labels of the samples are {wrong}, and {train.name} has classes 0..{last}: give the data that they belong to")


def _accuracy(extractor: Extractor, features: Tensor, labels: Tensor) -> _Score:
    p = accuracy(predicted=extractor.classify(features), labels=labels.cpu())
    return _Score(p, (p * (1 - p) / len(labels)) ** 0.5, {"N": len(labels), "classes": len(extractor.classes)})


def _scores(names: Sequence[str], fake: Tensor, moments: Moments, pool: Tensor, seed: int) -> dict[str, _Score]:
    """The scores of features (N, d) against the reference: `moments` of all of it, `pool` (<= POOL, d)."""
    found: dict[str, _Score] = {}
    some = fake[permutation(len(fake), seed, "samples")[:POOL]] if len(fake) > POOL else fake
    if "fd" in names:
        own: Protocol = {"N": len(fake), "reference N": moments.n, "d": fake.shape[1]}
        found["fd"] = _Score(frechet_distance(moments, Moments.of(fake)), None, own)
    if "kd" in names:
        kd = kernel_distance(real=pool, fake=some, seed=seed)
        own = {"N": len(some), "reference N": len(pool), "subsets": kd.num_subsets, "subset size": kd.subset}
        found["kd"] = _Score(kd.value, kd.error, own)
    neighborhoods = [n for n in names if n not in ("fd", "kd")]
    if neighborhoods:
        scores = neighborhood_scores(real=pool, fake=some, k=K)
        for name in neighborhoods:
            found[name] = _Score(getattr(scores, name), None, {"N": len(some), "reference N": len(pool), "k": K})
    return found


def _protocol(samples: Tensor, train: ImageSet, test: ImageSet, extractor: Extractor, seed: int) -> Protocol:
    """What all scores of one evaluation have in common."""

    def size(shape: Sequence[int]) -> str:
        channels, height, width = shape
        return f"{height}x{width}x{channels}"

    own, target, source = size(samples.shape[1:]), size(tuple(extractor.shape)), size(train.images.shape[1:])
    how = {size: "none" if size == target else f"{size} to {target}, antialiased bicubic, 8 bits" for size in (own, source)}
    protocol: Protocol = {"extractor": extractor.name, "weights": extractor.weights}
    test_accuracy = extractor.accuracy_on(test) if len(test) else None
    if test_accuracy is not None:
        protocol["extractor accuracy"] = round(test_accuracy, 4)
    reference = {"reference": f"{train.name} {train.split}", "floor": f"{test.name} {test.split}"}
    return {**protocol, **reference, "resize": how[own], "reference resize": how[source], "seed": seed}


def _warnings(names: Sequence[str], images: Tensor, n_floor: int, train: ImageSet, test: ImageSet, extractor: Extractor) -> list[str]:
    """What a reader of the scores must know; `images` are the samples as the extractor sees them."""
    n, found = len(images), []
    if "fd" in names and n < max(extractor.dim, FEW):
        found.append(f"fd of only {n} samples is biased upwards, by about 1/N: compare it with the floor, or with scores at the same N")
    if n_floor < n:
        found.append(f"the floor is of only {n_floor} test images, for {n} samples: at the same N it would be lower for fd")
    if train.digest() == test.digest():
        found.append("the test split equals the training split: the floor is not one")
    own, real = _prints(images), {p for part in train.parts(4096) for p in _prints(conform(part, extractor.shape))}
    if copies := sum(p in real for p in own):
        found.append(f"{copies} of {n} samples equal a training image, pixel by pixel")
    if repeated := n - len(set(own)):
        found.append(f"{repeated} of {n} samples repeat another sample, pixel by pixel")
    return found


def _prints(images: Tensor) -> list[bytes]:
    """A fingerprint of each image."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in images.contiguous().numpy()]
