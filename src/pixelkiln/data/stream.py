"""Images that do not fit in memory stay encoded, and are decoded whenever they are asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar, final

import torch
from PIL import Image
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .decode import FORMATS, decode, decode_all
from .encoded import Encoded

__all__ = ["Streamed", "cores", "decode_like", "find_bad", "survey"]

CHUNK = 1024  # images looked at before the next decision
T = TypeVar("T")


def cores() -> int:
    """Processor cores that this process may use, of those that torchrun's processes on this machine share."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@final
class Streamed:
    """Encoded images that look like a tensor: uint8 `shape` (N, C, H, W); an index decodes the rows that it names, by threads.

    workers: processes that decode for training (0: none, the threads do).
    """

    def __init__(self, items: Sequence[Encoded], config: DataConfig, shape: Sequence[int], workers: int | None = None) -> None:
        channels, height, width = shape
        self.items, self.config = items, replace(config, channels=channels)
        self.shape = torch.Size((len(items), channels, height, width))
        self.workers = max(1, cores() - 1) if workers is None else workers

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The images uint8 (n, C, H, W) of the rows `index`, in that order."""
        rows = torch.arange(len(self))[index].tolist()
        if not rows:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return decode_like([self.items[i] for i in rows], self.config, self.shape[1:])

    def parts(self, size: int) -> Iterator[Tensor]:
        """All images, in order, (size, C, H, W) at a time; the next part is decoded while the caller has the last one."""
        ends = [slice(start, start + size) for start in range(0, len(self), size)]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.__getitem__, ends[0])
            for end in [*ends[1:], None]:
                part = waiting.result()
                if end is not None:
                    waiting = pool.submit(self.__getitem__, end)
                yield part


def decode_like(items: Sequence[Encoded], config: DataConfig, shape: Sequence[int]) -> Tensor:
    """Images uint8 (n, *shape). Errors: `UserError` as `decode_all`, and where they come out in another shape."""
    images = decode_all(items, config)
    if tuple(images.shape[1:]) != tuple(shape):
        sizes = f"{items[0].where} comes out as {images.shape[3]}x{images.shape[2]} and other images as {shape[2]}x{shape[1]}"
        raise UserError(f"{sizes}: pass --data.resolution N to bring all to one size")
    return images


def _each(items: Sequence[Encoded], look: Callable[[Encoded], T]) -> Iterator[tuple[int, T]]:
    """What `look` says of each image, in order, by threads."""
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")  # remarks on odd metadata
        for start in range(0, len(items), CHUNK):
            yield from enumerate(pool.map(look, items[start : start + CHUNK]), start)


def find_bad(items: Sequence[Encoded], config: DataConfig) -> dict[int, str]:
    """The images that cannot be decoded, by index, with what is wrong; every image is decoded once for it."""

    def look(item: Encoded) -> str | None:
        try:
            decode(item, config)
        except UserError as error:
            return str(error)
        return None

    return {i: line for i, line in _each(items, look) if line is not None}


def survey(items: Sequence[Encoded], config: DataConfig) -> tuple[int, int, int]:
    """Shape (C, H, W) that all images come out in: grey only if all are.

    The headers of all images are looked at where `config` sets no resolution; where it sets one, only until a colored image is found.
    Errors: `UserError` where sizes differ and `config` sets no resolution.
    """
    first = decode_all(items[:1], config)
    channels, height, width = first.shape[1:]
    if config.resolution is not None and (config.channels is not None or channels == 3):
        return channels, height, width
    size: tuple[int, int] | None = None
    for i, (found, grey) in _each(items, _header):
        size = size or found
        if config.resolution is None and found != size:
            sizes = f"{items[0].where} is {size[0]}x{size[1]} but {items[i].where} is {found[0]}x{found[1]}"
            raise UserError(f"{sizes}: pass --data.resolution N to bring all to one size")
        if channels == 1 and config.channels is None and not grey and decode(items[i], config).shape[2] == 3:
            channels = 3
            if config.resolution is not None:
                break
    return channels, height, width


def _header(item: Encoded) -> tuple[tuple[int, int], bool]:
    """Width and height of the upright image, and whether its header says that it is grey. Errors: `UserError` as `decode`."""
    try:
        source = item.source if isinstance(item.source, Path | bytes) else item.source.read()
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: on its side
            return (image.size[::-1] if turned else image.size), image.mode in ("1", "L") or image.mode.startswith("I")
    except Exception:  # decode knows what is wrong
        pixels = decode(item, DataConfig())
        return (pixels.shape[1], pixels.shape[0]), pixels.shape[2] == 1
