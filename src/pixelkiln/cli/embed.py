"""pixelkiln embed: the codes of images, as arrays."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import UserError
from .options import access, parents
from .reconstruct import add_pictures, chosen

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `embed`."""
    parser.add_argument("run", metavar="RUN", help="a run folder, of a method that encodes")
    parser.add_argument("--out", metavar="F.npz", type=Path, required=True, help="arrays: codes (N, ...), and labels, classes and factor.NAME where there are such")
    add_pictures(parser)
    parser.add_argument("--split", choices=("train", "test", "all"), default="train", help="of the data; all: of a source without splits of its own")


def run(args: argparse.Namespace) -> int:
    """Encode and write."""
    import numpy as np

    from ..data import ImageSet
    from ..data.npz import write_arrays
    from ..engine.codes import embed, rows_of
    from ..engine.log import Log
    from ..engine.sample import load

    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: write .npz")
    trained = load(args.run, args.device, args.precision, args.recipe, parents(args.parent), args.layout, args.threads)
    images = chosen(args, trained)
    if images is not None:
        data = ImageSet(images, None, ())
    else:
        data = access(args).open(args.data or trained.facts["data"]["source"], trained.opened.stage.data, args.split)
    with Log(args.quiet).meter("embed", len(data), unit="images") as meter:
        codes = embed(trained, data, rows_of(data), meter.at)
    parts = {"codes": codes.numpy(), **{f"factor.{name}": values.numpy() for name, values in data.factors.items()}}
    if data.labels is not None:
        parts |= {"labels": data.labels.numpy(), "classes": np.array(list(data.classes), dtype=np.str_)}
    write_arrays(args.out, parts)
    print(f"{args.out}: codes {' x '.join(map(str, codes.shape))}, {str(codes.dtype).removeprefix('torch.')}")
    return 0
