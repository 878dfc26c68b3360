"""pixelkiln reproduce: an image made again from the recipe that it carries, and compared bit for bit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..pretrained.stamp import Recipe

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `reproduce`."""
    parser.add_argument("image", metavar="IMG", type=Path, help="a PNG of `pixelkiln imagine`")
    parser.add_argument("--out", metavar="F.png", type=Path, help="where the image that is made again is written; default: nowhere")
    parser.add_argument("--show", action="store_true", help="only print the recipe, as JSON")
    parser.add_argument("--device", default="same", metavar="NAME", help="cpu, cuda, cuda:1, mps, auto; same: as recorded")
    parser.add_argument("--quiet", action="store_true", help="say nothing but results and errors")


def run(args: argparse.Namespace) -> int:
    """Read, make, compare; exit status 1 where the images differ."""
    import json

    from ..core.config import to_json
    from ..core.images import read_image, save_png
    from ..engine.log import Log
    from ..pretrained.stamp import pixels, read_recipe, stamped

    recipe = read_recipe(args.image)
    if args.show:
        print(json.dumps(to_json(recipe), indent=1, ensure_ascii=False))
        return 0
    if args.out is not None and (args.out.suffix != ".png" or args.out.exists()):
        raise UserError(f"--out {args.out}: write a new .png file")
    from ..pretrained.gather import gather, require
    from ..pretrained.memory import choose_device
    from ..pretrained.studio import Studio, versions

    require()
    log = Log(args.quiet)
    setup = replace(recipe.setup, device=choose_device(recipe.setup.device if args.device == "same" else args.device))
    found = gather(setup, log.say)
    _compare_files(recipe, found.digests)
    other = [f"{name} {old} (here {versions().get(name, 'none')})" for name, old in recipe.facts.get("versions", {}).items() if versions().get(name) != old]
    if other:
        log.say(f"made with other versions: {', '.join(other)}")
    studio = Studio(found, log.say)
    done = studio.paint(recipe.orders())
    image = done[recipe.position].image
    if args.out is not None:
        save_png(args.out, image, stamped(studio.found.setup, done, recipe.position, found.digests))
    if pixels(read_image(args.image)) != recipe.pixels:
        log.say(f"{args.image} was changed after it was made; what is compared is what the recipe says of its pixels")
    if pixels(image) == recipe.pixels:
        print("identical")
        return 0
    before = read_image(args.image)
    off = (image.int() - before.int()).abs() if before.shape == image.shape else None
    print("different size" if off is None else f"different: {int((off > 0).any(0).sum())} of {off[0].numel()} pixels, by up to {int(off.max())} of 255")
    return 1


def _compare_files(recipe: Recipe, digests: dict[str, str]) -> None:
    """Errors: `UserError` for a file that is another one than when the image was made."""
    for path, digest in recipe.digests.items():
        if path in digests and digests[path] != digest:
            raise UserError(f"{path} has changed since the image was made: put the old file back")
