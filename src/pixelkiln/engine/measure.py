"""Measuring a run, or any images, against real ones: what `pixelkiln evaluate` does, for Python as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import refuse_pickle
from ..core.images import from_uint8
from ..core.protocols import Codec, Likelihood
from ..core.recipe import DataConfig
from ..core.types import Ability, Request, UserError
from ..data import ImageSet
from ..metrics.result import Report
from .access import Access
from .codes import code_results
from .evaluate import check, chosen, named, score
from .extractor import FeatureExtractor
from .likelihood import likelihood
from .log import Log
from .named import extractor_named
from .pairs import Pairs, path_result, reconstruction
from .parallel import Team, joined
from .publish import data_of, publish, save_evaluation
from .sample import Trained, generate, middle
from .scores import DEFAULT, METRICS
from .statistics import Statistics

__all__ = ["Ask", "Measured", "measure", "measure_images", "reference"]

PART = 250  # samples drawn and measured at a time, by one of several processes
PAIRS = 100  # reconstructions at a time
PATHS = 500  # of a perceptual path length
Work = Callable[[], dict[str, Tensor]]


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
    `Trained.sample`. An editing method is given test images, in turn (and the mask `middle`, where it takes one), and scores of pairs compare
    its images with them; a codec that generates nothing is measured by what it makes of test images; scores of codes are those of test images, and need factors. Several processes share sampling and
    features, with the scores of one process, bit for bit; the first has them, and the others get an empty report.
    """
    log = log or Log(quiet=True)
    rebuilds = not trained.method.generates and isinstance(trained.method, Codec)
    if not trained.method.generates and not rebuilds:
        raise UserError(f"{trained.facts['recipe']} does not generate, so there are no samples to score: its report shows what it can do")
    own = data_of(trained, source, access)
    team = trained.where.team
    of_codes = [n for n in named(ask.metrics or DEFAULT) if METRICS[n].needs == "codes"]
    coded = code_results(trained, of_codes, own[1], num, ask.seed) if team.first else []
    if ask.metrics and len(of_codes) == len(named(ask.metrics)):  # no samples, no features
        return Measured(Report(tuple(coded)), {})
    train, test = reference(source or trained.facts["data"]["source"], trained, access, log)
    edits = Ability.SOURCE in trained.method.abilities or rebuilds
    whole = _order(trained, num, ask.seed, label, edits, knobs)
    labels = whole.cond.label if train.classes and not trained.invents else None
    extractor = _extractor(ask, train, log, team)
    asked = chosen(ask.metrics, labels is not None, extractor)
    pairs, paths = ([n for n in asked if METRICS[n].needs == kind] for kind in ("pairs", "paths"))
    names = [n for n in asked if n not in (*pairs, *paths, *of_codes)]
    check(names, num, labels, train, extractor, whole.cond.label is not None)
    beside = Pairs(pairs, extractor)
    fake = Statistics(extractor, train.info.shape, ask.seed)
    start = time.perf_counter()
    with log.meter("sample", num, unit="images") as meter:
        for seen in team.in_turn(_sampled(trained, whole, own[1] if edits else None, fake, beside) if names or (pairs and edits) else ()):
            fake.add(seen)
            if edits:
                beside.add(seen)
            meter.at(len(fake))
    if len(fake):
        log.say(f"{num} samples at {num / (time.perf_counter() - start):.1f} images/s, measured as they came")
    shape, imitated = tuple(trained.method.shape), own[0].codec if team.first else None
    report = score(fake, shape, train, test, names, ask.num_bootstrap, team, imitated=imitated) if names else Report(())
    if pairs and not edits:
        for seen in team.in_turn(_rebuilt(trained, own[1], num, beside)):
            beside.add(seen)
    if not team.first:
        return Measured(report, {})
    of = "edits, beside their sources" if edits and not rebuilds else "reconstructions of test images"
    more = beside.results({"of": of}) + [path_result(trained, extractor, min(num, PATHS), ask.seed, label) for _ in paths]
    report = Report((*report.results, *more, *coded), report.warnings)
    nats: dict[str, Any] = {}
    if isinstance(trained.method, Likelihood) and not ask.metrics:
        try:
            nats = likelihood(trained.method, own[1], ask.importance, ask.seed, trained.where)
        except UserError as e:  # a net that never lost a label in training says nothing about images without one
            log.say(f"no likelihood: {e}")
    found = Measured(report, nats)
    if not ask.usual or source is not None or trained.ema_std is not None:
        return found
    save_evaluation(trained, found.to_json())
    return Measured(report, nats, publish(trained, *own, extractor))


