"""pixelkiln imagine: images of a pretrained text-to-image pipeline, each with its recipe; walks between prompts, styles, editing."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .options import bounds, count, whole
from .prompting import Plan, area, plan, seed_of, setup_of, sides

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.log import Log
    from ..pretrained.gather import Gathered
    from ..pretrained.studio import Studio

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `imagine`."""
    parser.add_argument("model", metavar="MODEL", help="owner/name[@revision] on the Hub, a folder, or a .safetensors file")
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", help="what is to be seen: (word:1.3) weighs, {a|b} is both, __name__ a line of name.txt")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder: one PNG an image, and all on one sheet")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="more prompts, one a line")
    parser.add_argument("-n", type=whole, default=1, metavar="N", help="images a prompt, with the seeds from --seed on")
    parser.add_argument("--seed", type=seed_of, default=0, metavar="N", help="an image depends on its own seed alone")
    parser.add_argument("--negative", default="", metavar="T", help="what is not to be seen")
    parser.add_argument("--style", action="append", default=[], metavar="S", help="'CONTENT, in the style of S' (or S with {} for the content); several")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=V,V", help="settings side by side: steps=10,25, solver=euler,ddim; several")
    parser.add_argument("--wildcards", metavar="DIR", type=Path, help="the folder of the files that __name__ is taken from")
    parser.add_argument("--literal", action="store_true", help="prompts hold no weights, alternatives or wildcards")
    _add_sampling(parser)
    _add_editing(parser)
    group = parser.add_argument_group("a walk between prompts")
    group.add_argument("--frames", type=whole, metavar="N", help="that many images on the way between the prompts: frames, strip, GIF, MP4")
    group.add_argument("--path", choices=("slerp", "lerp"), default="slerp", help="of the embeddings, along the sphere or straight")
    group.add_argument("--to-seed", type=seed_of, metavar="N", help="noise goes along the sphere to that of this seed; default: it stays")
    group.add_argument("--fps", type=float, default=12.0, metavar="X", help="frames a second")
    group = parser.add_argument_group("what is written")
    group.add_argument("--safety", choices=("blank", "record", "off"), default="blank", help="a flagged image: black, only noted; or no check")
    group.add_argument("--watermark", choices=("auto", "on", "off"), default="auto", help="auto: where the model supplies one")
    group.add_argument("--bare", action="store_true", help="no recipe in the images")
    group.add_argument("--preview", type=count, default=0, metavar="K", help="DIR/preview.png after every K steps; 0: none")
    group.add_argument("--font", metavar="FILE", help="for titles in scripts that the built-in font lacks")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (None: as the pipeline has it)")
    group.add_argument("--steps", type=whole, metavar="N", help="solver steps; 25 where the solver is chosen here")
    group.add_argument("--solver", default="auto", metavar="S", help="own, ddim, dpmpp-2m, euler, euler-a, heun, unipc, …; auto: dpmpp-2m for U-Nets")
    group.add_argument("--spacing", default="model", metavar="S", help="of noise levels: model, karras, exponential, beta")
    group.add_argument("--guidance", type=float, metavar="W", help="weight of guidance")
    group.add_argument("--true-guidance", type=float, metavar="W", help="weight of classifier-free guidance of models that have guidance distilled")
    group.add_argument("--image-guidance", type=float, metavar="W", help="weight of the source, of models that edit by instruction")
    group.add_argument("--size", type=area, metavar="WxH", help="of the images")
    group.add_argument("--batch", type=whole, default=1, metavar="N", help="images at a time")
    group = parser.add_argument_group("the model and where it runs")
    group.add_argument("--variant", default="", metavar="V", help="of the weights' files, for instance fp16")
    group.add_argument("--config", default="", metavar="DIR|ID", help="the pipeline whose configuration a single file has")
    group.add_argument("--update", action="store_true", help="ask the Hub for the newest revision; else the one that was used first")
    group.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"), help="auto: bf16 or fp16 on a GPU, fp32 on a CPU")
    group.add_argument("--memory", default="auto", metavar="LEVEL", help="none, tiling, slicing, offload, sequential; auto: by what is free")
    group.add_argument("--quiet", action="store_true", help="say nothing but results and errors")


