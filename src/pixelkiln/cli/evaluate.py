"""pixelkiln evaluate: a run, a folder of images or an .npz, measured against real images."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..core.files import write_json
from ..core.types import UserError
from ..engine.log import Log
from ..engine.measure import measure, measure_images
from ..engine.sample import load
from ..metrics.result import Report
from .options import access, add_access, add_machine, parents, whole
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
    add_access(parser)
    add_machine(parser)


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
    names = args.metrics.split(",") if args.metrics else None
    if (path / "recipe.json").exists():
        trained = load(path, args.device, args.precision, args.recipe, parents(args.parent))
        found = measure(trained, args.data, args.n, args.seed, args.label, names, args.iw, log, access(args), **knobs(args))
    elif args.data:
        found = measure_images(path, args.data, args.seed, names, log, access(args))
    else:
        raise UserError("against which real images? add --data SRC")
    Console().print(table(found.report))
    for name, value in {**found.report.shared(), **found.likelihood}.items():
        print(f"  {name}: {value}")
    for warning in found.report.warnings:
        log.say(f"note: {warning}")
    if args.json:
        write_json(args.json, found.to_json())
    if found.page:
        print(f"report: {found.page}")
    return 0