def _order(trained: Trained, num: int, seed: int, label: Any, edits: bool, knobs: Mapping[str, Any]) -> Request:
    """What is asked of the run: of an editing method each test image as it is, where no label is named, and the mask `middle`, where it takes one."""
    whole = trained.request(num, seed, label, **knobs)
    if edits and label is None:
        whole = replace(whole, cond=replace(whole.cond, label=None))
    mask = middle(trained.method, num)
    return whole if mask is None else replace(whole, cond=replace(whole.cond, mask=mask))


def _extractor(ask: Ask, train: ImageSet, log: Log | None, team: Team) -> FeatureExtractor:
    """The extractor: process 0 trains or fetches it, and the others find it in the cache. `UserError` where they find another one."""
    say = (log or Log(quiet=True)).say
    first = extractor_named(ask.extractor, train, ask.weights, say) if team.first else None
    weights = team.agree(lambda: "" if first is None else first.weights)
    found = first or extractor_named(ask.extractor, train, ask.weights, say)
    if found.weights != weights:
        raise UserError(f"process {team.rank} has the extractor {found.name} with other weights than process 0: let all share one PIXELKILN_CACHE")
    return found


def _sampled(trained: Trained, whole: Request, sources: ImageSet | None, fake: Statistics, beside: Pairs) -> Iterator[Work]:
    """Works that draw an order's samples, PART at a time, and look at them; an editing method is given source images, in turn."""

    def look(start: int) -> dict[str, Tensor]:
        request, given = whole.take(slice(start, start + PART)), None
        if sources is not None:
            given = sources.images_of(torch.arange(start, start + len(request.seeds)) % len(sources))
            request = replace(request, cond=replace(request.cond, source=from_uint8(given)))
        if given is not None and not trained.method.generates:
            images = reconstruction(trained, given)
        else:
            images = generate(trained.method, request, trained.where.alone())
        seen = fake.look(images, torch.arange(start, start + len(images)), request.cond.label)
        return seen if given is None else seen | beside.look(given, images)

    return (partial(look, start) for start in range(0, len(whole.seeds), PART))


def _rebuilt(trained: Trained, test: ImageSet, num: int, beside: Pairs) -> Iterator[Work]:
    """Works that look at the first `num` test images beside what the method makes of their codes."""

    def look(rows: Tensor) -> dict[str, Tensor]:
        images = test.images_of(rows)
        return beside.look(images, reconstruction(trained, images))

    return (partial(look, rows) for rows in torch.split(torch.arange(min(num, len(test))), PAIRS))


def measure_images(path: Path | str, source: str, ask: Ask = Ask(), log: Log | None = None, access: Access = Access()) -> Measured:
    """Score a folder of images or an .npz, some images at a time, against the real images of a source; several processes as in `measure`."""
    refuse_pickle(Path(path))
    team = joined()
    train, test = reference(source, access=access, log=log)
    found = access.open(str(path), split="all")
    extractor = _extractor(ask, train, log, team)
    labels = _renamed(found, train)
    names = chosen(ask.metrics, labels is not None, extractor)
    check(names, len(found), labels, train, extractor)
    fake = Statistics(extractor, train.info.shape, ask.seed)

    def look(rows: Tensor) -> dict[str, Tensor]:
        return fake.look(found.images_of(rows), rows, None if labels is None else labels[rows])

    for seen in team.in_turn(partial(look, rows) for rows in torch.split(torch.arange(len(found)), PART)):
        fake.add(seen)
    return Measured(score(fake, tuple(found.info.shape), train, test, names, ask.num_bootstrap, team, found.codec), {})


def _renamed(found: ImageSet, train: ImageSet) -> Tensor | None:
    """Labels of samples in the numbers of the reference's classes."""
    if found.labels is None or not train.classes:
        return None
    if found.classes and set(found.classes) <= set(train.classes):
        number = {name: i for i, name in enumerate(train.classes)}
        return found.labels.clone().apply_(lambda i: number[found.classes[int(i)]])
    return found.labels
