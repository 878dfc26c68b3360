"""Embedded procedural scenes: one to three colored shapes on a plain background, with caption, mask, edges and boxes, all exact.

Scene i of a split is a pure function of (split, i), whatever the resolution. A shape is where its function f < 0; f is 1-Lipschitz (a
maximum or minimum of signed distances), so only pixels with |f| <= 1/sqrt(2) pixel at their center can be partly covered: these alone
are supersampled. The mask asks for the center of each pixel, the image for the share of 64 points. Shapes never touch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.rng import generator
from ..core.types import UserError
from .images import ImageSet, Split
from .prepare import size_for, to_channels

__all__ = ["COLORS", "KINDS", "Kind", "Scenes", "draw", "open_shapes", "scenes"]

NUM = {"train": 20_000, "test": 2_000}
SLOTS = 3  # objects of a scene at most
TRIES = 32  # places that an object tries
SIDE, SMALLEST = 32, 16
MARGIN, GAP = 1 / 32, 1 / 16  # between shape and border, and between two shapes, as shares of the side
FINE = 8  # points a side of a supersampled pixel
CHUNK = 2**21  # pixels that are drawn at once

COLORS: dict[str, tuple[int, int, int]] = {
    "black": (20, 20, 20),
    "blue": (40, 80, 220),
    "cyan": (60, 200, 220),
    "green": (40, 160, 60),
    "orange": (245, 130, 30),
    "pink": (250, 130, 190),
    "purple": (130, 50, 180),
    "red": (220, 35, 40),
    "yellow": (250, 215, 50),
    "white": (255, 255, 255),  # of the background only
}


class Kind(NamedTuple):
    """f(x, y) of a shape of area 1 about the origin (y down), and how far it reaches from there: sideways, up, down."""

    f: Callable[[Tensor, Tensor], Tensor]
    reach: tuple[float, float, float]


_R = sqrt(1 / pi)  # radius of the circle
_I = sqrt(1 / (3 * sqrt(3)))  # radius of the circle within the triangle, whose sides are 2 sqrt(3) times it
_A = sqrt(1 / 20)  # half the width of an arm of the cross, which is 6 long
_O = sqrt(4 / (3 * pi))  # outer radius of the ring; the inner one is half of it


def _radius(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()  # three times as fast as hypot, and nothing here overflows


def _cross(x: Tensor, y: Tensor) -> Tensor:
    far, near = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(far - 3 * _A, near - _A)


KINDS: dict[str, Kind] = {
    "circle": Kind(lambda x, y: _radius(x, y) - _R, (_R, _R, _R)),
    "cross": Kind(_cross, (3 * _A, 3 * _A, 3 * _A)),
    "diamond": Kind(lambda x, y: (x.abs() + y.abs()) / sqrt(2) - 0.5, (sqrt(0.5), sqrt(0.5), sqrt(0.5))),
    "ring": Kind(lambda x, y: (_radius(x, y) - 0.75 * _O).abs() - 0.25 * _O, (_O, _O, _O)),
    "square": Kind(lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.5, (0.5, 0.5, 0.5)),
    "triangle": Kind(lambda x, y: torch.maximum(y, (x.abs() * sqrt(3) - y) / 2) - _I, (sqrt(3) * _I, 2 * _I, _I)),
}


class Scenes(NamedTuple):
    """What n scenes hold: background (n,) and color (n, 3), rows of COLORS; kind (n, 3), rows of KINDS, -1 = no such object;
    center (n, 3, 2) as (x, y) and size (n, 3), the square root of the area, as shares of the side. Object 1 is the largest."""

    background: Tensor
    color: Tensor
    kind: Tensor
    center: Tensor
    size: Tensor

    def boxes(self) -> Tensor:
        """(n, 3, 4) as (x0, y0, x1, y1), shares of the side."""
        side, up, down = (torch.tensor([kind.reach for kind in KINDS.values()])[self.kind] * self.size[..., None]).unbind(-1)
        x, y = self.center.unbind(-1)
        return torch.stack([x - side, y - up, x + side, y + down], dim=-1)


def _gaps(a: Tensor, b: Tensor) -> Tensor:
    """How far boxes (..., 4) lie apart, (..., 2) along x and y; negative where they overlap."""
    return torch.maximum(b[..., :2] - a[..., 2:], a[..., :2] - b[..., 2:])


def scenes(split: str, index: range) -> Scenes:
    """The scenes of the rows `index` of a split."""
    num_kinds, num_colors = len(KINDS), len(COLORS) - 1
    widths = [1, 2, num_colors, SLOTS, SLOTS, SLOTS * TRIES * 2]
    u = torch.stack([torch.rand(sum(widths), generator=generator("shapes", split, i)) for i in index])
    count, ground, rank, kind, size, place = torch.split(u, widths, dim=1)
    num = (count[:, 0] * SLOTS).long() + 1  # 1..3 objects are wanted
    order = rank.argsort(dim=1)  # distinct colors: three of objects, one of the background
    background = torch.where(ground[:, 0] < 0.5, num_colors, order[:, SLOTS])
    low, top = torch.where(num == 1, 0.30, 0.26), torch.where(num == 1, 0.45, 0.32)
    sizes = torch.cat([(low + (top - low) * size[:, 0])[:, None], 0.18 + 0.04 * size[:, 1:]], dim=1)
    kinds = (kind * num_kinds).long()
    side, up, down = (torch.tensor([k.reach for k in KINDS.values()])[kinds] * sizes[..., None]).unbind(-1)  # (n, 3) each
    before, after = (torch.stack([side, end], dim=-1)[:, :, None] for end in (up, down))  # (n, 3, 1, 2)
    center = before + MARGIN + (1 - 2 * MARGIN - before - after) * place.view(-1, SLOTS, TRIES, 2)  # (n, 3, TRIES, 2)
    boxes = torch.cat([center - before, center + after], dim=-1)  # (n, 3, TRIES, 4)
    rows = torch.arange(len(u))
    chosen = torch.zeros((len(u), SLOTS), dtype=torch.int64)
    for slot in range(1, SLOTS):
        free = torch.ones((len(u), TRIES), dtype=torch.bool)
        for other in range(slot):
            free &= _gaps(boxes[rows, other, chosen[:, other]][:, None], boxes[:, slot]).amax(-1) >= GAP
        chosen[:, slot] = free.int().argmax(dim=1)
        num = torch.where(free.any(dim=1), num, num.clamp(max=slot))  # an object that finds no place is left out
    kinds = torch.where(torch.arange(SLOTS) < num[:, None], kinds, -1)
    return Scenes(background, order[:, :SLOTS], kinds, center[rows[:, None], torch.arange(SLOTS), chosen], sizes)


def draw(scene: Scenes, side: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 3, side, side) and masks uint8 (n, 1, side, side) of the scenes."""
    num = len(scene.background)
    inside = torch.zeros((num, SLOTS, side, side), dtype=torch.uint8)
    cover = torch.zeros((num, SLOTS, side, side))
    center = (torch.arange(side) + 0.5) / side
    fine = (torch.arange(FINE) + 0.5 - FINE / 2) / FINE
    for code, kind in enumerate(KINDS.values()):
        row, slot = (scene.kind == code).nonzero(as_tuple=True)  # (m,)
        cx, cy = (scene.center[row, slot] / scene.size[row, slot, None]).unbind(-1)
        pixels = scene.size[row, slot] * side  # pixels a unit of f
        x = center * (side / pixels[:, None]) - cx[:, None]  # (m, side)
        y = center * (side / pixels[:, None]) - cy[:, None]
        f = kind.f(x[:, None, :], y[:, :, None])  # (m, side, side)
        inside[row, slot] = (f < 0).to(torch.uint8)
        share = (f < 0).float()
        m, i, j = ((f * pixels[:, None, None]).abs() <= sqrt(0.5) + 1e-3).nonzero(as_tuple=True)
        step = fine / pixels[m, None]
        share[m, i, j] = (kind.f((x[m, j, None] + step)[:, None, :], (y[m, i, None] + step)[:, :, None]) < 0).float().mean(dim=(1, 2))
        cover[row, slot] = share
    palette = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    ground = palette[scene.background]  # (n, 3)
    images = ground[:, :, None, None] + torch.einsum("nkij,nkc->ncij", cover, palette[scene.color] - ground[:, None])
    ids = torch.arange(1, SLOTS + 1, dtype=torch.uint8).view(1, SLOTS, 1, 1)
    return images.round().clamp(0, 255).to(torch.uint8), (inside * ids).amax(dim=1, keepdim=True)


