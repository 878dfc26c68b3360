"""A contact sheet: some images of every class, with its name and number of images beside them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.images import grid
from .images import ImageSet
from .prepare import resize

__all__ = ["contact_sheet", "spread"]

ROWS, COLUMNS = 100, 12  # classes, the largest where there are more; images of each
SMALL, LARGE = 32, 96  # sides that an image has on the sheet
PAD, TYPE = 2, 13  # pixels between images, and of the names


def spread(rows: Tensor, num: int) -> Tensor:
    """At most `num` of the rows (n,), evenly spread from the first to the last."""
    if len(rows) <= num:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, num).round().long()]


def _legible(name: str, limit: int = 24) -> str:
    """A name that the sheet's font can write: the code points of what is not Latin-1, and no more than `limit` characters."""
    text = name.encode("latin-1", "backslashreplace").decode("latin-1")
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def contact_sheet(data: ImageSet) -> Tensor:
    """uint8 (C, H, W): a row of up to 12 images for each class that has any; without classes, up to 144 images."""
    if data.labels is None:
        return grid(_shown(data.images_of(spread(torch.arange(len(data)), COLUMNS**2))), COLUMNS, PAD)
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    largest = counts.argsort(descending=True, stable=True)[:ROWS]
    chosen = largest[counts[largest] > 0].sort().values
    strips, names = [], []
    for label in chosen.tolist():
        images = _shown(data.images_of(spread((data.labels == label).nonzero()[:, 0], COLUMNS)))
        blank = images.new_full((COLUMNS - len(images), *images.shape[1:]), 255)
        strips.append(torch.cat([images, blank]))
        names.append(f"{_legible(data.classes[label])}  {int(counts[label]):,}")
    sheet = grid(torch.cat(strips), COLUMNS, PAD, scale=1)  # (C, H, W)
    height = strips[0].shape[2] + PAD
    face = ImageFont.load_default(TYPE)
    width = 16 + int(max(face.getlength(name) for name in names))
    margin = Image.new("L", (width, sheet.shape[1]), 255)
    for row, name in enumerate(names):
        ImageDraw.Draw(margin).text((width - 8, row * height + height // 2 + 1), name, 0, face, anchor="rm")
    return torch.cat([torch.from_numpy(np.array(margin)).expand(len(sheet), -1, -1), sheet], dim=2)


def _shown(images: Tensor) -> Tensor:
    """The images at a legible size: enlarged by whole numbers, or made smaller."""
    height, width = images.shape[2:]
    if max(height, width) > LARGE:
        scale = LARGE / max(height, width)
        return resize(images, max(1, round(height * scale)), max(1, round(width * scale)))
    times = max(1, SMALL // max(height, width))
    return images.repeat_interleave(times, 2).repeat_interleave(times, 3)
