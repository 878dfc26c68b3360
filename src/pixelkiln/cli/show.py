"""pixelkiln show: what a run is, how it was trained, its curves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import add_machine, parents

__all__ = ["add", "run", "spark"]

BARS = "▁▂▃▄▅▆▇█"


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `show`."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    parser.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")
    add_machine(parser)


def spark(values: Sequence[float], width: int = 48) -> str:
    """A curve as a line of bars, the means of `width` parts."""
    n = min(width, len(values))
    parts = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    means = [sum(p) / len(p) for p in parts]
    low, high = min(means), max(means)
    return "".join(BARS[round((m - low) / (high - low) * 7) if high > low else 3] for m in means)


def run(args: argparse.Namespace) -> int:
    """Print facts, curves and the newest evaluation."""
    from ..engine.publish import evaluation_of, facts_for_people
    from ..engine.sample import load

    trained = load(args.run, args.device, "fp32", args.recipe, parents(args.parent), layout="channels-last")
    opened = trained.opened
    for name, value in facts_for_people(trained).items():
        print(f"{name:>15}  {value}")
    print(f"{'parameters':>15}  {opened.facts['parameters']:,}")
    print(f"{'data':>15}  {opened.facts['data']['images']:,} images {tuple(opened.facts['data']['shape'])}, {len(opened.info.classes)} classes")
    print(f"{'checkpoint':>15}  {opened.run.checkpoint().path}")
    records = opened.run.records()
    names = [k for r in records[:1] for k in r if k not in ("step", "seconds")]
    for name in names:
        values = [float(r[name]) for r in records if name in r]
        if len(values) > 1:
            print(f"{name:>15}  {spark(values)}  {values[0]:.4g} -> {values[-1]:.4g}")
        elif values:
            print(f"{name:>15}  {values[0]:.4g}")
    for m in (evaluation_of(opened.run) or {"metrics": []})["metrics"]:
        floor = "" if m["floor"] is None else f"  (real test images {m['floor']:.4g})"
        print(f"{m['name']:>15}  {m['value']:.4g}{floor}")
    return 0
