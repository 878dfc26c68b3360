"""Images that occur twice: exactly, by their bytes, or nearly, by a perceptual hash; within a split, and between train and test.

The hash of an image has 64 bits: which of the 8 x 8 lowest DCT coefficients of its luma at 16 x 16 pixels exceed their median (C. Zauner,
Implementation and benchmarking of perceptual image hash functions, 2010, section 3.2.1). Two images are near where their hashes differ
in at most BITS bits and their 16 x 16 thumbnails, all channels together, correlate by at least CORRELATION: so brightness and contrast
may differ, color and what is shown may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import NamedTuple, final

import torch
from torch import Tensor

from .images import ImageSet
from .prepare import resize, to_channels

__all__ = ["BITS", "CORRELATION", "MOST", "Pair", "Prints", "Repeats", "Twins", "codes", "find_twins", "near", "thumbnails"]

BITS, CORRELATION = 10, 0.99
MOST = 200_000  # images among which near ones are sought; the time grows as the square
KEPT = 1_000  # pairs that are listed
THUMB, LOW = 16, 8
BLOCK = 512  # rows that are compared with all at once


class Pair(NamedTuple):
    """An image and an earlier one that it repeats: rows of their splits; correlation 1 where the bytes are the same."""

    row: int
    earlier: int
    correlation: float


@dataclass(frozen=True)
class Repeats:
    """How many images repeat an earlier one, exactly or nearly (None: not sought); how many of the exact ones have another label than it;
    the first pairs."""

    exact: int
    near: int | None
    conflicts: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Twins:
    """Repeats within train, within test (None where there is none), and of train images in test."""

    train: Repeats
    test: Repeats | None
    between: Repeats | None


def thumbnails(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, 16, 16)."""
    return resize(images, THUMB, THUMB)


def codes(thumbs: Tensor) -> Tensor:
    """Hashes of thumbnails (N, C, 16, 16), as float (N, 64) of +1 and -1: the product of two is 64 - 2 (number of bits that differ)."""
    rows = [[(sqrt(2) if k else 1) / sqrt(THUMB) * cos(pi * (n + 0.5) * k / THUMB) for n in range(THUMB)] for k in range(LOW)]
    dct = torch.tensor(rows, dtype=torch.float64)  # (8, 16)
    found = torch.empty((len(thumbs), LOW * LOW))
    for part, out in zip(torch.split(thumbs, BLOCK), torch.split(found, BLOCK), strict=True):
        low = (dct @ to_channels(part, 1)[:, 0].double() @ dct.T).flatten(1)  # (n, 64)
        out.copy_(torch.where(low > low[:, 1:].median(dim=1, keepdim=True).values, 1.0, -1.0))
    return found


def near(thumbs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (n, 2) of rows i < j that are near, and their correlations (n,), a block at a time."""
    bits = codes(thumbs)
    for start in range(0, len(bits), BLOCK):
        close = bits[start : start + BLOCK] @ bits[start:].T >= LOW * LOW - 2 * BITS
        pairs = close.triu(1).nonzero() + start  # row i of the block is column i
        for part in torch.split(pairs, 2**16):
            a, b = (_centered(thumbs[rows]) for rows in part.T)
            correlation = (a * b).sum(1)
            keep = correlation >= CORRELATION
            yield part[keep], correlation[keep]


def _centered(thumbs: Tensor) -> Tensor:
    """(n, D) of mean 0 and norm 1; 0 where a thumbnail has one color."""
    flat = thumbs.float().flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)


@final
class Prints:
    """What of a split is compared: a digest of each image's bytes, its thumbnail, its label."""

    def __init__(self, labels: Tensor | None = None) -> None:
        self.labels = labels
        self.digests: list[bytes] = []
        self.parts: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """The next images uint8 (n, C, H, W); above MOST no more thumbnails are kept."""
        self.digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]
        if len(self.digests) <= MOST:
            self.parts.append(thumbnails(images))

    @classmethod
    def of(cls, data: ImageSet) -> Prints:
        """Those of a whole set."""
        prints = cls(data.labels)
        for part in data.parts(BLOCK):
            prints.add(part)
        return prints


class _Count:
    """Repeats as they are found. A pair is (row, earlier), rows of the two splits."""

    def __init__(self, later: Prints, earlier: Prints, sought: bool) -> None:
        self.later, self.earlier = later, earlier
        num = len(later.digests)
        self.exact, self.near = torch.zeros(num, dtype=torch.bool), torch.zeros(num, dtype=torch.bool)
        self.sought, self.conflicts = sought, 0
        self.pairs: list[Pair] = []

    def add(self, row: int, earlier: int, correlation: float, exact: bool) -> None:
        """One pair."""
        if exact and self.later.labels is not None and self.earlier.labels is not None:
            self.conflicts += int(self.later.labels[row] != self.earlier.labels[earlier])
        (self.exact if exact else self.near)[row] = True
        if len(self.pairs) < KEPT:
            self.pairs.append(Pair(row, earlier, round(correlation, 4)))

    def done(self) -> Repeats:
        """An image that repeats one exactly is not counted among the near ones."""
        num_near = int((self.near & ~self.exact).sum()) if self.sought else None
        return Repeats(int(self.exact.sum()), num_near, self.conflicts, tuple(self.pairs))


def find_twins(train: Prints, test: Prints | None) -> Twins:
    """All repeats of one or two splits of the same image shape. Near ones are sought among the different images, up to MOST of them."""
    splits = [train] if test is None else [train, test]
    first: dict[bytes, tuple[int, int]] = {}  # of an image: its split and row where it occurs first
    seen: list[dict[bytes, int]] = [{}, {}]
    sought = sum(len(part.digests) for part in splits) <= MOST
    counts = {(a, b): _Count(splits[a], splits[b], sought) for a in range(len(splits)) for b in range(a + 1)}
    for a, part in enumerate(splits):
        for row, digest in enumerate(part.digests):
            for b in range(a + 1):
                if digest in seen[b]:
                    counts[a, b].add(row, seen[b][digest], 1.0, exact=True)
            seen[a].setdefault(digest, row)
            first.setdefault(digest, (a, row))
    if sought:
        places = sorted(first.values())
        thumbs = torch.cat([torch.cat(part.parts)[[row for a, row in places if a == k]] for k, part in enumerate(splits)])
        for pairs, correlation in near(thumbs):
            for (i, j), value in zip(pairs.tolist(), correlation.tolist(), strict=True):
                (b, earlier), (a, row) = places[i], places[j]
                counts[a, b].add(row, earlier, value, exact=False)
    return Twins(counts[0, 0].done(), counts[1, 1].done() if test else None, counts[1, 0].done() if test else None)
