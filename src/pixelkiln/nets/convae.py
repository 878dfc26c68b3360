"""A plain convolutional encoder and decoder: halve the image by strided convolutions, double it by transposed ones.

Sides are halved while both are even and above 4: 28 -> 14 -> 7, 32 -> 16 -> 8 -> 4, 8 -> 4. Channels double with every halving.
Every kernel of stride 2 is 4 wide, so that all output pixels of a transposed convolution see as many inputs (no checkerboard).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape, UserError
from ..layers.conv import Conv2d, ConvTranspose2d

__all__ = ["ConvDecoder", "ConvEncoder", "pyramid"]


def pyramid(shape: ImageShape) -> list[tuple[int, int]]:
    """Sides (height, width) from the image down to the smallest map; a side that cannot be halved is a UserError."""
    sides = [(shape.height, shape.width)]
    while min(sides[-1]) > 4 and all(side % 2 == 0 for side in sides[-1]):
        sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
    if len(sides) < 2 or max(sides[-1]) > 16:
        raise UserError(f"the conv net halves sides down to 16 or fewer, and {shape.height}x{shape.width} cannot be: set --data.multiple 8")
    return sides


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def _widths(width: int, levels: int) -> list[int]:
    """Channels of each map below the image: width, 2 width, ... up to 4 width."""
    return [width * min(2**i, 4) for i in range(levels)]


def _blocks(channels: int, depth: int) -> Sequence[nn.Module]:
    return [_Residual(channels) for _ in range(depth)]


class ConvEncoder(nn.Module):
    """Image (B, C, H, W) to vector (B, out); `depth` residual blocks after every halving, a hidden layer of `hidden` units at the end."""

    def __init__(self, shape: ImageShape, out: int, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        sides = pyramid(shape)
        widths = _widths(width, len(sides) - 1)
        parts: list[nn.Module] = []
        for fan_in, fan_out in zip([shape.channels, *widths], widths, strict=False):
            parts += [Conv2d(fan_in, fan_out, 4, stride=2, padding=1), *_blocks(fan_out, depth), nn.ReLU()]
        self.conv = nn.Sequential(*parts)
        self.head = nn.Sequential(nn.Linear(widths[-1] * sides[-1][0] * sides[-1][1], hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)  # (B, width', h, w)
        return self.head(h.flatten(1))


class ConvDecoder(nn.Module):
    """Vector (B, latent) to image (B, C, H, W), unbounded: the encoder's mirror image."""

    def __init__(self, latent: int, shape: ImageShape, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        sides = pyramid(shape)
        widths = _widths(width, len(sides) - 1)[::-1]
        self.start = (widths[0], *sides[-1])
        self.head = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, widths[0] * sides[-1][0] * sides[-1][1]))
        parts: list[nn.Module] = []
        for fan_in, fan_out in zip(widths, [*widths[1:], shape.channels], strict=True):
            parts += [*_blocks(fan_in, depth), nn.ReLU(), ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1)]
        self.conv = nn.Sequential(*parts)

    def forward(self, z: Tensor) -> Tensor:
        h = self.head(z).unflatten(1, self.start)  # (B, width', h, w)
        return self.conv(h)
