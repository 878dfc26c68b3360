"""pixelkiln traverse: one unit of the latent at a time, from one end to the other, as a grid or a GIF."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..core.errors import UserError
from .options import add_machine, parents, whole

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `traverse`."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", metavar="F.png|F.gif", type=Path, required=True, help="a grid, one row a unit, or an animation, one picture a unit")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--image", metavar="IMG", type=Path, help="around an image, for a method that encodes")
    start.add_argument("--seed", type=int, default=0, metavar="N", help="around the latent of this seed")
    parser.add_argument("--units", type=units, metavar="A,B", help="numbers of units from 0, in the order of the rows (default: the ten that vary most over "
                        "training images where the method encodes, else the first ten)")
    parser.add_argument("--span", type=deviations, default=3.0, metavar="X", help="from -X to X, in deviations of the latent")
    parser.add_argument("--steps", type=several, default=9, metavar="N", help="images of a row")
    parser.add_argument("--label", metavar="K", help="class by number or name")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    parser.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")
    add_machine(parser)


def units(text: str) -> list[int]:
    """Whole numbers from 0 with commas between them, each once, in their order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of units: write 0,3,7")
    return list(dict.fromkeys(map(int, parts)))


def deviations(text: str) -> float:
    """A number above 0."""
    found = re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?|\.[0-9]+", text.strip())
    if not found or not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0: write 3")
    return float(text)


def several(text: str) -> int:
    """A whole number from 2."""
    if (found := whole(text)) < 2:
        raise argparse.ArgumentTypeError("a row needs 2 images at least: one for each end")
    return found


def run(args: argparse.Namespace) -> int:
    """Traverse and write."""
    from ..core.images import grid, save_gif, save_png
    from ..engine.sample import load
    from ..engine.traverse import traverse

    if args.out.suffix not in (".png", ".gif"):
        raise UserError(f"--out {args.out}: write .png (a grid) or .gif (an animation)")
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    image = trained.pictures(args.image)[0] if args.image else None
    images, rows = traverse(trained, args.seed, image, args.units, args.span, args.steps, args.label)
    named = ",".join(map(str, rows))
    if args.out.suffix == ".gif":
        frames = images.transpose(0, 1)  # (steps, U, C, H, W)
        save_gif(args.out, [grid(f) for f in [*frames, *frames.flip(0)[1:-1]]], fps=8)
    else:
        save_png(args.out, grid(images.flatten(0, 1), args.steps), {"units": named, "span": f"{args.span:g}"})
    print(f"{args.out}: units {named}, from {-args.span:g} to {args.span:g}")
    return 0
