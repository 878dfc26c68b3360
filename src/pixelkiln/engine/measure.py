"""Measuring a run, or any images, against real ones: what `pixelkiln evaluate` does, for Python as well."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import refuse_pickle
from ..core.protocols import Likelihood
from ..core.recipe import DataConfig
from ..core.types import Ability, Request, UserError
from ..data import ImageSet
from ..metrics.result import Report
from .access import Access
from .evaluate import check, chosen, score
from .likelihood import likelihood
from .log import Log
from .named import extractor_named
from .pairs import Pairs, path_result, reconstructions
from .publish import data_of, publish, save_evaluation
from .sample import Trained, generate, middle
from .scores import METRICS
from .statistics import Statistics

__all__ = ["Ask", "Measured", "measure", "measure_images", "reference"]

PART = 1000  # samples drawn and measured at a time
PATHS = 500  # of a perceptual path length


@dataclass(frozen=True)
class Measured:
    """The scores, the log-likelihood where the method has one, and the report that was written, if any."""

    report: Report
    likelihood: dict[str, Any]
    page: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything with its protocol, as plain JSON values."""
        return self.report.to_json() | ({"likelihood": self.likelihood} if self.likelihood else {})


def reference(source: str, trained: Trained | None = None, access: Access = Access(), log: Log | None = None) -> tuple[ImageSet, ImageSet]:
    """The real images, train and test, as their source has them, so that runs at different resolutions are measured alike, on the run's
    background where they are transparent; a source of mixed sizes is prepared as the run's own data were."""
    config = DataConfig() if trained is None else DataConfig(background=trained.opened.stage.data.background)
    try:
        return access.open(source, config, "train", log), access.open(source, config, "test", log)
    except UserError:
        if trained is None:
            raise
        return data_of(trained, source, access)


@dataclass(frozen=True)
class Ask:
    """What is to be measured and how. metrics: names, None for the default ones; extractor, weights: as `extractor_named`; num_bootstrap:
    half-samples behind an interval, 0 for none; importance: samples of a likelihood that is a bound."""

    metrics: Sequence[str] | None = None
    seed: int = 0
    extractor: str | None = None
    weights: str | None = None
    num_bootstrap: int = 0
    importance: int = 100

    @property
    def usual(self) -> bool:
        """Whether this is what a run's report shows."""
        return not self.metrics and self.extractor in (None, "cnn")


def measure(trained: Trained, source: str | None = None, num: int = 2000, ask: Ask = Ask(), label: Any = None,
            log: Log | None = None, access: Access = Access(), **knobs: Any) -> Measured:
    """Sample a run, some images at a time, and score it; against its own data and as usual, the run's report is brought up to date.

    source: the real images (default: what it was trained on); label: classes of the samples (default: as in the training data); knobs: as
    `Trained.sample`. An editing method is given test images, in turn (and the mask `middle`, where it takes one), and scores of pairs compare its images with them. Several processes
    share the sampling; the first scores, and the others get an empty report.
    """
    log = log or Log(quiet=True)
    if not trained.method.generates:
        raise UserError(f"{trained.facts['recipe']} does not generate, so there are no samples to score: its report shows what it can do")
    own = data_of(trained, source, access)
    train, test = reference(source or trained.facts["data"]["source"], trained, access, log)
    edits = Ability.SOURCE in trained.method.abilities
    whole = trained.request(num, ask.seed, label, **knobs)
    if edits and label is None:  # each test image as it is
        whole = replace(whole, cond=replace(whole.cond, label=None))
    if (mask := middle(trained.method, num)) is not None:
        whole = replace(whole, cond=replace(whole.cond, mask=mask))
    labels = whole.cond.label if train.classes else None
    todo = trained.where.team.agree(lambda: _todo(ask, num, labels, train, edits, log))
    if not trained.where.team.first:
        for request, _ in _parts(whole, own[1] if edits else None) if todo["draw"] else ():
            generate(trained.method, request, trained.where)
        return Measured(Report(()), {})
    names, pairs, paths = todo["names"], todo["pairs"], todo["paths"]
    extractor = extractor_named(ask.extractor, train, ask.weights, log.say)
    beside = Pairs(pairs, extractor)
    fake = Statistics(extractor, train.info.shape, ask.seed)
    start = time.perf_counter()
    with log.meter("sample", num, unit="images") as meter:
        for request, sources in _parts(whole, own[1] if edits else None) if todo["draw"] else ():
            images = generate(trained.method, request, trained.where)
            fake.update(images, labels=None if labels is None else request.cond.label)
            if sources is not None and pairs:
                beside.update(sources, images)
            meter.at(len(fake))
    if len(fake):
        log.say(f"{num} samples at {num / (time.perf_counter() - start):.1f} images/s, measured as they came")
    report = score(fake, tuple(trained.method.shape), train, test, names, ask.num_bootstrap) if names else Report(())
    if pairs and not edits:
        for x, y in reconstructions(trained, own[1], num):
            beside.update(x, y)
    of = "edits, beside their sources" if edits else "reconstructions of test images"
    more = beside.results({"of": of}) + [path_result(trained, extractor, min(num, PATHS), ask.seed, label) for _ in paths]
    report = Report((*report.results, *more), report.warnings)
    nats: dict[str, Any] = {}
    if isinstance(trained.method, Likelihood) and not ask.metrics:
        nats = likelihood(trained.method, own[1], ask.importance, ask.seed, trained.where)
    found = Measured(report, nats)
    if not ask.usual or source is not None:
        return found
    save_evaluation(trained, found.to_json())
    return Measured(report, nats, publish(trained, *own, extractor))


