"""The few records that every room passes around: shapes, conditions, batches, requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import UserError

__all__ = ["Ability", "Batch", "Condition", "DataInfo", "ImageShape", "Moment", "Request", "Truncation", "UserError"]

Truncation = Literal["resampled", "scaled", "narrowed"]  # what a truncated latent is: objectives/truncation.py


@dataclass(frozen=True)
class ImageShape:
    """The shape of one image; it need not be square."""

    channels: int
    height: int
    width: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.channels, self.height, self.width))

    @property
    def numel(self) -> int:
        """Number of scalars in one image, D = C * H * W."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class DataInfo:
    """What a method may know about its data when it is built: the image shape, the names of the classes and some of the captions (may be empty)."""

    shape: ImageShape
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


class Ability(StrEnum):
    """A field of a `Request` (or of its condition) that a method knows how to use. Any other field is refused."""

    LABEL = "label"
    TEXT = "text"
    SOURCE = "source"
    MASK = "mask"
    LAYOUT = "layout"
    DOMAIN = "domain"
    COORDS = "coords"
    STEPS = "steps"
    SOLVER = "solver"
    SPACING = "spacing"
    LEVELS = "levels"
    ETA = "eta"
    CHURN = "churn"
    GUIDANCE = "guidance"
    INTERVAL = "interval"
    RESCALE = "rescale"
    THRESHOLD = "threshold"
    STRENGTH = "strength"
    TRUNCATION = "truncation"
    TEMPERATURE = "temperature"
    TOP_K = "top_k"
    TOP_P = "top_p"


@dataclass(frozen=True)
class Condition:
    """What images are conditioned on. Every tensor has the batch first; None means "not given".

    label (B,) int64, -1 = no label; text B strings; source (B, C, H, W) in [-1, 1]; mask (B, 1, H, W) in {0, 1}, 1 = to be redrawn;
    layout (B, K, 5) rows (class, x0, y0, x1, y1) in [0, 1], class -1 = padding; domain (B,) int64; coords (B, 2, H, W) in [-1, 1].
    """

    label: Tensor | None = None
    text: tuple[str, ...] | None = None
    source: Tensor | None = None
    mask: Tensor | None = None
    layout: Tensor | None = None
    domain: Tensor | None = None
    coords: Tensor | None = None

    def given(self) -> frozenset[str]:
        """Names of the fields that are not None."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def take(self, rows: slice) -> Condition:
        """The same condition for some rows of the batch."""
        rows_of: dict[str, Any] = {name: getattr(self, name)[rows] for name in self.given()}
        return Condition(**rows_of)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        moved: dict[str, Any] = {name: getattr(self, name) for name in self.given()}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()}
        return Condition(**moved)


@dataclass(frozen=True)
class Batch:
    """Training images x (B, C, H, W) in [-1, 1], their condition, and their rows in the data set (B,)."""

    x: Tensor
    cond: Condition = field(default_factory=Condition)
    index: Tensor | None = None

    def take(self, rows: slice) -> Batch:
        """A part of the batch (gradient accumulation)."""
        return Batch(self.x[rows], self.cond.take(rows), None if self.index is None else self.index[rows])


@dataclass(frozen=True)
class Moment:
    """Where training stands: everything scheduled is a pure function of it. step counts from 0 up to total; images = step * batch; batch: images of
    a step, all parts of all processes (0: nobody says)."""

    step: int
    total: int
    images: int
    batch: int = 0

    @property
    def progress(self) -> float:
        """step / total in [0, 1)."""
        return self.step / max(self.total, 1)


@dataclass(frozen=True)
class Request:
    """An order for samples: sample i depends on seeds[i] and row i of the condition alone, whatever the batch size.

    steps: number of solver steps; solver: its name; spacing: of its noise levels; levels: the
    lowest and the highest of them; eta: share of ancestral noise; churn: noise added back (S_churn);
    guidance: classifier-free weight w (1 = off), used for noise levels in interval (lo, hi) only; rescale: share phi in [0, 1] of the guided
    estimate brought back to the conditional one's deviation; threshold: percentile of dynamic thresholding, in (0, 1];
    strength: how far a source image is re-noised, in (0, 1]; truncation: shrinks the latent, above 0: a number, in the way that
    the method has, or the way and the number.
    temperature: divides the logits of a code, from 0 (the likeliest), or multiplies the deviations of Gaussian priors, from 0 (their means);
    top_k: only so many of the likeliest codes; top_p: only as many as reach this probability together, in (0, 1].
    callback(i, n, x0): called after each step with the current estimate of the images.
    """

    seeds: tuple[int, ...]
    cond: Condition = field(default_factory=Condition)
    steps: int | None = None
    solver: str | None = None
    spacing: str | None = None
    levels: tuple[float, float] | None = None
    eta: float | None = None
    churn: float | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    threshold: float | None = None
    strength: float | None = None
    truncation: float | tuple[Truncation, float] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    callback: Callable[[int, int, Tensor], None] | None = None

    def given(self) -> frozenset[str]:
        """Names of the fields that ask something special of the method."""
        skip = {"seeds", "cond", "callback"}
        own = {f.name for f in fields(self) if f.name not in skip and getattr(self, f.name) is not None}
        return frozenset(own) | self.cond.given()

    def take(self, rows: slice) -> Request:
        """The order for some of the samples."""
        return replace(self, seeds=self.seeds[rows], cond=self.cond.take(rows))


Terms = Mapping[str, Any]
