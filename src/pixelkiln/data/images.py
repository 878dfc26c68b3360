"""The record that every source ends up as: one uint8 tensor of images with labels, captions and maps; how labels and splits are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..core.types import DataInfo, ImageShape, UserError
from .stream import Streamed

__all__ = ["ImageSet", "Split", "check_labels", "code_labels", "hold_out"]

Split = Literal["train", "test", "all"]
CAPTIONS = 256  # at most so many of them are told to methods


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of images.

    images (N, C, H, W) uint8, in memory, or decoded when they are indexed (`Streamed`); labels (N,) int64 in 0..len(classes)-1, or None; classes () if unlabeled; texts N captions, or None;
    extras: mask (N, 1, H, W) uint8 (0 background, k = object k), edges (N, 1, H, W) uint8 in {0, 1},
    layout (N, K, 5) float32 rows (class, x0, y0, x1, y1) in [0, 1], class -1 = padding. factors: what is known
    of how each image was made, (N,) by name, int64 for categories and float32 for quantities; they do not enter the digest. source: what to open it by again, where
    that is not what it was opened by; listing: digest of what it was read from, "" where that is no listing; skipped: a line for each image that was left out;
    coded: says how the files are coded, None where there are none.
    """

    images: Tensor | Streamed
    labels: Tensor | None
    classes: tuple[str, ...]
    texts: tuple[str, ...] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""
    split: str = "train"
    source: str = ""
    listing: str = ""
    skipped: tuple[str, ...] = ()
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    coded: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        assert not isinstance(self.images, Tensor) or self.images.dtype == torch.uint8, "images are uint8"
        assert len(self.images.shape) == 4, "images are (N, C, H, W)"
        sizes = [len(part) for part in (self.labels, self.texts, *self.extras.values(), *self.factors.values()) if part is not None]
        assert all(size == len(self) for size in sizes), "every part of an ImageSet has one entry an image"
        assert (self.labels is None) == (not self.classes), "labels come with the names of the classes"

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def info(self) -> DataInfo:
        """The image shape, the names of the classes and some captions, evenly spread."""
        _, channels, height, width = self.images.shape
        step = max(1, len(self) // CAPTIONS)
        return DataInfo(ImageShape(channels, height, width), self.classes, (self.texts or ())[::step][:CAPTIONS])

    def digest(self) -> str:
        """SHA-256 (hex) over shape, images, labels, classes and captions; the name and the split do not enter. Computed once. Of a streamed set,
        whose images are never all there, the digest of its listing: names, sizes, labels, captions and how images are prepared."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if not isinstance(self.images, Tensor):
            return self.listing
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.labels is not None, self.classes)).encode())
        sha.update(self.images.cpu().flatten().numpy().data)
        if self.labels is not None:
            sha.update(self.labels.cpu().contiguous().numpy().data)
        if self.texts is not None:
            sha.update("\0".join(self.texts).encode())
        return sha.hexdigest()

    @cached_property
    def codec(self) -> str:
        """How the files of the images are coded, the most frequent first ("JPEG, PNG"); "pixels" where they were never coded, or nobody says."""
        return "pixels" if self.coded is None else self.coded()

    def images_of(self, index: Tensor) -> Tensor:
        """The images uint8 (n, C, H, W) of the rows `index` (n,) int64, in that order."""
        return self.images[index]

    def parts(self, size: int) -> Iterator[Tensor]:
        """All images uint8, in order, (size, C, H, W) at a time; the last part may be short."""
        yield from torch.split(self.images, size) if isinstance(self.images, Tensor) else self.images.parts(size)

    def take(self, index: Tensor) -> ImageSet:
        """The images of the rows `index` (n,) int64, in that order."""
        return replace(
            self,
            images=self.images[index],
            labels=None if self.labels is None else self.labels[index],
            texts=None if self.texts is None else tuple(self.texts[i] for i in index.tolist()),
            extras={name: part[index] for name, part in self.extras.items()},
            factors={name: part[index] for name, part in self.factors.items()},
        )


def hold_out(num: int, split: Split, where: str, every: int = 10) -> Tensor:
    """Rows (n,) int64 of a split of a source without a test split: each `every`-th image is test, the rest is train.

    Errors: `UserError` where the split would be empty.
    """
    rows = torch.arange(num)
    test = rows % every == every - 1
    rows = {"train": rows[~test], "test": rows[test], "all": rows}[split]
    if len(rows) == 0:
        raise UserError(f"{where} holds {num} images, too few to hold out every {every}th for a test split: add images or a test/ folder")
    return rows


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Errors: `UserError` naming the first image whose label is outside 0..num_classes-1."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        remedy = "give every image a label, or none" if labels[row] < 0 else "correct the label or add the name of its class"
        raise UserError(f"{where}: label {int(labels[row])} of image {row} is outside 0..{num_classes - 1}: {remedy}")


def code_labels(values: Sequence[str | int | None], where: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as a file has them -> labels (N,) int64 and class names: integers name themselves, strings are sorted.

    Errors: `UserError` where some images have a label and others none, or where integers and strings are mixed.
    """
    kinds = {type(value) for value in values}
    if kinds == {type(None)}:
        return None, ()
    if type(None) in kinds:
        raise UserError(f"{where}: image {values.index(None)} has no label but others do: give every image a label, or none")
    if kinds == {int}:
        labels = torch.tensor(values, dtype=torch.int64)
        num_classes = max(int(labels.max()) + 1, 1)
        check_labels(labels, num_classes, where)
        return labels, tuple(str(i) for i in range(num_classes))
    if kinds != {str}:
        raise UserError(f"{where}: labels must be all integers or all strings, not {', '.join(sorted(k.__name__ for k in kinds))}")
    classes = tuple(sorted({str(value) for value in values}))
    code = {name: i for i, name in enumerate(classes)}
    return torch.tensor([code[str(value)] for value in values], dtype=torch.int64), classes
