"""Embedded characters: every printable one of the fonts that matplotlib ships, black on white, endless by small affine changes.

`glyphs[:SUBSET][,split=font|character|draw][,num=N]`, for instance `glyphs:digits` or `glyphs:greek,split=character`. The label is the
character; the second attribute is the font; the caption has both. Image i of a split is a pure function of (subset, split, i).

A character counts where a font's own table (cmap) has it, Unicode calls it a letter, number, punctuation or symbol, and it leaves ink.
Not used: Last Resort, whose glyph of every character is a box, and what TeX's fonts (cm...) have at a code point where Unicode has
another character.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.config import nearest
from ..core.recipe import DataConfig
from ..core.rng import permutation, uniform
from ..core.types import UserError
from .images import ImageSet, Split, hold_out
from .prepare import size_for, to_channels

__all__ = ["SPLITS", "SUBSETS", "Drawn", "Font", "Glyphs", "Spec", "draw", "drawn", "fineness", "fonts", "glyphs", "open_glyphs", "parse_spec"]

NUM = 20_000  # train images, unless there are more characters or the source says how many; a tenth as many test images
SIDE, SMALLEST = 32, 8
EM, BASELINE = 0.75, 0.72  # size of the type, and where its baseline lies, as shares of the side
MARGIN = 1 / 32  # between ink and border
TURN, SCALE, SHEAR, SHIFT = pi / 18, 1.1, 0.2, 0.06  # largest changes: rotation, factor (c stays smaller than C), slant, shift in sides
PROBE = 48  # pixels an em at which ink is looked for
ALNUM = frozenset(string.ascii_letters + string.digits)

SUBSETS: dict[str, Callable[[str], bool]] = {
    "alnum": lambda c: c in ALNUM,
    "all": lambda c: True,
    "arrows": lambda c: " ARROW" in unicodedata.name(c),
    "ascii": lambda c: c.isascii(),
    "cyrillic": lambda c: c.isalpha() and unicodedata.name(c).startswith("CYRILLIC"),
    "digits": lambda c: c in string.digits,
    "greek": lambda c: c.isalpha() and unicodedata.name(c).startswith("GREEK"),
    "latin": lambda c: c.isalpha() and unicodedata.name(c).startswith("LATIN"),
    "letters": lambda c: c in string.ascii_letters,
    "math": lambda c: unicodedata.category(c) == "Sm",
}
SPLITS = ("font", "character", "draw")
TEX = {"cmex10": frozenset[str](), "cmmi10": frozenset(string.ascii_letters), "cmsy10": frozenset(string.ascii_uppercase)}  # else ALNUM
HELD_OUT = ("STIX", "cmss")  # designs of the test split, where it is by font


class Font(NamedTuple):
    """A font: its name as people know it, its file, and the printable characters that its table has."""

    name: str
    file: Path
    chars: frozenset[str]

    def at(self, pixels: float) -> ImageFont.FreeTypeFont:
        """The font with so many pixels an em; the simple layout takes each glyph from the table as it is."""
        return ImageFont.truetype(str(self.file), pixels, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class Spec:
    """What the name of the source says."""

    subset: str = "alnum"
    split: str = "font"
    num: int | None = None


class Glyphs(NamedTuple):
    """The images of one split: classes, all characters; chars, rows of `classes` that this split has; pool[c], rows of `fonts()` that have
    class c; num images."""

    classes: tuple[str, ...]
    chars: Tensor
    pool: dict[int, list[int]]
    num: int


def parse_spec(text: str) -> Spec:
    """What stands behind `glyphs:`. Errors: `UserError` with the nearest name."""
    spec, parts = Spec(), [part.strip() for part in text.split(",") if part.strip()]
    for place, part in enumerate(parts):
        name, sign, value = part.partition("=")
        if not sign and place == 0:
            if part not in SUBSETS:
                raise UserError(f"glyphs:{text}: no subset {part!r}; {nearest(part, SUBSETS)}")
            spec = replace(spec, subset=part)
        elif name == "split" and value in SPLITS:
            spec = replace(spec, split=value)
        elif name == "num" and value.isascii() and value.isdigit() and int(value) >= 1:
            spec = replace(spec, num=int(value))
        elif name == "split":
            raise UserError(f"glyphs:{text}: no split by {value!r}; {nearest(value, SPLITS)}")
        elif name == "num":
            raise UserError(f"glyphs:{text}: num={value} is not a whole number above 0")
        else:
            raise UserError(f"glyphs:{text}: no option {name!r}; {nearest(name, ('split', 'num'))}")
    return spec


def _printable(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNPS"


@cache
def fonts() -> tuple[Font, ...]:
    """The fonts in matplotlib's data folder that have characters of their own, sorted by file. Errors: `UserError` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
    except ImportError:
        raise UserError("glyphs are drawn with the fonts of matplotlib: pip install 'pixelkiln[glyphs]'") from None
    found = []
    for file in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        chars = frozenset[str]()
        if file.stem.startswith("cm"):
            chars = TEX.get(file.stem, ALNUM)
        elif not file.stem.startswith("LastResort"):
            chars = frozenset(c for c in map(chr, FT2Font(str(file)).get_charmap()) if _printable(c))
        if chars:
            family, style = (part or "" for part in ImageFont.truetype(str(file), 16).getname())
            plain = style in ("", "Book", "Regular") or family.endswith(f" {style}")
            found.append(Font(family if plain else f"{family} {style}", file, chars))
    return tuple(found)


