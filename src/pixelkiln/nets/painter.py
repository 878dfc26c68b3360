"""The decoder of a codec: codes to the mean of p(x | codes), with a learned log-scale for each channel where there is one."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resconv import ResConvConfig, Up

__all__ = ["Painter"]

SPEED = 10.0  # the log-scales learn so many times faster than the weights
LOW = -7.0  # they stay above it, smoothly: a ninth of a level


@final
class Painter(nn.Module):
    """z (B, D, h, w) -> mean (B, C, H, W), unbounded, fp32; log-scale (C, 1, 1), or None."""

    def __init__(self, dim: int, channels: int, config: ResConvConfig, scaled: bool) -> None:
        super().__init__()
        self.up = Up(dim, channels, config)
        self.raw_scale = nn.Parameter(torch.full((channels, 1, 1), -1.0 / SPEED)) if scaled else None

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = None if self.raw_scale is None else LOW + F.softplus(self.raw_scale.float() * SPEED - LOW)
        return self.up(z).float(), scale
