"""3 x 3 convolutions behind a nearest-neighbor doubling, or before a halving by means, as one strided convolution of 4 x 4.

    conv3(up(x))   = transposed conv of x with K(flip W), stride 2          K(W)[m] = W[m] + W[m - 1] along both axes
    pool(conv3(x)) = conv of x with K(W) / 4, stride 2

The same functions of the same 3 x 3 weights, zero padding included, with 16 products an output channel and large pixel in place of 36, and without the
large map in between. (Karras et al. 2018, arXiv 1710.10196, their program's "fused scale", there with weights of its own.)
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DownConv2d", "UpConv2d", "doubled"]


def spread(w: Tensor) -> Tensor:
    """K(W): (..., 3, 3) -> (..., 4, 4), the sum of the four kernels that are W moved by a pixel or not."""
    rows = F.pad(w, (0, 0, 0, 1)) + F.pad(w, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def doubled(x: Tensor) -> Tensor:
    """Every pixel of x (n, C, H, W) four times, (n, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


@final
class UpConv2d(nn.Conv2d):
    """A 3 x 3 convolution of the doubled image."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """x (n, C_in, H, W) -> (n, C_out, 2H, 2W)."""
        return F.conv_transpose2d(input, spread(self.weight.flip(2, 3)).transpose(0, 1), self.bias, stride=2, padding=1)


@final
class DownConv2d(nn.Conv2d):
    """The means over 2 x 2 pixels of a 3 x 3 convolution."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """x (n, C_in, H, W), even sides -> (n, C_out, H / 2, W / 2)."""
        return F.conv2d(input, spread(self.weight) / 4, self.bias, stride=2, padding=1)
