"""pixelkiln data: what a source of images holds, and what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.config import apply, flat_fields, parse, to_json
from ..core.files import write_json
from ..core.images import save_png
from ..core.recipe import DataConfig
from ..core.types import UserError
from ..data.describe import Part, Survey, inspect
from ..data.sheet import contact_sheet
from ..data.twins import Repeats
from ..engine.access import available

__all__ = ["add", "run", "shares"]

OPTIONS = ("resolution", "channels", "fit", "background")  # of preparation, that change what is seen here
LISTED = 5  # lines of a kind on the terminal; --json has all


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data`."""
    parser.add_argument("source", metavar="SRC", help="as of 'train --data': digits, glyphs, shapes, hf:owner/name, or a path")
    parser.add_argument("--out", metavar="F.png", type=Path, help="write a contact sheet: some images of every class")
    parser.add_argument("--json", metavar="F", type=Path, help="write everything here, too")
    for leaf in flat_fields(DataConfig()):
        if leaf.name in OPTIONS:
            parser.add_argument(f"--data.{leaf.name}", metavar=leaf.words, dest=f"set:{leaf.name}", help=f"(default: {leaf.value or 'none'})")


def config_of(args: argparse.Namespace) -> DataConfig:
    """How the images are prepared."""
    config = DataConfig()
    for leaf in flat_fields(config):
        text = getattr(args, f"set:{leaf.name}", None)
        if text is not None:
            config = apply(config, (leaf.name,), parse(leaf.kind, text, f"--data.{leaf.name}"), leaf.name)
    return config


def shares(counts: Mapping[str, int], unit: str = "") -> str:
    """Names with their numbers, the largest first; a long tail as its length and range."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown, tail = (ranked, []) if len(ranked) <= 12 else (ranked[:10], ranked[10:])
    text = ", ".join(f"{name!r}: {n:,}" if not name.isprintable() or not name.strip() else f"{name}: {n:,}" for name, n in shown)
    if tail:
        low, high = tail[-1][1], tail[0][1]
        text += f", and {len(tail):,} more{unit} of " + (f"{low:,}" if low == high else f"{low:,} to {high:,}")
    return text


def column(part: Part, repeats: Repeats | None) -> dict[str, str]:
    """The facts of one split as people read them."""
    channels, height, width = part.shape
    found = {
        "images": f"{part.images:,}",
        "shape": f"{height} x {width}, {'grey' if channels == 1 else 'RGB'}",
        "sizes (w x h)": shares(part.sizes, " sizes"),
        "mean (of 1)": ", ".join(f"{c.mean / 255:.4f}" for c in part.channels),
        "deviation": ", ".join(f"{c.deviation / 255:.4f}" for c in part.channels),
        "range": ", ".join(f"{c.low} to {c.high}" for c in part.channels),
        "classes": f"{len(part.classes):,}; {shares(part.classes, ' classes')}" if part.classes else "none",
        "captions": f"{part.captions:,} different" if part.captions else "none",
        "extras": ", ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in part.extras.items()) or "none",
        "cannot be decoded": f"{len(part.bad):,}",
    }
    return found | ({} if repeats is None else repeated(repeats))


def repeated(found: Repeats) -> dict[str, str]:
    """Repeats in words."""
    labels = f", {found.conflicts:,} with another label" if found.conflicts else ""
    return {"repeat an earlier one": f"{found.exact:,}{labels}", "resemble one": "not sought" if found.near is None else f"{found.near:,}"}


def remarks(found: Survey) -> Iterator[str]:
    """What to know beside the table."""
    between = found.twins.between
    if between is not None:
        near = "those nearly alike not sought" if between.near is None else f"{between.near:,} nearly"
        yield f"test images that are in train: {between.exact:,} exactly, {near}"
        yield from (f"  test {p.row} is train {p.earlier} (correlation {p.correlation:.4f})" for p in between.pairs[:LISTED])
    for split, part in found.splits.items():
        yield from (f"{split}: {line}" for line in part.bad[:LISTED])
        if len(part.bad) > LISTED:
            yield f"{split}: and {len(part.bad) - LISTED:,} more"


def run(args: argparse.Namespace) -> int:
    """Survey, print, and write what was asked for."""
    if args.out is not None and args.out.suffix != ".png":
        raise UserError(f"--out {args.out}: a contact sheet is written as .png")
    found, shown = inspect(args.source, config_of(args), available() // 2)
    twins = dict(zip(found.splits, (found.twins.train, found.twins.test), strict=False))
    columns = {split: column(part, twins[split]) for split, part in found.splits.items()}
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(f"{found.name} ({found.source})"), title_justify="left")
    for name in ("", *columns):
        table.add_column(name, overflow="fold")
    for name in next(iter(columns.values())):
        table.add_row(name, *(Text(part[name]) for part in columns.values()))
    console = Console()
    console.print(table, width=max(console.width, 110) if not console.is_terminal else None)
    for line in remarks(found):
        print(line)
    if args.json is not None:
        write_json(args.json, to_json(found))
    if args.out is not None:
        save_png(args.out, contact_sheet(shown))
        print(args.out)
    return 0
