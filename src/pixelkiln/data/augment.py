"""Augmentation of a whole batch at once, on its device: what moves the pixels moves mask, boxes and captions with them.

The moves of a sample are keyed by its position in the endless stream, so neither the batch size nor the number of workers or
processes changes them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.rng import uniform

__all__ = ["Moves", "draw_moves", "mirror_text", "move_boxes", "move_images"]

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


class Moves(NamedTuple):
    """Per sample, in this order: flip (B,) bool, mirror left to right; window (B, 3) float64 (size, top, left), shares of the sides: cut it
    out and enlarge it to the whole (None: no cut); shift (B, 2) int64, move by (down, right) pixels."""

    flip: Tensor
    shift: Tensor
    window: Tensor | None = None


def draw_moves(positions: Tensor, config: DataConfig, seed: int) -> Moves | None:
    """The moves of the samples at `positions` (B,) int64 of the stream: those of a sample depend on the seed and its position alone.

    flip with probability 1/2; size uniform in crop..1 and the window uniform where it fits; shift uniform in -translate..translate.
    """
    if not config.moves:
        return None

    def draw(name: str) -> Tensor:
        return uniform(positions, seed, "augment", name)

    flip = (draw("flip") < 0.5) & config.flip
    steps = torch.stack([draw("down"), draw("right")], dim=1) * (2 * config.translate + 1)
    shift = steps.long() - config.translate
    if config.crop == 1:
        return Moves(flip, shift)
    size = 1 - (1 - config.crop) * draw("size")
    return Moves(flip, shift, torch.stack([size, (1 - size) * draw("top"), (1 - size) * draw("left")], dim=1))


def _sources(moves: Moves, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (B, H) and columns (B, W), float32, of the original image at which the pixels of the moved one are read."""
    flip, shift = (part.to(device) for part in moves[:2])
    rows = (torch.arange(height, device=device) - shift[:, :1]).clamp_(0, height - 1).float()
    cols = (torch.arange(width, device=device) - shift[:, 1:]).clamp_(0, width - 1).float()
    if moves.window is not None:
        size, top, left = moves.window.float().to(device)[:, :, None].unbind(1)  # (B, 1) each
        rows = ((rows + 0.5) * size + top * height - 0.5).clamp_(0, height - 1)
        cols = ((cols + 0.5) * size + left * width - 0.5).clamp_(0, width - 1)
    return rows, torch.where(flip[:, None], width - 1 - cols, cols)


def _pick(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """images (B, C, H, W) at whole rows (B, H) and columns (B, W)."""
    pixel = (rows[:, :, None] * images.shape[3] + cols[:, None, :]).flatten(1)[:, None]  # (B, 1, H * W)
    return images.flatten(2).gather(2, pixel.expand(-1, images.shape[1], -1)).view_as(images)


def move_images(images: Tensor, moves: Moves, nearest: bool = False) -> Tensor:
    """uint8 (B, C, H, W) -> the same: mirrored, cut and shifted, the edge repeated where nothing moves in.

    A window is enlarged bilinearly and rounded, or, for maps of numbers, by taking the nearest pixel.
    """
    rows, cols = _sources(moves, images.shape[2], images.shape[3], images.device)
    if moves.window is None or nearest:
        return _pick(images, rows.round().long(), cols.round().long())
    top, left = rows.long(), cols.long()
    down, right = (rows - top)[:, None, :, None], (cols - left)[:, None, None, :]
    below, beside = (top + 1).clamp_(max=images.shape[2] - 1), (left + 1).clamp_(max=images.shape[3] - 1)
    upper, lower = (torch.lerp(_pick(images, y, left).float(), _pick(images, y, beside).float(), right) for y in (top, below))
    return torch.lerp(upper, lower, down).round_().to(images.dtype)


def move_boxes(layout: Tensor, moves: Moves, height: int, width: int) -> Tensor:
    """Rows (B, K, 5) of (class, x0, y0, x1, y1) moved as the images; what leaves the image becomes padding.

    A box that ends at the border still ends there, because the edge is repeated.
    """
    flip, shift = (part.to(layout.device) for part in moves[:2])
    kind, x0, y0, x1, y1 = layout.unbind(-1)  # (B, K) each
    x0, x1 = torch.where(flip[:, None], 1 - x1, x0), torch.where(flip[:, None], 1 - x0, x1)
    if moves.window is not None:
        size, top, left = moves.window.to(layout)[:, :, None].unbind(1)  # (B, 1) each
        x0, x1, y0, y1 = (((z - start) / size).clamp(0, 1) for z, start in ((x0, left), (x1, left), (y0, top), (y1, top)))
    right, down = shift[:, 1:] / width, shift[:, :1] / height  # (B, 1)
    low = [torch.where(z == 0, 0, (z + d).clamp(0, 1)) for z, d in ((x0, right), (y0, down))]
    high = [torch.where(z == 1, 1, (z + d).clamp(0, 1)) for z, d in ((x1, right), (y1, down))]
    inside = (kind >= 0) & (x1 > x0) & (y1 > y0) & (high[0] > low[0]) & (high[1] > low[1])
    return torch.where(inside[..., None], torch.stack([kind, *low, *high], dim=-1), layout.new_tensor([-1, 0, 0, 0, 0]))


def mirror_text(text: str) -> str:
    """The caption of the mirrored image: the words left and right change places."""
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda match: _SIDES[match.group()], text)
