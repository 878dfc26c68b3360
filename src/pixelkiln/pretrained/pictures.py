"""Pictures of the user's made ready for a pipeline, and put back: sizes, masks that keep what is outside of them, canvases, maps of edges.

A picture is a uint8 tensor (3, H, W); a mask a bool tensor (H, W), true where it is redrawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.images import read_image

__all__ = ["Canvas", "as_pil", "canvas", "composite", "edges", "picture", "resized"]


class Canvas(NamedTuple):
    """What an inpainting pipeline gets (sides padded to a multiple), and what its result is put back into."""

    image: Tensor  # uint8 (3, H', W')
    mask: Tensor  # bool (H', W'), whole cells of the latent grid
    base: Tensor  # uint8 (3, H, W): what stays
    alpha: Tensor  # float (H, W), 0 outside of the user's mask: how much of the result there is


def picture(path: str) -> Tensor:
    """An image file as uint8 (3, H, W); edges:FILE is the map of its edges."""
    if path.startswith("edges:"):
        return edges(picture(path.removeprefix("edges:")))
    image = read_image(Path(path))
    return image.expand(3, -1, -1).contiguous()


def as_pil(image: Tensor) -> object:
    """As Pillow has it, mode RGB, or L for a mask."""
    from PIL import Image

    if image.dtype == torch.bool:
        return Image.fromarray(image.mul(255).to(torch.uint8).numpy())
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def resized(image: Tensor, width: int | None, height: int | None, multiple: int) -> Tensor:
    """The image at this size, by default its own, each side rounded to a multiple; Lanczos, as diffusers resizes."""
    import numpy as np
    from PIL import Image

    h, w = image.shape[1:]
    width, height = (max(multiple, round((want or has) / multiple) * multiple) for want, has in ((width, w), (height, h)))
    if (width, height) == (w, h):
        return image
    pil = as_pil(image)
    assert isinstance(pil, Image.Image)
    return torch.from_numpy(np.array(pil.resize((width, height), Image.Resampling.LANCZOS))).permute(2, 0, 1).contiguous()


def canvas(image: Tensor, mask: Tensor | None, outpaint: tuple[int, int, int, int], feather: int, multiple: int, cell: int) -> Canvas:
    """An image and its mask (grey uint8 (1, H, W), white is redrawn), larger by `outpaint` pixels left, top, right, below.

    Nothing is resized: sides are padded with the border's pixels, and what is outside of the mask has alpha 0. A cell of the latent grid that the
    mask touches is redrawn whole, so that thin strokes are not lost; only the mask's pixels are taken from it.
    """
    h, w = image.shape[1:]
    if mask is not None and tuple(mask.shape[1:]) != (h, w):
        raise UserError(f"the mask has {mask.shape[2]}x{mask.shape[1]} pixels and the source {w}x{h}: make them equal")
    chosen = mask[0] >= 128 if mask is not None else torch.zeros(h, w, dtype=torch.bool)
    left, top, right, below = outpaint
    base = F.pad(image[None].float(), (left, right, top, below), mode="replicate")[0].to(torch.uint8)
    chosen = F.pad(chosen, (left, right, top, below), value=True)
    if not chosen.any():
        raise UserError("the mask has no white pixel: paint white what is to be redrawn")
    height, width = chosen.shape
    more_h, more_w = -height % multiple, -width % multiple
    padded = F.pad(base[None].float(), (0, more_w, 0, more_h), mode="replicate")[0].to(torch.uint8)
    cells = F.pad(chosen[None, None].float(), (0, more_w, 0, more_h))
    cells = F.interpolate(F.max_pool2d(cells, cell), scale_factor=cell, mode="nearest")[0, 0] > 0
    return Canvas(padded, cells, base, _feathered(chosen, feather))


def _feathered(mask: Tensor, radius: int) -> Tensor:
    """1 inside the mask, falling to 0 over `radius` pixels before its border with what stays; 0 outside."""
    if radius == 0 or bool(mask.all()):
        return mask.float()
    depth = torch.zeros(mask.shape)
    inside = mask.float()[None, None]
    for _ in range(radius):  # how many steps inwards a pixel is; outside of the picture is inside of the mask
        depth += inside[0, 0]
        inside = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1), value=-1.0), 3, 1)
    depth += inside[0, 0]
    return depth / (radius + 1)


def composite(made: Tensor, on: Canvas) -> Tensor:
    """A result uint8 (3, H', W') laid into the base by alpha; bytes where alpha is 0 are the base's."""
    h, w = on.alpha.shape
    mixed = on.alpha * made[:, :h, :w].float() + (1 - on.alpha) * on.base.float()
    return torch.where(on.alpha == 0, on.base, mixed.round().clamp(0, 255).to(torch.uint8))


def edges(image: Tensor, low: float = 0.1, high: float = 0.2, sigma: float = 1.0) -> Tensor:
    """White edges on black, uint8 (3, H, W): Canny (A computational approach to edge detection, 1986).

    Blur by a Gaussian, gradient by Sobel, only maxima across the edge, those above `high` and what is connected to them above `low` (of 1).
    """
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (image.float() / 255 * weights).sum(0)[None, None]
    radius = max(1, math.ceil(3 * sigma))
    line = torch.exp(-torch.arange(-radius, radius + 1).float() ** 2 / (2 * sigma**2))
    line /= line.sum()
    grey = F.conv2d(F.pad(grey, (radius,) * 4, mode="replicate"), line[None, None, :, None] * line[None, None, None, :])
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    slope = F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), torch.stack([sobel, sobel.T])[:, None])[0]  # (2, H, W): across, down
    size = slope.square().sum(0).sqrt()
    sector = (torch.atan2(slope[1], slope[0]) / (math.pi / 4)).round().long() % 4
    around = F.pad(size, (1,) * 4)
    h, w = size.shape
    at = lambda dy, dx: around[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
    steps = ((0, 1), (1, 1), (1, 0), (1, -1))
    ahead = torch.stack([at(dy, dx) for dy, dx in steps]).gather(0, sector[None])[0]
    behind = torch.stack([at(-dy, -dx) for dy, dx in steps]).gather(0, sector[None])[0]
    thin = (size >= ahead) & (size > behind)
    weak, strong = thin & (size >= low), thin & (size >= high)
    while True:
        grown = (F.max_pool2d(strong[None, None].float(), 3, 1, 1)[0, 0] > 0) & weak
        if bool((grown == strong).all()):
            return strong.mul(255).to(torch.uint8).expand(3, -1, -1).contiguous()
        strong = grown
