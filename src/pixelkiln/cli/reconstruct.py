"""pixelkiln reconstruct: images, and below each what a run makes of its code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .options import access, add_access, add_machine, parents, whole

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.sample import Trained

__all__ = ["add", "add_pictures", "chosen", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `reconstruct`."""
    parser.add_argument("run", metavar="RUN", help="a run folder, of a method that encodes")
    parser.add_argument("--out", metavar="F.png|F.npz", type=Path, required=True, help="a grid, a row of images above the row of theirs, or an array of these")
    add_pictures(parser)
    parser.add_argument("-n", type=whole, default=16, metavar="N", help="number of test images, where no --images are given")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Which images: files, folders, or some of a data set; and what all verbs with a run have."""
    parser.add_argument("--images", metavar="IMG|DIR", nargs="+", type=Path, help="images of yours, files or folders (default: test images)")
    parser.add_argument("--data", metavar="SRC", help="where images are from (default: what the run was trained on)")
    parser.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    parser.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")
    add_access(parser)
    add_machine(parser)


def chosen(args: argparse.Namespace, trained: Trained) -> Tensor | None:
    """The images that were given, uint8 (N, C, H, W), prepared as the training images were; None where none were."""
    import torch

    return torch.cat([trained.pictures(path) for path in args.images]) if args.images else None


def run(args: argparse.Namespace) -> int:
    """Encode, decode and write."""
    import torch

    from ..core.images import grid, save_png
    from ..data.npz import write_npz
    from ..engine.codes import rows_of
    from ..engine.pairs import reconstruction
    from ..engine.sample import load
    from ..metrics import psnr

    if args.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out {args.out}: write .png (a grid) or .npz")
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    images = chosen(args, trained)
    if images is None:
        data = access(args).open(args.data or trained.facts["data"]["source"], trained.opened.stage.data, "test")
        images = data.images_of(rows_of(data, args.n))
    made = torch.cat([reconstruction(trained, part) for part in torch.split(images, 100)])
    if args.out.suffix == ".npz":
        write_npz(args.out, made.permute(0, 2, 3, 1).contiguous())
    else:
        columns = min(8, len(images))
        rows = [row for pair in zip(torch.split(images, columns), torch.split(made, columns), strict=True) for row in pair]
        blank = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
        save_png(args.out, grid(torch.cat([part for row in rows for part in (row, blank.expand(columns - len(row), -1, -1, -1))]), columns))
    print(f"{args.out}: {len(images)} images, PSNR {float(psnr(images, made, data_range=255).mean()):.1f} dB")
    return 0
