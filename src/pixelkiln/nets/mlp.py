"""Multilayer perceptrons from images to vectors and back: the 784-400-20 of Kingma and Welling (2014, appendix C), for any shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..core.types import ImageShape

__all__ = ["MLPDecoder", "MLPEncoder"]


def _stack(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers between the sizes, ReLU between the layers."""
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class MLPEncoder(nn.Module):
    """Image (B, C, H, W) to vector (B, out): `depth` hidden layers of `width` units with ReLU."""

    def __init__(self, shape: ImageShape, out: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = _stack([shape.numel, *[width] * depth, out])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))


class MLPDecoder(nn.Module):
    """Vector (B, latent) to image (B, C, H, W), unbounded: `depth` hidden layers of `width` units with ReLU."""

    def __init__(self, latent: int, shape: ImageShape, width: int, depth: int) -> None:
        super().__init__()
        self.shape = shape
        self.net = _stack([latent, *[width] * depth, shape.numel])

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, tuple(self.shape))
