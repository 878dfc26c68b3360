"""What a source holds: numbers, sizes, classes, colors, captions, what cannot be decoded, and what occurs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .decode import native_size
from .hub import is_hub, list_hub
from .idx import has_idx
from .images import ImageSet, Split
from .listing import Listing
from .sources import EMBEDDED, list_source, open_source
from .twins import BITS, CORRELATION, Prints, Twins, find_twins

__all__ = ["Channel", "Opened", "Part", "Survey", "Tally", "describe", "inspect", "open_parts"]

AS_IS = DataConfig()
CHUNK = 1024  # images that are looked at together
COMMON = 64  # pixels a side to which images of mixed sizes are letterboxed


@dataclass(frozen=True)
class Channel:
    """Mean, deviation (of the population), smallest and largest value of a channel's pixels, 0..255."""

    mean: float
    deviation: float
    low: int
    high: int


@dataclass(frozen=True)
class Part:
    """One split. images: how many; shape (C, H, W) as prepared; sizes: images of each size "W x H" in the files, the most frequent first;
    classes: images of each; captions: how many different ones; extras: shape of each; bad: a line for each that cannot be decoded."""

    images: int
    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    classes: Mapping[str, int]
    channels: tuple[Channel, ...]
    captions: int
    extras: Mapping[str, tuple[int, ...]]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """A source. name: of the folder or file; prepared: how its images were prepared for this; splits by name; twins among the images as prepared, with the thresholds."""

    source: str
    name: str
    prepared: DataConfig
    splits: Mapping[str, Part]
    twins: Twins
    near_bits: int = BITS
    near_correlation: float = CORRELATION


@final
class Tally:
    """How often each of the 256 values occurs in each channel: mean and deviation follow exactly."""

    def __init__(self, num_channels: int) -> None:
        self.counts = torch.zeros((num_channels, 256), dtype=torch.int64)

    def add(self, images: Tensor) -> None:
        """The next images uint8 (n, C, H, W)."""
        self.counts += torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in images.unbind(1)])

    def channels(self) -> tuple[Channel, ...]:
        """What the counts say."""
        found = []
        for row in self.counts.tolist():
            total, first = sum(row), sum(v * n for v, n in enumerate(row))
            second = sum(v * v * n for v, n in enumerate(row))
            present = [v for v, n in enumerate(row) if n]
            deviation = sqrt(total * second - first * first) / total  # of integers: nothing cancels
            found.append(Channel(first / total, deviation, present[0], present[-1]))
        return tuple(found)


def describe(data: ImageSet, sizes: Mapping[str, int], bad: tuple[str, ...] = ()) -> tuple[Part, Prints]:
    """The facts of one split, and what is compared of it, in one pass; `sizes` and `bad` as in `Part`."""
    tally, prints = Tally(data.info.shape.channels), Prints(data.labels)
    for images in data.parts(CHUNK):
        tally.add(images)
        prints.add(images)
    counts = [] if data.labels is None else torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    part = Part(
        len(data),
        tuple(data.info.shape),
        dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        dict(zip(data.classes, counts, strict=True)),
        tally.channels(),
        len(set(data.texts or ())),
        {name: tuple(part.shape[1:]) for name, part in data.extras.items()},
        bad,
    )
    return part, prints


class Opened(NamedTuple):
    """A split in memory, the sizes of its images in the files, and a line for each that cannot be decoded."""

    data: ImageSet
    sizes: Mapping[str, int]
    bad: tuple[str, ...]


def _listing(src: str, split: Split) -> Listing | None:
    """The encoded images of a source; None where it holds pixels."""
    path = Path(src).expanduser()
    if src.partition(":")[0] in EMBEDDED or path.name.lower().endswith(".npz") or (path.is_dir() and has_idx(path)):
        return None
    return list_hub(src, split) if is_hub(src) else list_source(path, split)


def _sizes(src: str, split: Split) -> Counter[str]:
    """How many images have which size in the files; empty where these are pixels already."""
    listing = _listing(src, split)
    sizes = [native_size(item) for item in listing.items] if listing is not None else []
    return Counter(f"{size[0]} x {size[1]}" for size in sizes if size is not None)


def open_parts(src: str, config: DataConfig, splits: Sequence[Split], memory: int | None = None) -> tuple[DataConfig, dict[Split, Opened]]:
    """The splits, prepared alike, and how: images of mixed sizes, where no resolution is asked for, are letterboxed to 64 pixels; where
    one split is grey and the other is not, both are colored."""
    sizes = {split: _sizes(src, split) for split in splits}
    if config.resolution is None and len(set().union(*sizes.values())) > 1:
        config = replace(config, resolution=COMMON, fit="letterbox")
    found: dict[Split, Opened] = {}
    for split in splits:
        bad: list[str] = []
        data = open_source(src, config, split, bad, memory)
        shape = data.info.shape
        found[split] = Opened(data, sizes[split] or {f"{shape.width} x {shape.height}": len(data)}, tuple(bad))
    if len({part.data.info.shape.channels for part in found.values()}) > 1:
        return open_parts(src, replace(config, channels=3), splits, memory)
    return config, found


def inspect(src: str, config: DataConfig = AS_IS, memory: int | None = None) -> tuple[Survey, ImageSet]:
    """All facts of a source, and its first split for a contact sheet. A source with too few images for a test split is taken whole.

    memory: as of `open_source`. Errors: `UserError` where it cannot be opened.
    """
    try:
        config, parts = open_parts(src, config, ("train", "test"), memory)
    except UserError:
        try:
            config, parts = open_parts(src, config, ("all",), memory)
        except UserError:
            parts = {}
        if not parts:
            raise
    found = {split: describe(*part) for split, part in parts.items()}
    facts: dict[str, Part] = {split: part for split, (part, _) in found.items()}
    prints = [part for _, part in found.values()]
    first = next(iter(parts.values())).data
    return Survey(src, first.name, config, facts, find_twins(prints[0], prints[1] if len(prints) > 1 else None)), first
