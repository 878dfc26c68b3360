"""From the images of a source to those that a recipe asks for: channels, a square, and antialiased resizing of uint8 tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.config import nearest
from ..core.images import color, luma
from ..core.recipe import DataConfig
from ..core.types import UserError

__all__ = ["check_config", "inner_size", "inside", "prepare", "resize", "size_for", "surround", "to_channels"]

FITS = ("crop", "letterbox", "pad")
CHUNK = 2**24  # scalars that are resized at once, which bounds the memory for floats


def check_config(config: DataConfig) -> None:
    """Errors: `UserError` naming the field of `config` that makes no sense."""
    if config.channels not in (None, 1, 3):
        raise UserError(f"--data.channels {config.channels}: choose 1 (grey) or 3 (RGB)")
    for name, least in (("resolution", 1), ("at_least", 1), ("multiple", 1), ("translate", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--data.{name} {value}: must be at least {least}")
    if config.fit not in FITS:
        raise UserError(f"--data.fit {config.fit}: {nearest(config.fit, FITS)}")
    if not 0 < config.crop <= 1:
        raise UserError(f"--data.crop {config.crop:g}: give the smallest share of the sides that a window may have, above 0 and up to 1")
    try:
        color(config.background)
    except UserError as error:
        raise UserError(f"--data.background: {error}") from None


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


def inner_size(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Height and width to which an image of height x width is resized before it is surrounded: all of the target, or, where a resolution
    is set and `fit` keeps the whole image, the largest size of its own aspect ratio (to the nearest pixel) within the target."""
    target = size_for(height, width, config)
    if config.resolution is None or config.fit == "crop":
        return target
    return inside(height, width, target)


def inside(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the aspect ratio of height x width, to the nearest pixel, within the target."""
    scale = min(target[0] / height, target[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def surround(images: Tensor, height: int, width: int, config: DataConfig) -> Tensor:
    """uint8 (N, C, h, w) -> (N, C, height, width), in the center: `letterbox` puts them on the background (its luma, if grey), `pad`
    repeats their edges; an odd pixel goes to the bottom or to the right."""
    h, w = images.shape[2:]
    if (h, w) == (height, width):
        return images
    top, left = (height - h) // 2, (width - w) // 2
    if config.fit == "pad":
        rows, cols = (torch.arange(height) - top).clamp_(0, h - 1), (torch.arange(width) - left).clamp_(0, w - 1)
        return images[:, :, rows[:, None], cols]
    rgb = color(config.background)
    ground = images.new_tensor(rgb if images.shape[1] == 3 else [luma(rgb)])
    out = ground[:, None, None].expand(len(images), -1, height, width).clone()
    out[:, :, top : top + h, left : left + w] = images
    return out


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
    """uint8 (N, C, H, W) -> uint8 (N, C', H', W') as `config` asks: a square where it sets a resolution, then size and channels."""
    height, width = images.shape[2:]
    if config.resolution is not None and config.fit == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, :, top : top + side, left : left + side]
    if config.channels == 1:
        images = to_channels(images, 1)
    images = to_channels(resize(images, *inner_size(height, width, config)), config.channels)
    return surround(images, *size_for(height, width, config), config).contiguous()
