"""Orthogonal wavelet filters as matrices that act on rows of pixels continued by reflection (Karras et al. 2020, arXiv 2006.06676, appendix B).

An image's row x_0 .. x_{S-1} is continued without end: x_{-i} = x_i and x_{S-1+i} = x_{S-1-i}, with period 2 (S - 1). A lowpass filter h with
sum h = sqrt 2, sum_k h_k h_{k+2m} = [m = 0] doubles the rate, u_j = sqrt 2 sum_i h_{j-2i} x_i, and halves it again,
y_i = sum_j h_{j-2i} u_j / sqrt 2: one after the other they are exactly the identity.

Since sum_k (-1)^k k h_k = 0, both phases of h delay by c = sum_k k h_k / sqrt 2, and u_j lies at the pixel (j - c) / 2. Symlets are not quite
symmetric: c is 5.098 for sym6, not 5.5, so that a picture flipped about the filter's middle would move by 0.4 pixels.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["SYM2", "SYM6", "bands", "downsampling", "period", "reflected", "sym6_delay", "upsampling"]

SYM2 = tuple(n / (4 * math.sqrt(2)) for n in (1 + math.sqrt(3), 3 + math.sqrt(3), 3 - math.sqrt(3), 1 - math.sqrt(3)))  # Daubechies 1988, N = 2
SYM6 = (  # the least asymmetric of Daubechies's filters with six vanishing moments: Daubechies 1992, Ten Lectures on Wavelets, table 6.3
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


def sym6_delay() -> float:
    """c, in samples of the doubled rate."""
    return sum(k * h for k, h in enumerate(SYM6)) / math.sqrt(2)


def period(size: int) -> int:
    """After so many samples of the doubled rate a row of so many pixels, continued by reflection, begins anew."""
    return 4 * max(size - 1, 1)


def reflected(index: Tensor, size: int) -> Tensor:
    """The pixel 0 .. size - 1 that stands at any integer position of a row continued by reflection."""
    turn = max(2 * (size - 1), 1)
    index = index.remainder(turn)
    return torch.minimum(index, turn - index) if size > 1 else index


@cache
def upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """U (P + 1, size): a row of pixels to one period P of samples at twice its rate, and the next one, equal to the first."""
    rows, taps = torch.arange(period(size) + 1), torch.arange(len(SYM6))
    pixel = reflected(torch.div(rows[:, None] - taps, 2, rounding_mode="floor"), size)  # (P + 1, taps)
    weight = math.sqrt(2) * torch.tensor(SYM6, dtype=torch.float64) * ((rows[:, None] - taps) % 2 == 0)
    return torch.zeros(len(rows), size, dtype=torch.float64).scatter_add_(1, pixel, weight).to(device, dtype)


@cache
def downsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """D (size, 2 size + 10): samples 0 .. 2 size + 9 at twice the rate to pixels."""
    found = torch.zeros(size, 2 * size - 2 + len(SYM6), dtype=torch.float64)
    column = 2 * torch.arange(size)[:, None] + torch.arange(len(SYM6))
    return found.scatter_(1, column, (torch.tensor(SYM6, dtype=torch.float64) / math.sqrt(2)).expand(size, -1)).to(device, dtype)


@cache
def bands(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """B (4, size, size): the parts of a row in [0, pi/8], [pi/8, pi/4], [pi/4, pi/2] and [pi/2, pi]; they add up to the row.

    With P(z) = H(z) H(1/z) / 2, which has no phase, they are P(z) P(z^2) P(z^4), P(z) P(z^2) (1 - P(z^4)), P(z) (1 - P(z^2)), 1 - P(z), since
    P(z) + P(-z) = 1 for an orthogonal filter. H is sym2, as short as can be beside the Haar filter.
    """
    h = torch.tensor(SYM2, dtype=torch.float64)
    p = torch.nn.functional.conv1d(h[None, None], h[None, None], padding=len(h) - 1)[0, 0] / 2  # correlation: taps -3 .. 3
    low, found = torch.ones(1, dtype=torch.float64), []
    for level in range(3):
        spread = torch.zeros((len(p) - 1) * 2**level + 1, dtype=torch.float64)
        spread[:: 2**level] = p
        lower = torch.nn.functional.conv1d(low[None, None], spread[None, None], padding=len(spread) - 1)[0, 0]  # p is even: convolution
        found.append(torch.nn.functional.pad(low, [(len(lower) - len(low)) // 2] * 2) - lower)
        low = lower
    rows, matrices = torch.arange(size)[:, None], []
    for taps in (low, *reversed(found)):
        reach = len(taps) // 2
        pixel = reflected(rows + torch.arange(-reach, reach + 1), size)  # (size, taps)
        matrices.append(torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, pixel, taps.expand(size, -1)))
    return torch.stack(matrices).to(device, dtype)
