"""A small convolutional classifier for images of any size and number of channels: the default feature extractor of the metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelkiln.core.types import ImageShape

__all__ = ["Classifier"]


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU: (B, c_in, H, W) -> (B, c_out, ceil(H / stride), ceil(W / stride))."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Classifier(nn.Module):
    """Two convolutions a stage, each stage at half the side, down to 4..8 pixels; mean over positions; linear head on the features.

    h = mean_ij ReLU(BN(conv(...)))   (B, d) pre-logits        logits = W h + b        features = scale * h

    x is (B, C, H, W) in [-1, 1]. `scale` is a buffer, 1 unless it is set (the extractor sets it so that the features of its training
    images have a total variance of d). Sides of more than 32 pixels start with stride 2. All-convolutional with global average
    pooling: Springenberg et al., 2015 (arXiv 1412.6806); batch norm: Ioffe and Szegedy, 2015 (arXiv 1502.03167).
    """

    scale: Tensor

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 32, dim: int = 128) -> None:
        super().__init__()
        self.dim = dim
        side, c = min(shape.height, shape.width), width
        stem = 2 if max(shape.height, shape.width) > 32 else 1
        side = -(-side // stem)
        stages: list[nn.Module] = [conv(shape.channels, c, stem)]
        while side >= 8 and (side > 8 or len(stages) == 1):  # 8 -> 4, 28 -> 14 -> 7, 32 -> 16 -> 8
            stages += [conv(c, min(2 * c, dim), 2), conv(min(2 * c, dim), min(2 * c, dim))]
            side, c = -(-side // 2), min(2 * c, dim)
        self.body = nn.Sequential(*stages, conv(c, dim))
        self.head = nn.Linear(dim, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def embed(self, x: Tensor) -> Tensor:
        """Pre-logits h (B, d), not scaled."""
        maps: Tensor = self.body(x)  # (B, d, h, w)
        return maps.mean((2, 3))

    def features(self, x: Tensor) -> Tensor:
        """scale * h (B, d), what distances between sets of images are measured in."""
        return self.scale * self.embed(x)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes) from features that were computed before."""
        logits: Tensor = self.head(features / self.scale)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.head(self.embed(x))
        return logits
