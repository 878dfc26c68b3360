"""Measuring a run, or any images, against real ones: what `pixelkiln evaluate` does, for Python as well."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import refuse_pickle
from ..core.protocols import Likelihood
from ..core.types import Ability, UserError
from ..data import ImageSet, open_source
from ..metrics.result import Report
from .access import Access
from .evaluate import evaluate
from .features import extractor_for
from .likelihood import likelihood
from .log import Log
from .publish import data_of, publish, save_evaluation
from .sample import Trained, generate

__all__ = ["Measured", "measure", "measure_images", "reference"]


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
    """The real images, train and test, as their source has them, so that runs at different resolutions are measured alike; a source of
    mixed sizes is prepared as the run's own data were."""
    try:
        return access.open(source, split="train", log=log), access.open(source, split="test", log=log)
    except UserError:
        if trained is None:
            raise
        return data_of(trained, source, access)


def measure(trained: Trained, source: str | None = None, num: int = 2000, seed: int = 0, label: Any = None, metrics: Sequence[str] | None = None,
            importance: int = 100, log: Log | None = None, access: Access = Access(), **knobs: Any) -> Measured:
    """Sample a run and score it; against its own data and with all metrics, the run's report is brought up to date.

    source: the real images (default: what it was trained on); label: classes of the samples (default: as in the training data);
    importance: samples of a likelihood that is a bound; knobs: as `Trained.sample`.
    """
    log = log or Log(quiet=True)
    own = data_of(trained, source, access)
    train, test = reference(source or trained.facts["data"]["source"], trained, access, log)
    extractor = extractor_for(train, test, log=log.say)
    turned = own[1].images_of(torch.arange(num) % len(own[1])) if Ability.SOURCE in trained.method.abilities else None
    request = trained.request(num, seed, label, None, turned, **knobs)
    start = time.perf_counter()
    with log.meter("sample", num, unit="images") as meter:
        images = generate(trained.method, request, trained.where, done=meter.at)
    log.say(f"{num} samples at {num / (time.perf_counter() - start):.1f} images/s")
    report = evaluate(images, request.cond.label, train, test, extractor, metrics, seed)
    nats: dict[str, Any] = {}
    if isinstance(trained.method, Likelihood) and not metrics:
        nats = likelihood(trained.method, own[1], importance, seed, trained.where)
    found = Measured(report, nats)
    if metrics or source is not None:
        return found
    save_evaluation(trained, found.to_json())
    return Measured(report, nats, publish(trained, *own, extractor))


def measure_images(path: Path | str, source: str, seed: int = 0, metrics: Sequence[str] | None = None, log: Log | None = None,
                   access: Access = Access()) -> Measured:
    """Score a folder of images or an .npz against the real images of a source."""
    refuse_pickle(Path(path))
    train, test = reference(source, access=access, log=log)
    found = open_source(path, split="all")
    extractor = extractor_for(train, test, log=(log or Log(quiet=True)).say)
    return Measured(evaluate(found.images_of(torch.arange(len(found))), _renamed(found, train), train, test, extractor, metrics, seed), {})


def _renamed(found: ImageSet, train: ImageSet) -> Tensor | None:
    """Labels of samples in the numbers of the reference's classes."""
    if found.labels is None or not train.classes:
        return None
    if found.classes and set(found.classes) <= set(train.classes):
        number = {name: i for i, name in enumerate(train.classes)}
        return found.labels.clone().apply_(lambda i: number[found.classes[int(i)]])
    return found.labels
