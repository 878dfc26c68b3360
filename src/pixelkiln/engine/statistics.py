"""All that scores need to know of a set of images, gathered in one pass and constant memory, mergeable over processes.

Kept: the moments of all features; the features of POOL images, those with the smallest hash of (seed, number), so that neither the order
nor the batches nor the processes decide which; sums behind the Inception Score and the classes; 8 bytes an image to find copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..core.rng import key, permutation
from ..core.types import ImageShape, UserError
from ..data import ImageSet
from ..metrics import Agreement, InceptionScore, Modes, Moments
from .extractor import FeatureExtractor
from .features import PART, conform
from .kept import keep, recall
from .parallel import ALONE, Team

__all__ = ["POOL", "Statistics", "score_shard", "statistics_of"]

POOL = 5_000  # features kept for kernels, neighborhoods and the like
VERSION = 2  # of what is kept: change it and everything is made anew


def priority(numbers: Tensor, seed: int) -> Tensor:
    """A pseudo-random int64 for each number (n,): SplitMix64 (Steele, Lea and Flood, 2014) of number + key(seed)."""
    with np.errstate(over="ignore"):
        z = numbers.numpy().astype(np.uint64) + np.uint64(key(seed, "pool"))
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(1)).astype(np.int64))


@final
class Statistics:
    """Of images numbered 0..N-1, in any order and parts. shape: the size at which copies are looked for."""

    def __init__(self, extractor: FeatureExtractor, shape: ImageShape, seed: int = 0, size: int = POOL) -> None:
        self.extractor, self.shape, self.seed, self.size = extractor, shape, seed, size
        self.moments = Moments(extractor.dim)
        self.numbers, self.pool = torch.empty(0, dtype=torch.int64), torch.empty(0, extractor.dim)  # (n,), (n, d), in order of the numbers
        self.prints = torch.empty(0, dtype=torch.int64)
        num = max(extractor.num_classes, 1)
        self.inception, self.modes, self.agreement = InceptionScore(num, seed=seed), Modes(num), Agreement(num)

    def __len__(self) -> int:
        return self.moments.n

    def update(self, images: Tensor, numbers: Tensor | None = None, labels: Tensor | None = None) -> Statistics:
        """Add images uint8 (B, C, H, W) with their numbers (B,) (None: those after the last) and labels (B,). Errors as `look`."""
        return self.add(self.look(images, torch.arange(len(self), len(self) + len(images)) if numbers is None else numbers, labels))

    def look(self, images: Tensor, numbers: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """What `add` needs of images, in this process or in another: the costly part. `UserError` if features are not finite."""
        features = self.extractor.features(images)
        if not features.isfinite().all():
            raise UserError(f"{self.extractor.name} returns features that are not finite: give other weights")
        seen = {"numbers": numbers, "features": features, "prints": fingerprints(conform(images, self.shape))}
        return seen if labels is None else seen | {"labels": labels.cpu()}

    def add(self, seen: Mapping[str, Tensor]) -> Statistics:
        """Add what `look` saw."""
        numbers, features, labels = seen["numbers"], seen["features"], seen.get("labels")
        self.moments.update(features)
        self._pool(numbers, features)
        self.prints = torch.cat([self.prints, seen["prints"]])
        if self.extractor.num_classes:
            p = self.extractor.probabilities(features)
            self.inception.update(p, numbers)
            self.modes.update(p.argmax(1))
            if labels is not None:
                self.agreement.update(labels, p.argmax(1))
        return self

    def _pool(self, numbers: Tensor, features: Tensor) -> None:
        """Keep the features with the smallest priorities."""
        numbers, features = torch.cat([self.numbers, numbers]), torch.cat([self.pool, features])
        if len(numbers) > self.size:
            kept = priority(numbers, self.seed).argsort(stable=True)[: self.size]
            numbers, features = numbers[kept], features[kept]
        self.numbers, order = numbers.sort()
        self.pool = features[order]

    def merge(self, other: Statistics) -> Statistics:
        """Add those of other numbers (of another process, say), gathered alike."""
        assert (self.extractor.weights, self.shape, self.seed, self.size) == (other.extractor.weights, other.shape, other.seed, other.size)
        self.moments.merge(other.moments)
        self._pool(other.numbers, other.pool)
        self.prints = torch.cat([self.prints, other.prints])
        self.inception.merge(other.inception)
        self.modes.merge(other.modes)
        self.agreement.merge(other.agreement)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a file or another process."""
        i, m = self.inception, self.moments
        counts = torch.tensor([m.n, i.seen])
        return {"mean": m.mean, "scatter": m.scatter, "numbers": self.numbers, "pool": self.pool, "prints": self.prints, "is n": i.n,
                "is total": i.total, "is negentropy": i.negentropy, "modes": self.modes.counts, "agreement": self.agreement.counts, "counts": counts}

    def load(self, tensors: dict[str, Tensor]) -> Statistics:
        """What `tensors` gave, into empty statistics of the same extractor, shape, seed and size."""
        i, m = self.inception, self.moments
        m.n, i.seen = (int(n) for n in tensors["counts"])
        m.mean, m.scatter, i.n, i.total, i.negentropy = (tensors[k] for k in ("mean", "scatter", "is n", "is total", "is negentropy"))
        self.numbers, self.pool, self.prints, self.modes.counts, self.agreement.counts = (tensors[k] for k in ("numbers", "pool", "prints", "modes", "agreement"))
        return self


