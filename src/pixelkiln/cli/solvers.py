"""pixelkiln solvers: one run, all solvers, scores against the number of network evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import access, add_access, add_machine, numbers, parents, whole, wholes

__all__ = ["add", "add_scoring", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `solvers`."""
    parser.add_argument("run", metavar="RUN", help="a run folder of a diffusion model")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for solvers.json, .md and .svg; what it has is not measured again")
    parser.add_argument("--solvers", default="all", metavar="A,B", help="names, or all; options of one after colons, restart:repeats=4")
    parser.add_argument("--evaluations", type=wholes, metavar="N,N", help="columns: at most so many network evaluations (default: 1,2,3,5,8,10,15,20,30,50)")
    parser.add_argument("--guidance", type=numbers, metavar="W,W", help="guidance weights, each with every solver (default: the run's own)")
    parser.add_argument("--spacing", metavar="A,B", help="spacings of the noise levels, each with every solver (default: each solver's own)")
    parser.add_argument("--ema-std", type=float, metavar="X", help="length of the weights' average as a share of the training, from snapshots; 0: none")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    parser.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")
    add_scoring(parser)
    add_access(parser)
    add_machine(parser)


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """How each setting is scored."""
    group = parser.add_argument_group("scores (of the same seeds for all)")
    group.add_argument("--data", metavar="SRC", help="the real images (default: what it was trained on)")
    group.add_argument("-n", type=whole, default=2000, metavar="N", help="samples for each score")
    group.add_argument("--metrics", default="fd", metavar="A,B", help="as in 'evaluate'; the first is plotted")
    group.add_argument("--extractor", metavar="NAME", help="as in 'evaluate'")
    group.add_argument("--weights", metavar="W", help="as in 'evaluate'")
    group.add_argument("--label", metavar="K", help="classes of the samples; default: as in the training data")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and of the metrics' subsets")


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, print the table, draw the plot."""
    from ..engine.evaluate import named
    from ..engine.log import Log
    from ..engine.measure import Ask
    from ..engine.sample import load
    from ..engine.solving import EVALUATIONS, compare, known, refuse_without_solver, settings, show
    from ..engine.sweep import Sweep

    lines = settings(known(args.solvers), args.guidance or [None], args.spacing.split(",") if args.spacing else [None])
    named(metrics := args.metrics.split(","))
    ask = Ask(metrics, args.seed, args.extractor, args.weights)
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads, args.ema_std)
    refuse_without_solver(trained)
    log = Log(args.quiet or not trained.where.team.first)
    budgets = args.evaluations or EVALUATIONS
    sweep = Sweep(trained, args.out / "solvers.json", args.data, args.n, ask, args.label, log, access(args))
    found = compare(sweep, lines, budgets)
    if trained.where.team.first:
        tables, picture = show(sweep, found, budgets)
        print(tables)
        for suffix, text in ((".md", tables), (".svg", picture)):
            print(sweep.write(suffix, text))
    return 0
