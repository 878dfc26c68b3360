"""The pictures of a request: sources and masks, one for each sample, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.types import Condition, UserError

__all__ = ["mask_of", "source_of"]


def source_of(cond: Condition, n: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """cond.source as float32 (n, C, H, W) in [-1, 1]; UserError without one of this shape (C, H, W) for each sample."""
    if cond.source is None:
        raise UserError("this method works on a picture: give one with --source IMAGE")
    if tuple(cond.source.shape) != (n, *shape):
        raise UserError(f"source is {tuple(cond.source.shape)}, and {n} of {shape} are asked for: give one for each sample")
    return cond.source.to(device, torch.float32)


def mask_of(cond: Condition, n: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """cond.mask as bool (n, 1, H, W), True where it is to be redrawn; UserError without one of the sides of `shape` for each sample."""
    want = (n, 1, *shape[1:])
    if cond.mask is None:
        raise UserError("this method redraws a part of a picture: say which with --mask IMAGE, white where it is to be redrawn")
    if tuple(cond.mask.shape) != want:
        raise UserError(f"mask is {tuple(cond.mask.shape)}, and {want} is asked for: give one for each sample, with one channel")
    return cond.mask.to(device) > 0.5
