"""From the images of a source to those that a recipe asks for: channels, center crop and antialiased resizing of uint8 tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.recipe import DataConfig
from ..core.types import UserError

__all__ = ["check_config", "prepare", "resize", "size_for", "to_channels"]

CHUNK = 2**24  # scalars that are resized at once, which bounds the memory for floats


def check_config(config: DataConfig) -> None:
    """Errors: `UserError` naming the field of `config` that makes no sense."""
    if config.channels not in (None, 1, 3):
        raise UserError(f"--data.channels {config.channels}: choose 1 (grey) or 3 (RGB)")
    for name, least in (("resolution", 1), ("at_least", 1), ("multiple", 1), ("translate", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--data.{name} {value}: must be at least {least}")


def size_for(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Height and width of the prepared images, for images of height x width.

    A resolution makes them square; then the shorter side is enlarged to `at_least`; then each side is rounded up to `multiple`.
    """
    if config.resolution is not None:
        height = width = config.resolution
    short = min(height, width)
    if short < config.at_least:
        height, width = round(height * config.at_least / short), round(width * config.at_least / short)
    return -(-height // config.multiple) * config.multiple, -(-width // config.multiple) * config.multiple


def to_channels(images: Tensor, channels: int | None) -> Tensor:
    """uint8 (N, C, H, W) -> (N, channels, H, W): luma of ITU-R BT.601 in 16-bit fixed point (as Pillow's mode L), or a repeated grey."""
    if channels is None or channels == images.shape[1]:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    grey = torch.empty_like(images[:, :1])
    for part, out in zip(torch.split(images, 1024), torch.split(grey, 1024), strict=True):
        r, g, b = part.int().unbind(1)  # (n, H, W)
        out[:, 0] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    return grey


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """uint8 (N, C, H, W) -> (N, C, height, width): bicubic (a = -1/2) with antialiasing, rounded and clamped to 0..255."""
    if images.shape[2:] == (height, width):
        return images
    num, channels = images.shape[:2]
    out = images.new_empty((num, channels, height, width))
    rows = max(1, CHUNK // (channels * max(height * width, images[0, 0].numel())))
    for part, target in zip(torch.split(images, rows), torch.split(out, rows), strict=True):
        floats = F.interpolate(part.float(), (height, width), mode="bicubic", align_corners=False, antialias=True)
        target.copy_(floats.round_().clamp_(0, 255))
    return out


def prepare(images: Tensor, config: DataConfig) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C', H', W') as `config` asks: a center square where it sets a resolution, then size and channels."""
    height, width = images.shape[2:]
    if config.resolution is not None and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, :, top : top + side, left : left + side]
    if config.channels == 1:
        images = to_channels(images, 1)
    images = resize(images, *size_for(height, width, config))
    return to_channels(images, config.channels).contiguous()
