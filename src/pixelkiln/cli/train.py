"""pixelkiln train: a recipe on your images, into a run folder."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..core.errors import UserError
from ..core.listing import options
from .options import access, add_access, add_machine, parents, seconds, whole

__all__ = ["add", "add_recipe", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train` that every recipe has."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name from 'pixelkiln list', or my_file.py:my_recipe")
    parser.add_argument("--data", metavar="SRC", help="digits, glyphs, shapes, hf:owner/name, or a path: IDX folder, image folder, Parquet, .zip, .tar, .npz")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run folder to make")
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base"), help="how large the recipe's networks are")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", type=seconds, metavar="TIME", help="wall-clock time (90s, 10m, 1.5h), turned into steps after a measured warm-up")
    length.add_argument("--steps", type=whole, metavar="N", help="number of steps (default: as the recipe says)")
    length.add_argument("--images", type=whole, metavar="N", help="number of images seen (10k, 2M)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="everything random depends on it")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, exactly as it would have gone on")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="the trained run that this recipe builds on")
    parser.add_argument("--recipe", dest="code", default="", metavar="M:F",
                        help="the parent's recipe, where that is code outside the library (it will be executed)")
    parser.add_argument("--watch", default="auto", choices=("auto", "off", "warn", "rollback"), help="of collapse: warn; or go back to where all was well, "
                        "with half the rates (docs/watch.md); auto: warn for adversarial methods, else off")
    parser.add_argument("--compile", nargs="?", const="on", default="auto", choices=("auto", "on", "off"), help="torch.compile the networks (auto: off)")
    add_access(parser)
    add_machine(parser)


def add_recipe(parser: argparse.ArgumentParser, name: str, size: str) -> None:
    """The recipe's own options, typed, with their defaults."""
    group = parser.add_argument_group(f"options of {name} (size {size})")
    for o in options(name, size):
        group.add_argument(f"--{o.name}", metavar=o.words.upper() if "|" not in o.words else o.words, dest=f"set:{o.name}",
                           help=f"(default: {o.default.replace('%', '%%')})")


def run(args: argparse.Namespace) -> int:
    """Train, then write the report."""
    from ..core.runs import Run  # what needs torch is imported here, so that `--help` is quick
    from ..engine.build import load_method, resolve
    from ..engine.log import Log
    from ..engine.publish import data_of, publish
    from ..engine.sample import Trained
    from ..engine.train import Budget, Order, train
    from ..engine.where import Where

    where = Where.choose(args.device, args.precision, args.compile, args.layout, args.threads)
    begun = where.team.agree(lambda: Run(args.out).read_recipe() if args.resume and Run(args.out).recipe_file.exists() else None)
    if begun and not args.recipe:
        args.recipe = resolve(Run(args.out), begun).facts["recipe"]
    if not args.recipe:
        raise UserError("which recipe? 'pixelkiln list' shows them: pixelkiln train RECIPE --data SRC --out RUN")
    source = args.data or (begun["data"]["source"] if begun else None)
    changes = {name.removeprefix("set:"): value for name, value in vars(args).items() if name.startswith("set:") and value is not None}
    budget = Budget(args.steps, args.images, args.budget)
    command = "pixelkiln " + shlex.join(a for a in sys.argv[1:])
    order = Order(args.recipe, source or "", args.out, args.size, budget, args.seed, changes, parents(args.parent), command, args.code, args.watch)
    log = Log(args.quiet)
    done = train(order, where, args.resume, log, access(args))
    if not where.team.first:
        return 0
    trained = Trained(*load_method(done.path, args.code or args.recipe), where.alone())
    try:
        report = publish(trained, *data_of(trained, access=access(args)))
    except UserError as e:
        raise UserError(f"{done.path} is trained and saved, but its report cannot be written ({e}); --resume writes it") from e
    log.say(f"run: {done.path}")
    print(f"report: {report}")
    return 0