def _edges(mask: Tensor) -> Tensor:
    """uint8 (n, 1, H, W) -> {0, 1}: pixels of an object that have another id above, below, left or right."""
    ids = mask.float()
    padded = torch.nn.functional.pad(ids, (1, 1, 1, 1), mode="replicate")
    near = [padded[..., 1:-1, :-2], padded[..., 1:-1, 2:], padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]]
    return ((mask > 0) & torch.stack([part != ids for part in near]).any(dim=0)).to(torch.uint8)


def _layout(mask: Tensor, kind: Tensor) -> Tensor:
    """(n, 3, 5): kind and the extents of each object's pixels, as shares of the side."""
    side = mask.shape[-1]
    own = mask == torch.arange(1, SLOTS + 1).view(1, SLOTS, 1, 1)  # (n, 3, side, side)
    cols, rows = own.any(dim=2).int(), own.any(dim=3).int()  # (n, 3, side)
    ends = [cols.argmax(-1), rows.argmax(-1), side - cols.flip(-1).argmax(-1), side - rows.flip(-1).argmax(-1)]
    layout = torch.cat([kind[..., None].float(), torch.stack(ends, dim=-1) / side], dim=-1)
    return torch.where(kind[..., None] >= 0, layout, torch.tensor([-1.0, 0, 0, 0, 0]))


