"""pixelkiln evaluate: a run, a folder of images or an .npz, measured against real images."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..core.files import refuse_pickle, write_json
from ..core.protocols import Likelihood
from ..core.types import UserError
from ..data import ImageSet, open_source
from ..engine.evaluate import evaluate
from ..engine.features import extractor_for
from ..engine.likelihood import likelihood
from ..engine.log import Log
from ..engine.publish import data_of, publish, save_evaluation
from ..engine.sample import Trained, generate, load
from ..metrics.result import Report
from .options import add_machine, parents, whole
from .sample import add_knobs, knobs

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("samples", metavar="RUN|DIR|F.npz", help="a run folder (which is sampled first), or images")
    parser.add_argument("--data", metavar="SRC", help="the real images (default for a run: what it was trained on)")
    parser.add_argument("--metrics", metavar="A,B", help="fd, kd, precision, recall, density, coverage, accuracy (default: all that apply)")
    parser.add_argument("-n", type=whole, default=2000, metavar="N", help="samples to draw from a run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and of the metrics' subsets")
    parser.add_argument("--label", metavar="K", help="classes of the samples; default: as in the training data")
    parser.add_argument("--json", metavar="F", type=Path, help="write the scores with their protocol here, too")
    parser.add_argument("--iw", type=whole, default=100, metavar="K", help="importance samples for a likelihood that is a bound")
    add_knobs(parser)
    add_machine(parser)


def reference(source: str, trained: Trained | None) -> tuple[ImageSet, ImageSet]:
    """The real images as their source has them, so that runs at different resolutions are measured alike; a source of mixed sizes is
    prepared as the run's own data were."""
    try:
        return open_source(source, split="train"), open_source(source, split="test")
    except UserError:
        if trained is None:
            raise
        return data_of(trained, source)


def drawn(args: argparse.Namespace, trained: Trained, test: ImageSet, log: Log) -> tuple[Tensor, Tensor | None]:
    """Samples of a run and their labels."""
    from ..core.types import Ability

    source = None
    if Ability.SOURCE in trained.method.abilities:
        source = test.images[[i % len(test) for i in range(args.n)]]
    request = trained.request(args.n, args.seed, args.label, None, source, **knobs(args))
    with log.meter("sample", args.n, unit="images") as meter:
        start = time.perf_counter()
        images = generate(trained.method, request, trained.where, done=meter.at)
    log.say(f"{args.n} samples at {args.n / (time.perf_counter() - start):.1f} images/s")
    return images, request.cond.label


def table(report: Report) -> Table:
    """The scores as people read them."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    rows = report.table()
    for column in rows[0]:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row.values())
    return shown


def run(args: argparse.Namespace) -> int:
    """Measure, print, and bring the run's report up to date."""
    log, path = Log(args.quiet), Path(args.samples)
    trained = own = None
    if (path / "recipe.json").exists():
        trained = load(path, args.device, args.precision, args.recipe, parents(args.parent))
        own = data_of(trained, args.data)
        train, test = reference(args.data or trained.facts["data"]["source"], trained)
        images, labels = drawn(args, trained, own[1], log)
    else:
        if not args.data:
            raise UserError("against which real images? add --data SRC")
        train, test = reference(args.data, None)
        refuse_pickle(path)
        found = open_source(path, split="all")
        images, labels = found.images, _renamed(found, train)
    extractor = extractor_for(train, test, log=log.say)
    names = args.metrics.split(",") if args.metrics else None
    report = evaluate(images, labels, train, test, extractor, names, args.seed)
    document = report.to_json()
    if trained and own and isinstance(trained.method, Likelihood) and not args.metrics:
        document["likelihood"] = likelihood(trained.method, own[1], args.iw, args.seed, trained.where)
    Console().print(table(report))
    for key, value in report.shared().items():
        print(f"  {key}: {value}")
    for name, value in document.get("likelihood", {}).items():
        print(f"  {name}: {value}")
    for warning in report.warnings:
        log.say(f"note: {warning}")
    if args.json:
        write_json(args.json, document)
    if trained and own and not args.metrics and args.data is None:
        save_evaluation(trained, document)
        print(f"report: {publish(trained, *own, extractor)}")
    return 0


def _renamed(found: ImageSet, train: ImageSet) -> Tensor | None:
    """Labels of samples in the numbers of the reference's classes."""
    if found.labels is None or not train.classes:
        return None
    if found.classes and set(found.classes) <= set(train.classes):
        number = {name: i for i, name in enumerate(train.classes)}
        return found.labels.clone().apply_(lambda i: number[found.classes[int(i)]])
    return found.labels