def _add_editing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("from an image")
    group.add_argument("--source", default="", metavar="IMG", help="an image to start from")
    group.add_argument("--strength", type=float, metavar="X", help="how far the source is re-noised, above 0, to 1")
    group.add_argument("--mask", default="", metavar="IMG", help="white where the source is redrawn; all else stays as it is, bit for bit")
    group.add_argument("--outpaint", type=sides, metavar="L,T,R,B", help="pixels to add around the source")
    group.add_argument("--feather", type=count, default=8, metavar="N", help="pixels inside the mask over which the old fades into the new")
    group.add_argument("--control", nargs=2, action="append", default=[], metavar=("MODEL", "IMG"), help="a ControlNet and its map (edges:IMG: computed)")
    group.add_argument("--control-weight", type=float, action="append", default=[], metavar="W", help="of each control, in turn")
    group.add_argument("--control-interval", type=bounds, action="append", default=[], metavar="LO,HI", help="share of the steps, of each control")
    group.add_argument("--ip-adapter", nargs=2, action="append", default=[], metavar=("MODEL", "IMG"), help="an image that prompts, through an adapter")
    group.add_argument("--ip-scale", type=float, action="append", default=[], metavar="W", help="of each adapter, in turn")
    group.add_argument("--image-encoder", default="", metavar="DIR|ID", help="that the adapters were trained with")
    group.add_argument("--lora", action="append", default=[], metavar="MODEL[=W]", help="low-rank weights: a file, or owner/name[/file]; several")


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before the work."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"{args.out} is not an empty folder: choose another --out")
    if args.out.suffix in (".png", ".gif", ".mp4", ".jpg"):
        raise UserError(f"--out {args.out}: write a folder without suffix")
    if args.strength is not None and not 0 < args.strength <= 1:
        raise UserError(f"--strength {args.strength:g} is not above 0 and up to 1: correct it")
    if args.strength is not None and not args.source:
        raise UserError("--strength is of a source: add --source IMG")
    if not 0 < args.fps <= 50:
        raise UserError(f"--fps {args.fps:g}: choose a rate above 0 and up to 50")


def run(args: argparse.Namespace) -> int:
    """Find the model, paint, write."""
    from ..engine.log import Log
    from ..pretrained.gather import gather, require

    _check(args)
    wanted = plan(args)
    require()
    log = Log(args.quiet)
    found = gather(setup_of(args), log.say, args.update)
    log.say(f"{found.setup.model}  {found.setup.device}, {found.setup.precision}")
    images: dict[int, Tensor] = {}
    start = time.perf_counter()
    stopped = False
    try:
        _paint(args, wanted, found, images, log)
    except KeyboardInterrupt:
        stopped = True
    (args.out / "preview.png").unlink(missing_ok=True)
    if images:
        _sheets(args, wanted, images, log)
        spent = time.perf_counter() - start
        log.say(f"{len(images)} images in {spent:.1f} s" if not stopped else f"stopped: {len(images)} of {len(wanted.orders)} images are in {args.out}")
        print(args.out)
    return 130 if stopped else 0


def _paint(args: argparse.Namespace, wanted: Plan, found: Gathered, images: dict[int, Tensor], log: Log) -> None:
    """Batch by batch; each image is on disk before the next batch begins."""
    from ..core.images import save_png
    from ..pretrained.order import batches
    from ..pretrained.stamp import stamped
    from ..pretrained.studio import Studio
    from ..pretrained.watch import Watch

    width, height = args.size or (512, 512)
    studio = Studio(found, log.say, args.batch, width * height)
    orders = wanted.orders
    for order in orders:  # all mistakes before the first image
        studio.completed(order)
    groups = batches(orders, args.batch, [studio.alone(order) for order in orders])
    with log.meter("evaluations", _evaluations(studio, wanted, groups), unit="evaluations") as meter:
        watch = Watch(meter.at, lambda batch: save_png(args.out / "preview.png", _tiled(batch)), args.preview)
        for group in groups:
            done = studio.paint([orders[i] for i in group], watch)
            for k, i in enumerate(group):
                meta = None if args.bare else stamped(studio.found.setup, done, k, found.digests)
                save_png(args.out / f"{i:06d}.png", done[k].image, meta)
                images[i] = done[k].image
            flagged = [i for k, i in enumerate(group) if str(done[k].facts["safety"]).startswith("flagged")]
            if flagged:
                log.say(f"the safety check flagged {', '.join(f'{i:06d}.png' for i in flagged)}: {done[0].facts['safety'].split(', ')[-1]}"
                        if len(flagged) == len(group) == 1 else f"the safety check flagged {', '.join(f'{i:06d}.png' for i in flagged)}")


def _tiled(batch: Tensor) -> Tensor:
    from ..core.images import grid

    return grid(batch)


def _evaluations(studio: Studio, wanted: Plan, groups: list[list[int]]) -> int:
    """About how many evaluations there will be, for the bar."""
    return sum(studio.completed(wanted.orders[group[0]]).steps or 0 for group in groups)


def _sheets(args: argparse.Namespace, wanted: Plan, images: dict[int, Tensor], log: Log) -> None:
    """The sheet; of a walk the strip, the GIF and the MP4."""
    import torch

    from ..core.images import grid, save_gif, save_png
    from ..pretrained.sheets import ffmpeg, sheet, write_mp4

    if not args.frames:
        save_png(args.out / "sheet.png", sheet(images, len(wanted.orders), wanted.columns, wanted.titles, wanted.heads, wanted.sides, args.font))
        return
    frames = [images[i] for i in sorted(images)]
    save_png(args.out / "strip.png", grid(torch.stack(frames), len(frames), scale=1))
    save_gif(args.out / "walk.gif", [*frames, *frames[-2:0:-1]], args.fps)
    program = ffmpeg()
    if program:
        write_mp4(args.out / "walk.mp4", frames, args.fps, program)
    else:
        log.say("no walk.mp4: it needs ffmpeg on the PATH, or pip install imageio-ffmpeg")