def _captions(scene: Scenes) -> list[str]:
    """One caption a scene: the largest object, where it lies to the others, and the background unless it is white."""
    colors, kinds = list(COLORS), list(KINDS)
    boxes = scene.boxes()
    gaps = _gaps(boxes[:, :1], boxes[:, 1:])  # (n, 2, 2) from object 1 to objects 2 and 3
    first = boxes[:, :1, :2] < boxes[:, 1:, :2]  # where they lie apart: is object 1 the left, the upper one?
    words = [["to the right of", "to the left of"], ["below", "above"]]
    captions = []
    columns = [part.tolist() for part in (scene.background, scene.color, scene.kind, gaps, first)]
    for ground, color, kind, gap, before in zip(*columns, strict=True):
        names = [("an " if colors[c][0] == "o" else "a ") + f"{colors[c]} {kinds[k]}" for c, k in zip(color, kind, strict=True) if k >= 0]
        axes = [int(g[1] > g[0]) for g in gap]  # the axis along which they lie farther apart
        parts = [f"{words[axis][side[axis]]} {name}" for axis, side, name in zip(axes, before, names[1:], strict=False)]
        where = "" if colors[ground] == "white" else f" on a{'n' * (colors[ground][0] == 'o')} {colors[ground]} background"
        captions.append(" ".join([names[0], " and ".join(parts)]).strip() + where)
    return captions


def _factors(scene: Scenes) -> dict[str, Tensor]:
    """What every scene has, (n,) each: kind, color, center and size of the largest object, the background's color, the number of objects. They are
    not independent: color and background differ, and the largest of several objects is smaller."""
    x, y = scene.center[:, 0].unbind(1)
    return {"shape": scene.kind[:, 0], "color": scene.color[:, 0], "background": scene.background, "objects": (scene.kind >= 0).sum(1),
            "x": x, "y": y, "size": scene.size[:, 0]}


def open_shapes(config: DataConfig, split: Split) -> ImageSet:
    """20,000 train and 2,000 test scenes, native (3, 32, 32) or drawn at the resolution asked for (16 at least).

    Labels are the kinds of the largest shapes; texts, and the extras mask, edges and layout, as `ImageSet` says; factors as `_factors`.
    """
    if split == "all":
        raise UserError("shapes has a train and a test split: ask for one of them")
    wanted = config.resolution or SIDE
    side = size_for(wanted, wanted, config)[0]
    if side < SMALLEST:
        raise UserError(f"shapes cannot be told apart at {side} pixels: pass --data.resolution {SMALLEST} or more")
    num, rows = NUM[split], max(1, CHUNK // side**2)
    parts = [scenes(split, range(start, min(start + rows, num))) for start in range(0, num, rows)]
    images, masks = (torch.cat(maps) for maps in zip(*(draw(part, side) for part in parts), strict=True))
    kinds = torch.cat([part.kind for part in parts])
    texts = tuple(caption for part in parts for caption in _captions(part))
    extras = {"mask": masks, "edges": torch.cat([_edges(m) for m in torch.split(masks, rows)])}
    extras["layout"] = torch.cat([_layout(m, k) for m, k in zip(torch.split(masks, rows), torch.split(kinds, rows), strict=True)])
    known = [_factors(part) for part in parts]
    factors = {name: torch.cat([part[name] for part in known]) for name in known[0]}
    return ImageSet(to_channels(images, config.channels), kinds[:, 0].contiguous(), tuple(KINDS), texts, extras, "shapes", split, factors=factors)
