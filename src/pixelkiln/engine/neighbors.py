"""Is it memorising? Samples beside their nearest training images, with a yardstick: how near unseen real images come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from pixelkiln.core.images import grid

from .charts import number
from .panels import ReportContext, figure

__all__ = ["Space", "nearest", "neighbors_panel"]

SHOWN, POOL, TYPICAL = 8, 60_000, 200  # samples shown, training images searched, test images for comparison
MEMORY = 2**30  # bytes of training images that are searched
BLOCK = 8192  # training images compared at a time

READING = (
    "Each sample with the nearest of {pool:,} training images and the L2 distance to it (pixel values in [0, 1]; features as the extractor "
    "gives them). The factor × compares it with the median distance from a test image to its nearest training image: about 1 is what an "
    "unseen real image has; 0.5 and less in several samples means that training images are being copied; far above 1, that the sample "
    "resembles no training image. Median of the test images, and samples nearer than 95 % of them: {spaces}."
)


@dataclass(frozen=True)
class Space:
    """Distances in one space: of samples (N,) to the training images in `rows` (N,), and of test images (M,) to their nearest."""

    name: str
    distance: Tensor
    rows: Tensor
    typical: Tensor

    @property
    def median(self) -> float:
        """Median distance of the test images, 0 without any."""
        return self.typical.median().item() if len(self.typical) else 0.0

    def label(self, k: int) -> str:
        """The distance of sample k, and its ratio to the median where there is one."""
        ratio = f" (×{self.distance[k].item() / self.median:.2f})" if self.median > 0 else ""
        return f"{self.name} {self.distance[k].item():.4g}{ratio}"

    def summary(self) -> str:
        """The median, and how many samples are nearer than 95 % of the test images."""
        if self.median == 0:
            return f"{self.name}: no test images that differ from the training images"
        close = int((self.distance < torch.quantile(self.typical, 0.05)).sum())
        return f"{self.name} {number(self.median)}, {close} of {len(self.distance)}"


def nearest(queries: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) and row (N,) in `pool` (M, D) of the nearest neighbor of each of `queries` (N, D).

    Three candidates come from |q|^2 - 2 q p + |p|^2 in blocks; their distances are then computed directly, so that a copy has distance 0.
    """
    q = queries.float()
    parts = []
    with torch.autocast(q.device.type, enabled=False):  # bf16 products would not tell neighbors apart
        for block in torch.split(pool, BLOCK):
            p = block.float()
            parts.append((p * p).sum(1) - 2 * q @ p.T)  # (N, block); |q|^2 does not change the order
    rows = torch.cat(parts, 1).topk(min(3, len(pool)), largest=False).indices  # (N, 3)
    exact = (pool[rows].float() - q[:, None]).norm(dim=2)  # (N, 3)
    distance, which = exact.min(1)
    return distance, rows.gather(1, which[:, None]).squeeze(1)


def _space(name: str, groups: Sequence[Tensor], unit: float) -> Space:
    """groups: samples (N, D), test images (M, D), training images (P, D); unit divides the distances."""
    samples, real, pool = groups
    distance, rows = nearest(torch.cat([samples, real]), pool)
    n = len(samples)
    return Space(name, distance[:n] / unit, rows[:n], distance[n:] / unit)


def neighbors_panel(context: ReportContext) -> str:
    """Some samples, each beside its nearest training images by pixels and by features."""
    if not context.method.generates:
        return ""
    images = context.drawn.images
    images = images[torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().long()]
    some, rows = context.pick(context.test, TYPICAL), context.pick(context.train, min(POOL, MEMORY // images[0].numel()))
    pool = context.train.images[rows].cpu()
    spaces = [_space("pixels", [g.flatten(1) for g in (images, context.test.images[some].cpu(), pool)], 255.0)]
    if context.extractor is not None:
        extractor = context.extractor
        with torch.autocast(context.method.device.type, enabled=False):
            features = (extractor.features(images), extractor.features(context.test.images[some]), extractor.features_of(context.train, rows))
        spaces.append(_space("features", [f.cpu().flatten(1) for f in features], 1.0))
    cards = []
    for k, sample in enumerate(images):
        found = [figure(grid(pool[s.rows[k]][None], 1, pad=0), s.label(k)) for s in spaces]
        cards.append(f'<div class="card">{figure(grid(sample[None], 1, pad=0), "sample")}{"".join(found)}</div>')
    reading = READING.format(pool=len(pool), spaces="; ".join(s.summary() for s in spaces))
    return f'<div class="cards">{"".join(cards)}</div><p class="note">{escape(reading)}</p>'
