"""pixelkiln interpolate: a walk between two seeds or two images, as a strip or a GIF."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import UserError
from .options import add_machine, parents, whole

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `interpolate`."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", metavar="F.png|F.gif", type=Path, required=True, help="a strip or an animation")
    parser.add_argument("--frames", type=whole, default=12, metavar="N", help="number of images")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="where it begins")
    parser.add_argument("--to-seed", type=int, default=1, metavar="N", help="where it ends")
    parser.add_argument("--images", nargs=2, type=Path, metavar="IMG", help="between two images, for a method that encodes")
    parser.add_argument("--label", metavar="K", help="class by number or name")
    parser.add_argument("--path", choices=("slerp", "lerp"), default="slerp", help="along the sphere or straight")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    parser.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Walk and write."""
    from ..core.images import grid, save_gif, save_png
    from ..engine.sample import load

    if args.out.suffix not in (".png", ".gif"):
        raise UserError(f"--out {args.out}: write .png (a strip) or .gif (an animation)")
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    ends = (trained.pictures(args.images[0])[0], trained.pictures(args.images[1])[0]) if args.images else None
    frames = trained.interpolate(args.frames, args.seed, args.to_seed, args.label, ends, args.path)
    if args.out.suffix == ".gif":
        there_and_back = [*frames, *frames.flip(0)[1:-1]]
        save_gif(args.out, [grid(f[None], 1, pad=0) for f in there_and_back])
    else:
        save_png(args.out, grid(frames, len(frames)))
    print(args.out)
    return 0
