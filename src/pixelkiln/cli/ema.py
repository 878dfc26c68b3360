"""pixelkiln ema: scores against the length of the weights' average, made from a run's snapshots."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import access, add_access, add_machine, numbers, parents
from .sample import add_knobs, knobs
from .solvers import add_scoring

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ema`."""
    parser.add_argument("run", metavar="RUN", help="a run folder with snapshots (trained with --train.ema.kind power)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for ema.json, .md and .svg; what it has is not measured again")
    parser.add_argument("--stds", type=numbers, metavar="X,X", help="lengths as shares of the training, 0: none (default: 0 and ten from 0.02 to 0.25)")
    add_scoring(parser)
    add_knobs(parser)
    add_access(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, print the table, draw the plot."""
    from ..engine.evaluate import named
    from ..engine.lengths import LENGTHS, compare, refuse_without_snapshots, show
    from ..engine.log import Log
    from ..engine.measure import Ask
    from ..engine.sample import load
    from ..engine.sweep import Sweep

    named(metrics := args.metrics.split(","))
    ask = Ask(metrics, args.seed, args.extractor, args.weights)
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    stds = args.stds or LENGTHS
    refuse_without_snapshots(trained, stds)
    log = Log(args.quiet or not trained.where.team.first)
    sweep = Sweep(trained, args.out / "ema.json", args.data, args.n, ask, args.label, log, access(args), **knobs(args))
    rows = compare(sweep, stds)
    if trained.where.team.first:
        table, picture = show(sweep, rows)
        print(table)
        for suffix, text in ((".md", table), (".svg", picture)):
            print(sweep.write(suffix, text))
    return 0