@cache
def _inked(row: int) -> Callable[[str], bool]:
    """Whether a character leaves ink in font `row`."""
    font = fonts()[row].at(PROBE)
    return cache(lambda char: font.getmask(char, anchor="ls").getbbox() is not None)


@cache
def glyphs(spec: Spec, split: str) -> Glyphs:
    """What the split holds. Split by font: STIX and Computer Modern Sans are test, and characters that only one side has are left out;
    by character: each tenth is test; by draw: both have all of both, and differ in the affine changes.

    Errors: `UserError` where the split would be empty.
    """
    wanted = SUBSETS[spec.subset]
    having: dict[str, list[int]] = {}
    for row, font in enumerate(fonts()):
        for char in font.chars:
            if wanted(char) and _inked(row)(char):
                having.setdefault(char, []).append(row)
    held = [font.file.stem.startswith(HELD_OUT) for font in fonts()]
    if spec.split == "font":
        having = {char: rows for char, rows in having.items() if len({held[row] for row in rows}) == 2}
    classes = tuple(sorted(having))
    chars = torch.arange(len(classes))
    if spec.split == "character":
        chars = hold_out(len(classes), "test" if split == "test" else "train", f"glyphs:{spec.subset}")
    pool = {c: having[classes[c]] for c in chars.tolist()}
    if spec.split == "font":
        pool = {c: [row for row in rows if held[row] == (split == "test")] for c, rows in pool.items()}
    num = (spec.num or NUM) if split == "train" else (spec.num or NUM) // 10
    return Glyphs(classes, chars, pool, max(num, 1 if spec.num else len(chars)))


