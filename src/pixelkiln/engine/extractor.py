"""What the evaluator asks of a feature extractor, and extractors that the user names: networks with weights, a TorchScript file, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor

from ..core.files import cache_dir
from ..core.types import UserError
from ..data.prepare import to_channels

__all__ = ["FeatureExtractor", "Named", "rgb"]

BATCH = 64  # images a forward pass


class FeatureExtractor(Protocol):
    """Features of 8-bit images: a function of each image alone, in fp32.

    name: goes with every score; weights: digest of what makes the features; suffix: what it adds to the names of its scores ("" for the small
    classifier); quoted: scores that have a published name with it; dim: features d; classes: names of the classes that it tells apart, () where
    they are not the data's; num_classes: columns of `probabilities`, 0 where it has none; folder: of its cache.
    """

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def quoted(self) -> Mapping[str, str]: ...
    @property
    def dim(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def folder(self) -> Path: ...

    def how(self, shape: Sequence[int]) -> str:
        """What happens to an image (C, H, W) before the network, in words."""

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, 1 or 3, H, W) -> float32 (N, d)."""

    def probabilities(self, features: Tensor) -> Tensor:
        """Features (N, d) -> p(y|x) (N, num_classes), rows that sum to 1."""

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Feature maps of images (N, 3 or the data's channels, H, W) in [-1, 1], for a perceptual distance; () where there are none."""


def rgb(images: Tensor) -> Tensor:
    """uint8 (N, 1 or 3, H, W) -> (N, 3, H, W). Errors: `UserError` for anything else (float images are rounded by `to_uint8`, once, not here)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"expected uint8 images (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}: convert them with to_uint8")
    return to_channels(images.cpu(), 3)


@final
@dataclass(frozen=True)
class Named:
    """An extractor put together from functions: `embed` uint8 RGB (B, 3, H, W) -> (B, d), `prepared` says what it does to images first."""

    name: str
    weights: str
    suffix: str
    dim: int
    prepared: str
    embed: Callable[[Tensor], Tensor]
    quoted: Mapping[str, str] = field(default_factory=dict)
    num_classes: int = 0
    classify: Callable[[Tensor], Tensor] | None = None
    maps: Callable[[Tensor], Sequence[Tensor]] | None = None
    classes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Of the statistics that are kept."""
        return cache_dir() / "extractors" / f"{self.name}-{self.weights}"

    def how(self, shape: Sequence[int]) -> str:
        """The size of the images, and what is done to them."""
        channels, height, width = shape
        return f"{height}x{width}x{channels}, {self.prepared}"

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, 1 or 3, H, W) -> float32 (N, d), a batch at a time, whatever the caller's autocast. `UserError` for other shapes than (N, d)."""
        found = []
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for part in torch.split(rgb(images), BATCH):
                out = self.embed(part)
                if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(part):
                    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                    raise UserError(f"{self.name} makes {got} of {len(part)} images: an extractor returns one row of features (N, d) an image")
                found.append(out.float().cpu())
        return torch.cat(found) if found else torch.empty(0, self.dim)

    def probabilities(self, features: Tensor) -> Tensor:
        """Softmax of the last layer."""
        assert self.classify is not None, "asked only where num_classes > 0"
        with torch.no_grad():
            return self.classify(features).softmax(1)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Feature maps, () where there are none."""
        return () if self.maps is None else self.maps(x)
