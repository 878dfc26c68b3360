"""Every score of a set of samples, each with its protocol and with what the real test split scores under the same protocol."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.config import nearest
from ..core.types import UserError
from ..data import ImageSet
from ..data.encoded import lossy
from ..metrics import Report, Result
from .extractor import FeatureExtractor
from .parallel import ALONE, Team
from .scores import DEFAULT, METRICS, Protocol, Score, Sets, finite, title
from .statistics import Statistics, statistics_of

__all__ = ["check", "chosen", "evaluate", "floor_of", "named", "score", "score_of"]

FEW = 1_000  # below this, fd's bias is warned of
PART = 1024  # images at a time
ELSEWHERE = {  # what a set of images does not have
    "pairs": "pairs of images: give a run whose method encodes or takes a source",
    "paths": "a latent space: give a run with one",
    "codes": "codes of images: give a run whose method encodes",
}


def evaluate(
    samples: Tensor,
    labels: Tensor | None,
    reference_train: ImageSet,
    reference_test: ImageSet,
    extractor: FeatureExtractor,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    num_bootstrap: int = 0,
) -> Report:
    """`score` of samples uint8 (N, C, H, W), of any size, with labels int64 (N,) or None, that are in memory."""
    names = chosen(metrics, labels is not None, extractor)
    check(names, len(samples), labels, reference_train, extractor)
    fake = Statistics(extractor, reference_train.info.shape, seed)
    for rows in torch.split(torch.arange(len(samples)), PART):
        fake.update(samples[rows], labels=None if labels is None else labels[rows])
    return score(fake, tuple(samples.shape[1:]), reference_train, reference_test, names, num_bootstrap)


def score(fake: Statistics, shape: Sequence[int], train: ImageSet, test: ImageSet, names: Sequence[str], num_bootstrap: int = 0,
          team: Team = ALONE, codec: str = "pixels", imitated: str | None = None) -> Report:
    """The scores `names` of samples of shape (C, H, W) against the training split, from their statistics.

    fd uses the statistics of the whole training split; what needs single features a random POOL of it (and of the samples). The floor is
    the score of min(N, len(test)) random test images against the same reference; for accuracy, of all of them. num_bootstrap: half-samples
    behind an interval of 95 %, 0 for none. Several processes look at the real images in turn; process 0 has the samples' statistics and gets
    the scores, the others an empty report. codec: how the files of the samples are coded; imitated: those of the images that a model was trained
    on, whose traces its samples have. Errors: `UserError` for too few images.
    """
    extractor, seed = fake.extractor, fake.seed
    size = train.info.shape
    unseen = [name for name in names if METRICS[name].needs == "test"]
    if unseen and not len(test):
        raise UserError(f"{unseen[0]} needs test images, and {test.name} has none: leave it out of the metrics")
    n_floor = team.agree(lambda: min(len(fake), len(test)))
    real = statistics_of(extractor, train, size, seed, team=team)
    some = statistics_of(extractor, test, size, seed, n_floor, team) if n_floor else None
    every = statistics_of(extractor, test, size, seed, team=team) if extractor.classes and len(test) else None
    if not team.first:
        return Report(())
    sets = Sets(fake, real, some, seed, num_bootstrap)
    common = _protocol(shape, train, test, extractor, seed, every) | {"codec": codec, "reference codec": train.codec}
    results = []
    for name in names:
        value = score_of(name, sets)
        floor = floor_of(name, every if name == "accuracy" else some, real, seed)
        own = {**common, **value.protocol, "floor N": floor.protocol["N"] if floor else 0}
        results.append(Result(title(name, extractor), value.value, METRICS[name].better, floor.value if floor else None, own, value.error, value.interval))
    return Report(tuple(results), (*_warnings(names, fake, n_floor, real, train, test), *_recoded(codec if imitated is None else imitated, train.codec)))


def score_of(name: str, sets: Sets) -> Score:
    """One score; what the metric refuses, or cannot give as a number, is the user's to know."""
    try:
        found = METRICS[name].of(sets)
    except ValueError as e:
        raise UserError(f"{name}: {e}; or leave it out of the metrics") from None
    if not finite(found.value):
        raise UserError(f"{name} is {found.value} here, so it says nothing: leave it out of the metrics")
    return found


def floor_of(name: str, test: Statistics | None, real: Statistics, seed: int) -> Score | None:
    """The score of test images, None where there are too few."""
    if test is None or len(test) < METRICS[name].least or (METRICS[name].needs in ("classes", "labels") and not test.agreement.num):
        return None
    try:
        found = METRICS[name].of(Sets(test, real, test, seed))
    except ValueError:
        return None
    return found if finite(found.value) else None


def named(metrics: Sequence[str]) -> list[str]:
    """The names of METRICS that are meant, in that order; published names are those of their formula. `UserError` for an unknown one."""
    alias = {"fid": "fd", "kid": "kd", "is": "cs", "cmmd": "mmd"}
    known = []
    for name in metrics:
        low = name.strip().lower()
        if alias.get(low, low) not in METRICS:
            raise UserError(f"unknown metric {name!r}; {nearest(name, METRICS)} ('pixelkiln evaluate --help' lists all)")
        known.append(alias.get(low, low))
    if not metrics:
        raise UserError(f"no metric was named: choose from {', '.join(METRICS)}")
    return [n for n in METRICS if n in known]


