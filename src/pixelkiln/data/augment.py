"""Augmentation of a whole batch at once, on its device: what moves the pixels moves mask, boxes and captions with them."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.rng import generator

__all__ = ["Moves", "draw_moves", "mirror_text", "move_boxes", "move_images"]

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


class Moves(NamedTuple):
    """Per sample: flip (B,) bool, mirror left to right first; shift (B, 2) int64, then move by (down, right) pixels."""

    flip: Tensor
    shift: Tensor


def draw_moves(num: int, config: DataConfig, seed: int, draw: int) -> Moves | None:
    """The moves of one batch, a function of (seed, draw) alone: flip with probability 1/2, shift uniform in -translate..translate."""
    if not (config.flip or config.translate):
        return None
    gen = generator(seed, "augment", draw)
    flip = (torch.rand(num, generator=gen) < 0.5) & config.flip
    return Moves(flip, torch.randint(-config.translate, config.translate + 1, (num, 2), generator=gen))


def move_images(images: Tensor, moves: Moves) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): each sample mirrored and shifted, its edge repeated where nothing moves in."""
    height, width = images.shape[2:]
    flip, shift = (part.to(images.device) for part in moves)
    cols = (torch.arange(width, device=images.device) - shift[:, 1:]).clamp_(0, width - 1)  # (B, W), of the mirrored image
    cols = torch.where(flip[:, None], width - 1 - cols, cols)
    rows = (torch.arange(height, device=images.device) - shift[:, :1]).clamp_(0, height - 1)  # (B, H)
    pixel = (rows[:, :, None] * width + cols[:, None, :]).flatten(1)[:, None]  # (B, 1, H * W)
    return images.flatten(2).gather(2, pixel.expand(-1, images.shape[1], -1)).view_as(images)


def move_boxes(layout: Tensor, moves: Moves, height: int, width: int) -> Tensor:
    """Rows (B, K, 5) of (class, x0, y0, x1, y1) moved as the images; what leaves the image becomes padding.

    A box that ends at the border still ends there, because the edge is repeated.
    """
    flip, shift = (part.to(layout.device) for part in moves)
    kind, x0, y0, x1, y1 = layout.unbind(-1)  # (B, K) each
    x0, x1 = torch.where(flip[:, None], 1 - x1, x0), torch.where(flip[:, None], 1 - x0, x1)
    right, down = shift[:, 1:] / width, shift[:, :1] / height  # (B, 1)
    low = [torch.where(z == 0, 0, (z + d).clamp(0, 1)) for z, d in ((x0, right), (y0, down))]
    high = [torch.where(z == 1, 1, (z + d).clamp(0, 1)) for z, d in ((x1, right), (y1, down))]
    inside = (kind >= 0) & (high[0] > low[0]) & (high[1] > low[1])
    return torch.where(inside[..., None], torch.stack([kind, *low, *high], dim=-1), layout.new_tensor([-1, 0, 0, 0, 0]))


def mirror_text(text: str) -> str:
    """The caption of the mirrored image: the words left and right change places."""
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda match: _SIDES[match.group()], text)
