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
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..core.images import color, flatten
from ..core.recipe import DataConfig
from ..core.types import UserError
from .encoded import Encoded
from .prepare import inside, prepare, size_for, surround

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "Encoded", "decode", "decode_all", "native_size"]

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
MAX_BYTES = 2**28
MAX_PIXELS = 64_000_000
CHUNK = 64  # images of one task of a thread


def decode(item: Encoded, config: DataConfig, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """One image as uint8 (H, W, C), C = 1 or 3: upright (EXIF), on the background where transparent, and brought to a resolution.

    size: height and width that take the place of the configuration's resolution, square or not. Of an animation, the first picture.
    Errors: `UserError` where it is no image, of another format, broken, or larger than MAX_BYTES or MAX_PIXELS.
    """
    where, source = item
    if isinstance(source, Path) and not source.is_file():  # a pipe or a device would be read without end
        raise UserError(f"{where} is not a file: remove it")
    try:
        length = source.stat().st_size if isinstance(source, Path) else len(source) if isinstance(source, bytes) else source.size
        if length > MAX_BYTES:
            raise UserError(f"{where} has more than {MAX_BYTES // 2**20} MiB: make it smaller")
        data = source if isinstance(source, Path | bytes) else source.read()
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if size is None and config.resolution is not None:
                size = size_for(image.height, image.width, config)
            if size is not None:
                image.draft(None, (3 * max(size), 3 * max(size)))  # a JPEG is decoded at 1/2, 1/4 or 1/8, still 3 times too large
            return _sized(flatten(image, config.channels, color(config.background)), config, size)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{where} has more than {MAX_PIXELS // 10**6} million pixels: shrink it first") from None
    except UnidentifiedImageError:
        raise UserError(f"{where} is not a PNG, JPEG, WebP or BMP image: convert or remove it") from None
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, ... on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be decoded ({reason}): replace or remove it") from error


def native_size(item: Encoded) -> tuple[int, int] | None:
    """Width and height of the upright image, as the file's header says; None where it is no image."""
    data = item.source if isinstance(item.source, Path | bytes) else item.source.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
                return image.size[::-1] if image.getexif().get(0x0112, 1) >= 5 else image.size
    except Exception:  # as in `decode`, which says what is wrong
        return None


def _sized(image: Image.Image, config: DataConfig, size: tuple[int, int] | None) -> np.ndarray[Any, Any]:
    """A flat image as uint8 (H, W, C) of height and width `size`, fitted as `config` says; as it is where there is none."""
    width, height = image.size
    target = inner = size or (height, width)
    if config.fit == "crop":  # the largest window of the target's aspect ratio
        scale = max(target[0] / height, target[1] / width)
        high, wide = max(1, round(target[0] / scale)), max(1, round(target[1] / scale))
        left, top = (width - wide) // 2, (height - high) // 2
        if (high, wide) != (height, width):
            image = image.crop((left, top, left + wide, top + high))
    else:
        inner = inside(height, width, target)
    if image.size != inner[::-1]:
        image = image.resize(inner[::-1], Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(image)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if inner == target:
        return pixels
    return surround(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], *target, config)[0].permute(1, 2, 0).numpy()


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
