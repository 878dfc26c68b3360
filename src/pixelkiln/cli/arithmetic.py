"""pixelkiln arithmetic: pictures with an attribute added, and another taken away, in the space of codes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..core.errors import UserError
from .options import access, parents, whole
from .reconstruct import add_pictures, chosen
from .traverse import several

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `arithmetic`."""
    what = "a class by name or number, or FACTOR=N, FACTOR=high, FACTOR=low of images whose factors are known"
    parser.add_argument("run", metavar="RUN", help="a run folder, of a method that encodes images as vectors")
    parser.add_argument("--add", metavar="A", required=True, help=what)
    parser.add_argument("--remove", metavar="B", help="likewise (default: whatever is not A)")
    parser.add_argument("--out", metavar="F.png|F.gif", type=Path, required=True, help="a grid, one row an image, itself and then a = 0 to X; or an animation")
    add_pictures(parser)
    parser.add_argument("-n", type=whole, default=8, metavar="N", help="number of test images that have B, where no --images are given")
    parser.add_argument("--scale", type=number, default=1.0, metavar="X", help="z + a (mean code of A - mean code of B), a from 0 to X")
    parser.add_argument("--steps", type=several, default=6, metavar="N", help="images of a row")
    parser.add_argument("--means", type=whole, default=2000, metavar="N", help="training images behind each of the means, at most")


def number(text: str) -> float:
    """A finite number that is not 0."""
    try:
        if math.isfinite(found := float(text)) and found:
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number other than 0: write 1.5")


def run(args: argparse.Namespace) -> int:
    """Find the direction, move the images and write."""
    import torch

    from ..core.images import grid, save_gif, save_png
    from ..engine.arithmetic import direction, having, moved
    from ..engine.sample import load

    if args.out.suffix not in (".png", ".gif"):
        raise UserError(f"--out {args.out}: write .png (a grid) or .gif (an animation)")
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    source, how = args.data or trained.facts["data"]["source"], trained.opened.stage.data
    images = chosen(args, trained)
    found = direction(trained, access(args).open(source, how, "train"), args.add, args.remove, args.means)
    if images is None:
        test = access(args).open(source, how, "test")
        rows = (having(test, args.remove) if args.remove else ~having(test, args.add)).nonzero()[:, 0]
        images = test.images_of(rows[: args.n])
    made = moved(trained, images, found.d, args.scale, args.steps)  # (n, steps, C, H, W)
    if args.out.suffix == ".gif":
        frames = made.transpose(0, 1)
        save_gif(args.out, [grid(f) for f in [*frames, *frames.flip(0)[1:-1]]], fps=8)
    else:
        beside = torch.cat([images[:, None], made], dim=1).flatten(0, 1)
        save_png(args.out, grid(beside, args.steps + 1), {"add": args.add, "remove": args.remove or "", "scale": f"{args.scale:g}"})
    told = f"codes of {found.has} and {found.lacks} images, {float(found.d.norm()):.3g} apart, a from 0 to {args.scale:g}"
    print(f"{args.out}: {args.add} less {args.remove or 'the others'}, {told}")
    return 0
