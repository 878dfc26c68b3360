"""Embeddings of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sinusoidal"]


def sinusoidal(x: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of x (B,) at dim / 2 frequencies from 1 down to 1 / max_period, (B, dim) float32.

    Source: Vaswani et al. 2017 (arXiv 1706.03762, section 3.5), as used for time steps by Ho et al. 2020.
    """
    half = dim // 2
    freq = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = x.float()[:, None] * freq  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
