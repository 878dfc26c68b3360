"""pixelkiln sample: images from a run, as a grid, a folder of PNGs, or an .npz."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .options import add_machine, bounds, parents, truncation, whole

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.types import Request
    from ..engine.sample import Trained

__all__ = ["add", "add_knobs", "knobs", "run", "write"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `sample`."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", metavar="F.png|DIR|F.npz", type=Path, required=True, help="a grid, one PNG an image, or arrays images and labels")
    parser.add_argument("-n", type=whole, default=64, metavar="N", help="number of images")
    parser.add_argument("--label", metavar="K", help="class by number or name, several with commas, or all; default: as in the training data")
    parser.add_argument("--text", metavar="T", action="append", help="a caption; several, in turn, by several --text (default: some of the training data)")
    parser.add_argument("--source", metavar="IMG|DIR", type=Path, help="an image to start from, or a folder of them, in turn")
    parser.add_argument("--mask", metavar="IMG", type=Path, help="white where the source is to be redrawn, black where it is kept")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="sample i depends on it and on i alone")
    parser.add_argument("--share", type=whole, default=1, metavar="N", help="so many images in a row have one seed: with --label all, the same noise for N classes")
    parser.add_argument("--batch", type=whole, default=250, metavar="N", help="images at a time (changes nothing but time and memory)")
    parser.add_argument("--ema-std", type=float, metavar="X", help="length of the weights' average as a share of the training, from snapshots; 0: none")
    add_knobs(parser)
    add_machine(parser)


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """What some methods can be told when they sample; a method that cannot use one refuses it."""
    group = parser.add_argument_group("sampling (a method refuses what it does not know)")
    group.add_argument("--steps", type=whole, metavar="N", help="solver steps")
    group.add_argument("--solver", metavar="S", help="ddpm, ddim, dpmpp-2m, euler, heun, … with options of its own after colons, pc-ve:snr=0.1: docs/solvers.md lists them")
    group.add_argument("--spacing", metavar="S", help="of the noise levels: karras, loglinear, time, …; default: as suits the solver")
    group.add_argument("--levels", type=bounds, metavar="LO,HI", help="the lowest and the highest noise level, between which the solver steps")
    group.add_argument("--eta", type=float, metavar="X", help="share of ancestral noise of ddim, 0 to 1")
    group.add_argument("--churn", type=float, metavar="X", help="noise added back on the way by heun (S_churn), from 0")
    group.add_argument("--guidance", type=float, metavar="W", help="weight of guidance, 1 = off")
    group.add_argument("--interval", type=bounds, metavar="LO,HI", help="noise levels between which there is guidance")
    group.add_argument("--rescale", type=float, metavar="PHI", help="how far guidance keeps the unguided contrast, 0 to 1")
    group.add_argument("--threshold", type=float, metavar="P", help="dynamic thresholding at this percentile, above 0, to 1")
    group.add_argument("--strength", type=float, metavar="X", help="how far the source is re-noised, above 0, to 1")
    group.add_argument("--truncation", type=truncation, metavar="X", help="less extreme latents, above 0: 1 is mild, 0.3 strong; resampled:X (no number beyond X), "
                       "scaled:X (none beyond 2, then times X), narrowed:X (times X); a plain X: in the way of the run")
    group.add_argument("--temperature", type=float, metavar="X", help="below 1 likelier codes, or latents nearer to their priors' means; 0: the likeliest, the means")
    group.add_argument("--top-k", type=whole, metavar="N", help="draw from the N likeliest codes only")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest codes that together reach this probability, above 0, to 1")
    group.add_argument("--parent", action="append", default=[], metavar="ROLE=RUN", help="where a parent of the run has moved to")
    group.add_argument("--recipe", metavar="M:F", help="the recipe's code, for a run made by code outside the library (it will be executed)")


def knobs(args: argparse.Namespace) -> dict[str, Any]:
    """The knobs that were given."""
    names = ("steps", "solver", "spacing", "levels", "eta", "churn", "guidance", "interval", "rescale", "threshold", "strength", "truncation",
             "temperature", "top_k", "top_p")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def write(images: Tensor, out: Path, labels: Tensor | None, classes: tuple[str, ...], columns: int | None = None) -> None:
    """Images uint8 (N, C, H, W) as the name of `out` says."""
    from ..core.images import grid, save_png
    from ..data.npz import write_npz

    if out.suffix == ".npz":
        write_npz(out, images.permute(0, 2, 3, 1).contiguous(), labels, classes)
    elif out.suffix == ".png":
        save_png(out, grid(images, columns))
    else:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty: choose another folder")
        for i, image in enumerate(images):
            name = f"{i:06d}.png" if labels is None else f"{classes[int(labels[i])].replace('/', '-')}/{i:06d}.png"
            save_png(out / name, image)


def request_of(args: argparse.Namespace, trained: Trained) -> Request:
    """The order that the arguments say."""
    source = trained.pictures(args.source) if args.source else None
    mask = trained.pictures(args.mask, channels=1)[0] if args.mask else None
    return trained.request(args.n, args.seed, args.label, args.text, source, mask, args.share, **knobs(args))


def _check(out: Path) -> None:
    """Refuse what cannot be written, before the work."""
    if out.suffix not in (".png", ".npz", ""):
        raise UserError(f"--out {out}: write .png (a grid), .npz, or a folder without suffix")
    if out.suffix == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: choose another --out")


def run(args: argparse.Namespace) -> int:
    """Sample and write."""
    from ..core.types import Ability
    from ..engine.log import Log
    from ..engine.parallel import joined
    from ..engine.sample import generate, load

    joined().agree(lambda: _check(args.out))
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads, args.ema_std)
    request = request_of(args, trained)
    first = trained.where.team.first
    log = Log(args.quiet or not first)
    start = time.perf_counter()
    with log.meter("sample", args.n, unit="images") as meter:
        images = generate(trained.method, request, trained.where, args.batch, meter.at)
    spent = time.perf_counter() - start
    if not first:
        return 0
    columns = len(trained.classes) if args.label == "all" and Ability.LABEL in trained.method.abilities else None
    write(images, args.out, request.cond.label, trained.classes, columns)
    log.say(f"{args.n} images in {spent:.1f} s ({args.n / spent:.1f} images/s)")
    print(args.out)
    return 0
