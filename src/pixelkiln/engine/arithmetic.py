"""Attribute arithmetic: pictures moved along what tells the images that have an attribute from those that lack it.

    z + a d,   d = mean of the codes that have it - mean of those that lack it        White, Sampling Generative Networks, 2016, arXiv 1609.04468, section 3.3
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.config import nearest
from ..core.images import to_uint8
from ..core.protocols import Codec
from ..core.types import UserError
from ..data import ImageSet
from .codes import codes_of
from .sample import Trained

__all__ = ["Direction", "direction", "having", "moved"]

PART = 250  # images made at a time


class Direction(NamedTuple):
    """d (J,), and how many images have the attribute and how many lack it."""

    d: Tensor
    has: int
    lacks: int


def having(data: ImageSet, what: str) -> Tensor:
    """Which images of a set have an attribute, (N,) bool. what: a class, by name or number; FACTOR=N, the number of a category; FACTOR=high or low,
    of a quantity: above its median, or not. Errors: `UserError` for what the set does not know, or no image has.
    """
    factor, sign, value = what.partition("=")
    if what in data.classes or (not sign and data.labels is not None and re.fullmatch("[0-9]{1,18}", what) and int(what) < len(data.classes)):
        assert data.labels is not None
        found = data.labels == (list(data.classes).index(what) if what in data.classes else int(what))
    elif sign and factor in data.factors:
        known = data.factors[factor]
        if known.is_floating_point():
            if value not in ("high", "low"):
                raise UserError(f"{what}: {factor} is a quantity: write {factor}=high or {factor}=low")
            found = (known > known.median()) == (value == "high")
        else:
            last = int(known.max())
            if not re.fullmatch("[0-9]{1,18}", value) or int(value) > last:
                raise UserError(f"{what}: {factor} has the categories 0 to {last}")
            found = known == int(value)
    else:
        names = [*data.classes, *(f"{name}={'high' if v.is_floating_point() else 0}" for name, v in data.factors.items())]
        told = nearest(what, names) if names else "its images have neither classes nor factors"
        raise UserError(f"{data.name} knows no attribute {what!r}; {told}")
    if not found.any():
        raise UserError(f"no image of {data.name} {data.split} is {what}")
    return found


def direction(trained: Trained, data: ImageSet, add: str, remove: str | None = None, num: int = 2000) -> Direction:
    """d, of up to `num` images that have `add` and as many that have `remove` (default: that lack `add`)."""
    has = having(data, add)
    lacks = ~has if remove is None else having(data, remove)
    if not lacks.any():
        raise UserError(f"all images of {data.name} {data.split} are {add}: there is nothing to tell it from")
    if torch.equal(has, lacks):
        raise UserError(f"{add} and {remove} are the same images: there is nothing to tell them apart")
    means = []
    for mask in (has, lacks):
        rows = mask.nonzero()[:, 0]
        means.append(codes_of(trained, data.images_of(rows[torch.linspace(0, len(rows) - 1, min(num, len(rows)), dtype=torch.float64).long()])).mean(0))
    return Direction(means[0] - means[1], min(num, int(has.sum())), min(num, int(lacks.sum())))


@torch.no_grad()
def moved(trained: Trained, images: Tensor, d: Tensor, scale: float = 1.0, steps: int = 5) -> Tensor:
    """What is decoded of z + a d for images uint8 (n, C, H, W), a from 0 to `scale` in `steps` values: uint8 (n, steps, C, H, W)."""
    codes = codes_of(trained, images)  # (n, J)
    method = trained.method
    assert isinstance(method, Codec)
    rows = (codes[:, None] + torch.linspace(0, scale, steps)[:, None] * d).flatten(0, 1)  # (n steps, J)
    found = []
    for part in torch.split(rows, PART):
        with trained.where.autocast():
            found.append(to_uint8(method.decode(part.to(trained.where.device)).float().clamp(-1, 1)).cpu())
    return torch.cat(found).unflatten(0, (len(images), steps))