def _todo(ask: Ask, num: int, labels: Tensor | None, train: ImageSet, edits: bool, log: Log) -> dict[str, Any]:
    """Scores of sets (names), of pairs and of paths, and whether samples are drawn for them; what cannot be scored is refused."""
    extractor = extractor_named(ask.extractor, train, ask.weights, log.say)
    asked = chosen(ask.metrics, labels is not None, extractor)
    kinds = {name: METRICS[name].needs for name in asked}
    pairs, paths = ([n for n in asked if kinds[n] == kind] for kind in ("pairs", "paths"))
    names = [n for n in asked if n not in (*pairs, *paths)]
    check(names, num, labels, train, extractor)
    return {"names": names, "pairs": pairs, "paths": paths, "draw": bool(names or (pairs and edits))}


def _parts(whole: Request, sources: ImageSet | None) -> Iterator[tuple[Request, Tensor | None]]:
    """An order, some samples at a time, with the source images uint8 of an editing method, test images in turn."""
    for start in range(0, len(whole.seeds), PART):
        part = whole.take(slice(start, start + PART))
        if sources is None:
            yield part, None
            continue
        images = sources.images_of(torch.arange(start, start + len(part.seeds)) % len(sources))
        yield replace(part, cond=replace(part.cond, source=images.float() / 127.5 - 1)), images


def measure_images(path: Path | str, source: str, ask: Ask = Ask(), log: Log | None = None, access: Access = Access()) -> Measured:
    """Score a folder of images or an .npz, some images at a time, against the real images of a source."""
    refuse_pickle(Path(path))
    train, test = reference(source, access=access, log=log)
    found = access.open(str(path), split="all")
    extractor = extractor_named(ask.extractor, train, ask.weights, (log or Log(quiet=True)).say)
    labels = _renamed(found, train)
    names = chosen(ask.metrics, labels is not None, extractor)
    check(names, len(found), labels, train, extractor)
    fake = Statistics(extractor, train.info.shape, ask.seed)
    for rows in torch.split(torch.arange(len(found)), PART):
        fake.update(found.images_of(rows), rows, None if labels is None else labels[rows])
    return Measured(score(fake, tuple(found.info.shape), train, test, names, ask.num_bootstrap), {})


def _renamed(found: ImageSet, train: ImageSet) -> Tensor | None:
    """Labels of samples in the numbers of the reference's classes."""
    if found.labels is None or not train.classes:
        return None
    if found.classes and set(found.classes) <= set(train.classes):
        number = {name: i for i, name in enumerate(train.classes)}
        return found.labels.clone().apply_(lambda i: number[found.classes[int(i)]])
    return found.labels