def _changes(u: Tensor) -> Tensor:
    """Uniform numbers (5, n) to matrices and shifts (n, 2, 3) about the center: rotation of a slanted, scaled glyph; y points down."""
    turn, scale, shear, right, down = 2 * u - 1
    turn, size = turn * TURN, SCALE**scale
    rows = [size * turn.cos(), size * (shear * SHEAR * turn.cos() - turn.sin()), right * SHIFT]
    rows += [size * turn.sin(), size * (shear * SHEAR * turn.sin() + turn.cos()), down * SHIFT]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def draw(face: ImageFont.FreeTypeFont, char: str, change: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """One glyph, uint8 (side, side), its ink 255, by a face of EM * side * fineness(side) pixels an em: upright, with its ink centered
    sideways, then p -> A p + t about the center for the change (A | t) (2, 3), y down. What would reach into the margin is made smaller,
    then moved back. Drawn at several times the side, and averaged."""
    full = side * fineness(side)
    start_x, start_y, end_x, end_y = (int(z) for z in face.getbbox(char, anchor="ls"))  # holds the ink and the way to the next glyph
    ink = Image.new("L", (end_x - start_x, end_y - start_y))
    ImageDraw.Draw(ink).text((-start_x, -start_y), char, 255, face, anchor="ls")
    left, top, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    ink = ink.crop((left - 2, top - 2, right + 2, bottom + 2))
    matrix, shift = change[:, :2], change[:, 2] * full
    middle = np.array([0, (BASELINE - 0.5) * full + start_y + (top + bottom) / 2])  # of the ink, from the center of the image
    reach = np.abs(matrix) @ (np.array([right - left, bottom - top]) / 2)
    room = (0.5 - MARGIN) * full
    shrink = min(1.0, *(room / reach))
    matrix, reach = shrink * matrix, shrink * reach
    center = full / 2 + np.clip(matrix @ middle + shift, reach - room, room - reach)  # of the ink, in the image
    back = np.linalg.inv(matrix)
    start = np.array(ink.size) / 2 - back @ center
    moved = ink.transform((full, full), Image.Transform.AFFINE, (*back[0], start[0], *back[1], start[1]), Image.Resampling.BILINEAR)
    return np.asarray(moved.reduce(fineness(side)))


def fineness(side: int) -> int:
    """How many times the side glyphs are drawn at before they are averaged."""
    return max(2, min(8, 128 // side))


class Drawn(NamedTuple):
    """What n images show: label (n,), rows of the classes; font (n,), rows of `fonts()`; change (n, 2, 3)."""

    label: Tensor
    font: Tensor
    change: Tensor


def drawn(which: Glyphs, split: str, index: Tensor) -> Drawn:
    """What the images `index` (n,) of a split show: each run of len(chars) images is a permutation of the characters, in fonts at random."""
    runs, places = index // len(which.chars), index % len(which.chars)
    order = {run: permutation(len(which.chars), "glyphs", split, run) for run in set(runs.tolist())}
    label = which.chars[torch.tensor([int(order[run][place]) for run, place in zip(runs.tolist(), places.tolist(), strict=True)])]
    share = uniform(index, "glyphs", split, "font").tolist()
    pools = [which.pool[c] for c in label.tolist()]
    font = torch.tensor([rows[int(u * len(rows))] for rows, u in zip(pools, share, strict=True)])
    names = ("turn", "scale", "shear", "right", "down")
    return Drawn(label, font, _changes(torch.stack([uniform(index, "glyphs", split, name) for name in names])))


def open_glyphs(config: DataConfig, split: Split, text: str = "") -> ImageSet:
    """The source `glyphs:text`: grey, native 32 x 32 or drawn at the resolution asked for (8 at least); texts; extras: font (N,) int64; factors: character, font.

    Errors: `UserError` as `parse_spec`, `fonts` and `glyphs`.
    """
    spec = parse_spec(text)
    if split == "all":
        raise UserError("glyphs has a train and a test split: ask for one of them")
    wanted = config.resolution or SIDE
    side = size_for(wanted, wanted, config)[0]
    if side < SMALLEST:
        raise UserError(f"glyphs cannot be told apart at {side} pixels: pass --data.resolution {SMALLEST} or more")
    which = glyphs(spec, split)
    found = drawn(which, split, torch.arange(which.num))
    faces = cache(lambda row: fonts()[row].at(EM * side * fineness(side)))
    images = torch.empty((which.num, 1, side, side), dtype=torch.uint8)
    for image, label, row, change in zip(images.numpy(), found.label.tolist(), found.font.tolist(), found.change.numpy(), strict=True):
        image[0] = 255 - draw(faces(row), which.classes[label], change, side)
    pairs = zip(found.label.tolist(), found.font.tolist(), strict=True)
    texts = tuple(f"{unicodedata.name(which.classes[label]).lower()}, {fonts()[row].name}" for label, row in pairs)
    name = f"glyphs:{text}" if text else "glyphs"
    return ImageSet(to_channels(images, config.channels), found.label, which.classes, texts, {"font": found.font}, name, split,
                    factors={"character": found.label, "font": found.font})