def fingerprints(images: Tensor) -> Tensor:
    """A 64-bit fingerprint of each image's pixels, int64 (n,): two of a million different images collide once in 10^7 such sets."""
    found = [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little", signed=True) for row in images.contiguous().numpy()]
    return torch.tensor(found, dtype=torch.int64)


def score_shard(extractor: FeatureExtractor, data: ImageSet, shape: ImageShape, seed: int = 0, rank: int = 0, world: int = 1) -> Statistics:
    """Statistics of the images rank, rank + world, ... of a set: `merge` those of all ranks, in order, to have what one process has."""
    found = Statistics(extractor, shape, seed)
    for rows in torch.split(torch.arange(rank, len(data), world), PART):
        found.update(data.images_of(rows), rows, None if data.labels is None else data.labels[rows])
    return found


def statistics_of(extractor: FeatureExtractor, data: ImageSet, shape: ImageShape, seed: int = 0, num: int | None = None, team: Team = ALONE) -> Statistics:
    """Statistics of a set, or of `num` of its images, chosen by seed; kept by content, extractor, preparation, shape, seed and number.

    Several processes look at parts in turn, and process 0 has what one would have; the others' stay empty.
    """
    num = len(data) if num is None else min(num, len(data))
    rows = torch.arange(len(data)) if num == len(data) else permutation(len(data), seed, "floor")[:num]
    what = (VERSION, data.digest(), extractor.name, extractor.weights, extractor.how(tuple(data.info.shape)), tuple(shape), seed, num, POOL)
    file = Path(extractor.folder) / f"statistics-{data.digest()[:16]}-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.safetensors"
    found = Statistics(extractor, shape, seed)
    known = recall(file) if team.first else None
    if team.agree(lambda: known is not None):
        return found if known is None else found.load(known)

    def look(start: int) -> dict[str, Tensor]:
        part = rows[start : start + PART]
        return found.look(data.images_of(part), torch.arange(start, start + len(part)), None if data.labels is None else data.labels[part])

    for seen in team.in_turn(partial(look, start) for start in range(0, num, PART)):
        found.add(seen)
    if team.first:
        keep(file, found.tensors(), {"data": data.name, "split": data.split, "digest": data.digest(), "N": num, "seed": seed, "extractor": extractor.name,
                                     "weights": extractor.weights, "images": extractor.how(tuple(data.info.shape))})
    return found
