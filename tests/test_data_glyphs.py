"""Characters of matplotlib's fonts: against the fonts' own tables and outlines (fontTools), and against exact areas of polygons."""

from __future__ import annotations

import logging
import string
import sys
import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.agl import toUnicode
from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont
from matplotlib.path import Path as Polygon
from PIL import Image

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import ImageSet, glyphs, open_source
from pixelkiln.data.glyphs import Spec, fonts, parse_spec

logging.getLogger("fontTools").setLevel(logging.ERROR)  # remarks on the dates of old fonts


@cache
def opened(source: str, split: str = "train", resolution: int = 32) -> ImageSet:
    return open_source(source, DataConfig(resolution=resolution), split)


@cache
def table(file: Path) -> TTFont:
    return TTFont(file)


@cache
def everything() -> dict[int, set[str]]:
    """Characters of each font in the largest set."""
    which = glyphs.glyphs(parse_spec("all,split=draw"), "train")
    found: dict[int, set[str]] = {}
    for label, rows in which.pool.items():
        for row in rows:
            found.setdefault(row, set()).add(which.classes[label])
    return found


def test_what_is_drawn_is_in_the_fonts_table_and_has_an_outline() -> None:
    """No .notdef and no blank, and nothing that is printable is missing: the sets equal those that fontTools reads from the files."""
    assert set(everything()) == set(range(len(fonts())))
    for row, chars in everything().items():
        font = table(fonts()[row].file)
        names, outlines = font.getBestCmap(), font["glyf"]
        expected = {chr(code) for code in names if unicodedata.category(chr(code))[0] in "LNPS"}
        if fonts()[row].file.stem.startswith("cm"):  # the names of the glyphs tell what TeX's fonts have there
            expected = {char for char in expected if char in string.ascii_letters + string.digits and toUnicode(names[ord(char)]) == char}
        expected = {char for char in expected if outlines[names[ord(char)]].numberOfContours != 0}
        assert chars == expected, fonts()[row].name
        assert all(font.getGlyphID(names[ord(char)]) != 0 for char in chars)
    files = {font.file.name for font in fonts()}
    shipped = {file.name for file in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")}
    private = {"STIXNonUni.ttf", "STIXNonUniBol.ttf", "STIXNonUniBolIta.ttf", "STIXNonUniIta.ttf"}  # all at code points that Unicode leaves open
    assert shipped - files == {"LastResortHE-Regular.ttf", "cmex10.ttf"} | private
    assert sum(map(len, everything().values())) > 50_000


def test_no_character_looks_like_the_box_of_a_missing_one() -> None:
    for row, font in enumerate(fonts()):
        face = font.at(24)
        box = face.getmask("\uffff", anchor="ls")
        if box.getbbox() is None:
            continue
        names = table(font.file).getBestCmap()
        missing = table(font.file)["glyf"][".notdef"]
        for char in sorted(everything()[row])[:: 1 + len(everything()[row]) // 300]:
            mask = face.getmask(char, anchor="ls")
            same = mask.size == box.size and bytes(mask) == bytes(box)
            assert not same or table(font.file)["glyf"][names[ord(char)]] == missing, f"{font.name} {char}"
            assert not same


def test_the_default_set_is_letters_and_digits_balanced_and_captioned() -> None:
    data = opened("glyphs:num=3000")
    assert data.images.shape == (3000, 1, 32, 32)
    assert data.classes == tuple(sorted(string.ascii_letters + string.digits))
    assert len(opened("glyphs:num=3000", "test")) == 300
    counts = torch.bincount(data.labels, minlength=62)
    assert counts.max() - counts.min() <= 1
    assert sorted(data.labels[:62].tolist()) == list(range(62))
    for label, row, text in zip(data.labels.tolist(), data.extras["font"].tolist(), data.texts, strict=True):
        name, _, font = text.rpartition(", ")
        assert name.upper() == unicodedata.name(data.classes[label])
        assert font == fonts()[row].name
    assert "latin small letter a, DejaVu Sans Bold" in data.texts
    spread = torch.bincount(data.extras["font"][data.labels < 10])  # all 16 fonts that have digits, alike often
    assert (spread > 0).sum() == 16
    assert len({font.name for font in fonts()}) == len(fonts())


def test_image_i_is_a_function_of_split_and_i() -> None:
    few, many = opened("glyphs:num=100"), opened("glyphs:num=3000")
    assert torch.equal(few.images, many.images[:100])
    assert few.texts == many.texts[:100]
    assert not torch.equal(opened("glyphs:num=3000", "test").images[:100], few.images)
    which = glyphs.glyphs(Spec(), "train")
    one, part = (glyphs.drawn(which, "train", torch.tensor(index)) for index in ([2718], range(2700, 2730)))
    assert torch.equal(one.change[0], part.change[18])
    assert one.label[0] == part.label[18] == many.labels[2718]
    assert len(torch.unique(many.images, dim=0)) == 3000  # endless: no two alike
    assert opened("glyphs:digits,num=50").digest() == open_source("glyphs:digits,num=50", DataConfig(resolution=32)).digest()


def test_splits_by_font_share_no_font_and_all_characters() -> None:
    for subset in ("", "all,num=8000"):
        train, test = (opened(f"glyphs:{subset}" if subset else "glyphs:num=3000", split) for split in ("train", "test"))
        assert not set(train.extras["font"].tolist()) & set(test.extras["font"].tolist())
        assert train.classes == test.classes
        assert set(train.labels.tolist()) == set(range(len(train.classes)))
    families = {fonts()[row].name.split()[0] for row in set(opened("glyphs:num=3000", "test").extras["font"].tolist())}
    assert families == {"STIXGeneral", "cmss10"}


def test_splits_by_character_share_no_character_and_all_fonts() -> None:
    train, test = (opened("glyphs:num=5000,split=character", split) for split in ("train", "test"))
    assert train.classes == test.classes
    assert not set(train.labels.tolist()) & set(test.labels.tolist())
    assert len(set(test.labels.tolist())) == 6
    assert set(test.extras["font"].tolist()) <= set(train.extras["font"].tolist())
    both = [opened("glyphs:digits,num=2000,split=draw", split) for split in ("train", "test")]
    assert set(both[0].extras["font"].tolist()) == set(both[1].extras["font"].tolist())
    assert set(both[0].labels.tolist()) == set(both[1].labels.tolist()) == set(range(10))
    assert not (both[0].images[:, None] == both[1].images).flatten(2).all(dim=2).any()


def outline(file: Path, char: str) -> tuple[Polygon, tuple[float, float, float, float]]:
    """The glyph as a path in units of the em, y down, baseline at 0, and its bounds (left, top, right, bottom)."""
    font = table(file)
    glyph_set, name, em = font.getGlyphSet(), font.getBestCmap()[ord(char)], font["head"].unitsPerEm
    pen, bounds = DecomposingRecordingPen(glyph_set), BoundsPen(glyph_set)
    glyph_set[name].draw(pen)
    glyph_set[name].draw(bounds)
    points, codes = [], []
    for kind, args in pen.value:
        if kind in ("moveTo", "lineTo"):
            points.append(args[0])
            codes.append(Polygon.MOVETO if kind == "moveTo" else Polygon.LINETO)
        elif kind == "qCurveTo":
            *controls, end = args
            assert end is not None
            for k, control in enumerate(controls):
                middle = end if k == len(controls) - 1 else tuple((a + b) / 2 for a, b in zip(control, controls[k + 1], strict=True))
                points += [control, middle]
                codes += [Polygon.CURVE3] * 2
        else:
            points.append((0, 0))
            codes.append(Polygon.CLOSEPOLY)
    left, low, right, high = bounds.bounds
    return Polygon(np.array(points) * [1 / em, -1 / em], codes), (left / em, -high / em, right / em, -low / em)


def turns(contour: np.ndarray) -> float:
    """Twice the signed area."""
    x, y = contour.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


@pytest.mark.parametrize("side", [16, 32, 64])
def test_pixels_are_the_areas_that_the_changed_outlines_cover(side: int) -> None:
    """The outlines from the files, moved by A and t, and 144 points a pixel asked whether they lie within."""
    which, index = glyphs.glyphs(Spec(), "train"), torch.arange(24)
    found, data = glyphs.drawn(which, "train", index), opened("glyphs:num=100", "train", side)
    step = (np.arange(12 * side) + 0.5) / (12 * side)
    grid = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)  # (x, y) in [0, 1]
    errors = []
    for i, (label, row, change) in enumerate(zip(found.label.tolist(), found.font.tolist(), found.change.numpy(), strict=True)):
        path, (left, top, right, bottom) = outline(fonts()[row].file, which.classes[label])
        upright = path.vertices * glyphs.EM - [glyphs.EM * (left + right) / 2, 0.5 - glyphs.BASELINE]  # from the center of the image
        box = np.array([[x - (left + right) / 2, y] for x in (left, right) for y in (top, bottom)]) * glyphs.EM - [0, 0.5 - glyphs.BASELINE]
        moved = box @ change[:, :2].T + change[:, 2]
        if np.abs(moved).max() >= 0.5 - glyphs.MARGIN - 0.01:
            continue  # room is made for this one
        contours = Polygon(upright @ change[:, :2].T + change[:, 2] + 0.5, path.codes).to_polygons(closed_only=True)
        winding = sum((1 if turns(contour) > 0 else -1) * Polygon(contour).contains_points(grid).astype(int) for contour in contours)
        area = (winding != 0).reshape(side, 12, side, 12).mean(axis=(1, 3)) * 255
        errors.append(np.abs(255 - data.images[i, 0].numpy() - area))
    assert len(errors) > 18
    assert max(error.mean() for error in errors) < 4  # of 255: hinting makes the strokes of a font up to half a fine pixel wider
    assert np.mean(errors) < 2


def test_nothing_touches_the_border_and_nothing_is_blank() -> None:
    images = opened("glyphs:all,num=8000").images[:, 0]
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert border.min() >= 240  # half a pixel of the bilinear kernel may fall there
    assert images.flatten(1).amin(1).max() < 160  # the faintest still leaves ink


def test_a_larger_drawing_is_the_same_picture() -> None:
    small, large = opened("glyphs:num=100", "train", 16).images, opened("glyphs:num=100", "train", 64).images
    for a, b in zip(small[:, 0], large[:, 0], strict=True):
        assert np.abs(np.asarray(Image.fromarray(b.numpy()).reduce(4)).astype(int) - a.numpy()).mean() < 4
    assert open_source("glyphs:digits,num=10", DataConfig(channels=3)).images.shape == (10, 3, 32, 32)


def test_labels_name_what_is_seen() -> None:
    """The nearest train image, in other fonts, has the label of a test image far more often than 1 in 62."""
    train, test = opened("glyphs:num=3000"), opened("glyphs:num=3000", "test")
    a, b = (part.images.flatten(1).float() for part in (test, train))
    accuracy = (train.labels[torch.cdist(a, b).argmin(dim=1)] == test.labels).float().mean()
    assert accuracy > 0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit", r"no subset 'digit'; did you mean digits"),
        ("digits,spilt=font", r"no option 'spilt'; did you mean split"),
        ("split=fonts", r"no split by 'fonts'; did you mean font"),
        ("num=0", r"num=0 is not a whole number above 0"),
        ("num=1e5", r"num=1e5 is not a whole number"),
        ("digits,letters", r"no option 'letters'; known: num, split"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^glyphs:{text}: {message}"):
        open_source(f"glyphs:{text}")


def test_names_are_parsed() -> None:
    assert parse_spec("") == Spec("alnum", "font", None)
    assert parse_spec("greek,split=character,num=70") == parse_spec("greek, num=70, split=character") == Spec("greek", "character", 70)


def test_other_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"ask for one of them"):
        open_source("glyphs", split="all")
    with pytest.raises(UserError, match=r"4 pixels: pass --data\.resolution 8"):
        open_source("glyphs", DataConfig(resolution=4))
    fonts.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'pixelkiln\[glyphs\]'"):
        fonts()
