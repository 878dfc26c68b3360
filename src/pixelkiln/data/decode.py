"""Encoded images (PNG, JPEG, WebP, BMP) to one uint8 tensor, by threads. The format is told by the first bytes, never by the name.

What is decoded comes from strangers: other parsers of Pillow stay closed, the number of pixels is checked before any is decoded, and
everything that a parser raises becomes one line that names the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .encoded import Encoded
from .prepare import prepare, size_for

__all__ = ["FORMATS", "MAX_PIXELS", "Encoded", "decode", "decode_all"]

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
CHUNK = 64  # images of one task of a thread


def decode(item: Encoded, config: DataConfig) -> np.ndarray[Any, Any]:
    """One image as uint8 (H, W, C), C = 1 or 3: upright (EXIF), on white where transparent, and cropped and resized to a resolution.

    Errors: `UserError` where it is no image, of another format, broken, or larger than MAX_PIXELS.
    """
    where, source = item
    try:
        data = source if isinstance(source, Path | bytes) else source.read()
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if config.resolution is not None:
                side = 3 * size_for(image.height, image.width, config)[0]
                image.draft(None, (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8, still 3 times too large
            pixels = np.asarray(_sized(_flat(image, config.channels), config))
        return pixels if pixels.ndim == 3 else pixels[..., None]
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{where} has more than {MAX_PIXELS // 10**6} million pixels: shrink it first") from None
    except UnidentifiedImageError:
        raise UserError(f"{where} is not a PNG, JPEG, WebP or BMP image: convert or remove it") from None
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, ... on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be decoded ({reason}): replace or remove it") from error


def _flat(image: Image.Image, channels: int | None) -> Image.Image:
    """The image upright, in mode L or RGB, with what is transparent composited on white."""
    ImageOps.exif_transpose(image, in_place=True)
    grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    if image.mode.startswith("I"):  # 16 bits: 65535 = 255 * 257
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    mode = {None: "L" if grey else "RGB", 1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _sized(image: Image.Image, config: DataConfig) -> Image.Image:
    """The center square at the size that `config` asks for; the whole image where it sets no resolution."""
    if config.resolution is None:
        return image
    width, height = image.size
    target_height, target_width = size_for(height, width, config)
    if width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size == (target_width, target_height):
        return image
    return image.resize((target_width, target_height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def decode_all(items: Sequence[Encoded], config: DataConfig, failed: dict[int, str] | None = None) -> Tensor:
    """All images as uint8 (N, C, H, W): grey only if all are, prepared as `config` asks.

    failed: where given, an image that cannot be decoded is left out, and its index among the items and what is wrong are put there.
    Errors: `UserError` as `decode`, where no image can be decoded, and where sizes differ and `config` sets no resolution.
    """

    def attempt(item: Encoded) -> np.ndarray[Any, Any] | UserError:
        try:
            return decode(item, config)
        except UserError as error:
            if failed is None:
                raise
            return error

    def task(start: int) -> list[np.ndarray[Any, Any] | UserError]:
        return [attempt(item) for item in items[start : start + CHUNK]]

    found: list[np.ndarray[Any, Any] | UserError] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for chunk in pool.map(task, range(0, len(items), CHUNK)):
            found.extend(chunk)
    if failed is not None:
        failed |= {i: str(part) for i, part in enumerate(found) if isinstance(part, UserError)}
    parts = [(item.where, part) for item, part in zip(items, found, strict=True) if not isinstance(part, UserError)]
    found.clear()
    return _stacked(parts, config)


def _stacked(parts: list[tuple[str, np.ndarray[Any, Any]]], config: DataConfig) -> Tensor:
    """Named decoded images as one prepared tensor; the list is emptied on the way, so that the peak is one copy."""
    if not parts:
        raise UserError("no image can be decoded: give images that are whole")
    height, width = parts[0][1].shape[:2]
    for where, part in parts:
        if part.shape[:2] != (height, width):
            sizes = f"{parts[0][0]} is {width}x{height} but {where} is {part.shape[1]}x{part.shape[0]}"
            raise UserError(f"{sizes}: pass --data.resolution N to bring all to one size")
    channels = config.channels or max(part.shape[2] for _, part in parts)
    images = torch.empty((len(parts), channels, height, width), dtype=torch.uint8)
    flat = images.numpy()
    while parts:
        part = parts.pop()[1]
        flat[len(parts)] = part.transpose(2, 0, 1)  # a grey image among colored ones is repeated
    return images if config.resolution is not None else prepare(images, config)
