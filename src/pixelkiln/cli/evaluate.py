"""pixelkiln evaluate: a run, a folder of images or an .npz, measured against real images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from ..core.files import write_json
from .options import Formatter, access, add_access, add_machine, count, parents, whole
from .sample import add_knobs, knobs

if TYPE_CHECKING:
    from rich.table import Table

    from ..metrics.result import Report

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("samples", metavar="RUN|DIR|F.npz", help="a run folder (which is sampled first), or images")
    parser.add_argument("--data", metavar="SRC", help="the real images (default for a run: what it was trained on)")
    parser.formatter_class = Listing
    plain = parser.format_help

    def with_scores() -> str:  # the list needs torch, which only this help waits for
        parser.epilog = metrics_help()
        return plain()

    parser.format_help = with_scores  # type: ignore[method-assign]
    parser.add_argument("--metrics", metavar="A,B", help="names from the list below (default: those with a star that apply)")
    parser.add_argument("--extractor", metavar="NAME", help="cnn (default: trained once per data set), inception, inception-tf, dinov2, clip, FILE.ts or "
                        "module:function (which run code: name your own only)")
    parser.add_argument("--weights", metavar="W", help="of the extractor: a file for inception, a folder or a name on the Hub for dinov2 and clip")
    parser.add_argument("--bootstrap", type=count, default=0, metavar="N", help="half-samples behind an interval of 95 %% for each score (100 is plenty)")
    parser.add_argument("-n", type=whole, default=2000, metavar="N", help="samples to draw from a run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and of the metrics' subsets")
    parser.add_argument("--label", metavar="K", help="classes of the samples; default: as in the training data")
    parser.add_argument("--json", metavar="F", type=Path, help="write the scores with their protocol here, too")
    parser.add_argument("--iw", type=whole, default=100, metavar="K", help="importance samples or network evaluations an image for a likelihood that is not exact")
    parser.add_argument("--ema-std", type=float, metavar="X", help="length of the weights' average as a share of the training, from snapshots; 0: none")
    add_knobs(parser)
    add_access(parser)
    add_machine(parser)


class Listing(Formatter):
    """Help whose last part keeps its lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def metrics_help() -> str:
    """All scores, one line each."""
    from ..engine.scores import DEFAULT, METRICS

    lines = [f"  {'*' if name in DEFAULT else ' '} {name:<13} {m.about} ({'closest to the floor' if m.better == 'as the floor' else m.better} is best)"
             for name, m in METRICS.items()]
    return "\n".join(["scores (* measured by default; FID, KID, IS and CMMD are fd, kd, cs and mmd with the published extractor):", *lines])


def table(report: Report) -> Table:
    """The scores as people read them."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    rows = report.table()
    for column in rows[0]:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row.values())
    return shown


def run(args: argparse.Namespace) -> int:
    """Measure, print, and bring the run's report up to date."""
    from rich.console import Console

    from ..engine.evaluate import named
    from ..engine.log import Log
    from ..engine.measure import Ask, measure, measure_images
    from ..engine.parallel import joined
    from ..engine.sample import load

    first, path = joined().first, Path(args.samples)
    log = Log(args.quiet or not first)
    names = args.metrics.split(",") if args.metrics else None
    if names is not None:
        named(names)
    ask = Ask(names, args.seed, args.extractor, args.weights, args.bootstrap, args.iw)
    if (path / "recipe.json").exists():
        trained = load(path, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads, args.ema_std)
        found = measure(trained, args.data, args.n, ask, args.label, log, access(args), **knobs(args))
    elif args.data:
        found = measure_images(path, args.data, ask, log, access(args))
    else:
        raise UserError("against which real images? add --data SRC")
    if not first:
        return 0
    Console().print(table(found.report))
    for heading, facts in (("", found.report.shared()), ("likelihood of the test images:", found.likelihood)):
        if heading and facts:
            print(heading)
        for name, value in facts.items():
            print(f"  {name}: {value}")
    for warning in found.report.warnings:
        log.say(f"note: {warning}")
    if args.json:
        write_json(args.json, found.to_json())
    if found.page:
        print(f"report: {found.page}")
    return 0
