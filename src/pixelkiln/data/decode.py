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
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .prepare import prepare, size_for

__all__ = ["FORMATS", "MAX_PIXELS", "Encoded", "decode", "decode_all"]

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
CHUNK = 64  # images of one task of a thread


class Encoded(NamedTuple):
    """An encoded image, as a path or as its bytes, and what to call it in a message."""

    where: str
    source: Path | bytes


def decode(item: Encoded, config: DataConfig) -> np.ndarray[Any, Any]:
    """One image as uint8 (H, W, C), C = 1 or 3: upright (EXIF), on white where transparent, and cropped and resized to a resolution.

    Errors: `UserError` where it is no image, of another format, broken, or larger than MAX_PIXELS.
    """
    where, source = item
    if isinstance(source, Path) and not source.is_file():  # a pipe or a device would be read without end
        raise UserError(f"{where} is not a file: remove it")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if config.resolution is not None:
                side = 3 * size_for(image.height, image.width, config)[0]
                image.draft(None, (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8, still 3 times too large
            pixels = np.asarray(_sized(_flat(image, config.channels), config))
        return pixels if pixels.ndim == 3 else pixels[..., None]
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


def decode_all(items: Sequence[Encoded], config: DataConfig) -> Tensor:
    """All images as uint8 (N, C, H, W): grey only if all are, prepared as `config` asks.

    Errors: `UserError` as `decode`, and where sizes differ and `config` sets no resolution.
    """

    def task(start: int) -> list[np.ndarray[Any, Any]]:
        return [decode(item, config) for item in items[start : start + CHUNK]]

    pixels: list[np.ndarray[Any, Any] | None] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for chunk in pool.map(task, range(0, len(items), CHUNK)):
            pixels.extend(chunk)
    shapes = [part.shape for part in pixels if part is not None]
    height, width = shapes[0][:2]
    channels = config.channels or max(shape[2] for shape in shapes)
    images = torch.empty((len(items), channels, height, width), dtype=torch.uint8)
    flat = images.numpy()
    for i, part in enumerate(pixels):
        assert part is not None
        if part.shape[:2] != (height, width):
            sizes = f"{items[0].where} is {width}x{height} but {items[i].where} is {part.shape[1]}x{part.shape[0]}"
            raise UserError(f"{sizes}: pass --data.resolution N to bring all to one size")
        flat[i] = part.transpose(2, 0, 1)  # a grey image among colored ones is repeated
        pixels[i] = None  # frees it: the peak is one copy
    return images if config.resolution is not None else prepare(images, config)