def chosen(metrics: Sequence[str] | None, labeled: bool, extractor: FeatureExtractor) -> list[str]:
    """The scores of sets to compute, in the order of METRICS: the default ones that apply, or those named. `UserError` for a published name
    that this extractor does not have, or one that is not a score of two sets."""
    if metrics is None:
        return [n for n in DEFAULT if METRICS[n].needs != "classes" or (labeled and extractor.classes)]
    for name in metrics:
        low = name.strip().lower()
        if low in ("fid", "kid", "is", "cmmd") and low not in {q.lower() for q in extractor.quoted.values()}:
            which = "--extractor clip" if low == "cmmd" else "--extractor inception"
            raise UserError(f"unknown metric {name!r} with the extractor {extractor.name}: it needs {which} with the published weights")
    return named(metrics)


def check(names: Sequence[str], num: int, labels: Tensor | None, train: ImageSet, extractor: FeatureExtractor, coded: bool = False) -> None:
    """Refuse what cannot be scored before anything is computed. labels: numbers of the reference's classes; coded: the samples have labels of another meaning."""
    for name in names:
        metric = METRICS[name]
        for what, n in (("samples", num), ("reference images", len(train) if name != "accuracy" else metric.least)):
            if n < metric.least:
                raise UserError(f"{name} needs at least {metric.least} {what}, and there are {n}: give more, or leave it out of the metrics")
        if metric.needs in ELSEWHERE:
            raise UserError(f"{name} needs {ELSEWHERE[metric.needs]}, or leave it out of the metrics")
        if metric.needs in ("predictions", "labels") and not extractor.num_classes:
            raise UserError(f"{name} needs predictions, and {extractor.name} makes none: leave it out of the metrics")
        if metric.needs == "labels" and labels is None and not coded:
            raise UserError(f"{name} needs the labels, or codes, that the samples were asked for: add --label all, or store 'labels' with them, or leave it out of the metrics")
    if "accuracy" not in names:
        return
    if not extractor.classes:
        raise UserError(f"accuracy needs classes, and {train.name} has none with {extractor.name}: leave it out of the metrics")
    if labels is None:
        raise UserError("accuracy needs the labels of the samples: store 'labels' with them, or leave it out of the metrics")
    if labels.shape != (num,):
        raise UserError(f"{num} samples need as many labels, and there are {tuple(labels.shape)}: give one label a sample")
    if int(labels.min()) < 0 or int(labels.max()) >= len(extractor.classes):
        wrong, last = f"{int(labels.min())}..{int(labels.max())}", len(extractor.classes) - 1
        raise UserError(f"labels of the samples are {wrong}, and {train.name} has classes 0..{last}: give the data that they belong to")


def _protocol(shape: Sequence[int], train: ImageSet, test: ImageSet, extractor: FeatureExtractor, seed: int, every: Statistics | None) -> Protocol:
    """What all scores of one evaluation have in common."""
    protocol: Protocol = {"extractor": extractor.name, "weights": extractor.weights}
    if every is not None and every.agreement.num:
        protocol["extractor accuracy"] = round(every.agreement.right / every.agreement.num, 4)
    reference = {"reference": f"{train.name} {train.split}", "floor": f"{test.name} {test.split}"}
    return {**protocol, **reference, "resize": extractor.how(shape), "reference resize": extractor.how(tuple(train.info.shape)), "seed": seed}


def _recoded(codec: str, reference: str) -> list[str]:
    """What a lossy coding of one side does to scores."""
    if lossy(codec) == lossy(reference):
        return []
    one, other = ("samples", "reference images") if lossy(codec) else ("reference images", "samples")
    kinds = (codec, reference) if lossy(codec) else (reference, codec)
    return [f"the {one} are {kinds[0]}, the {other} {kinds[1]}: lossy coding leaves traces that scores see, so code both alike"]


def _warnings(names: Sequence[str], fake: Statistics, n_floor: int, real: Statistics, train: ImageSet, test: ImageSet) -> list[str]:
    """What a reader of the scores must know."""
    n, found, fd = len(fake), [], title("fd", fake.extractor)
    if "fd" in names and n < max(fake.extractor.dim, FEW):
        found.append(f"{fd} of only {n} samples is biased upwards, by about 1/N: compare it with the floor, or with scores at the same N")
    if n_floor < n:
        found.append(f"the floor is of only {n_floor} test images, for {n} samples: at the same N it would be lower for fd")
    if train.digest() == test.digest():
        found.append("the test split equals the training split: the floor is not one")
    if copies := int(torch.isin(fake.prints, real.prints).sum()):
        found.append(f"{copies} of {n} samples equal a training image, pixel by pixel")
    if repeated := n - len(fake.prints.unique()):
        found.append(f"{repeated} of {n} samples repeat another sample, pixel by pixel")
    return found
