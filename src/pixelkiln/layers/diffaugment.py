"""DiffAugment: the same random changes for real and generated images, and gradients pass through (Zhao et al. 2020, arXiv 2006.10738).

Images x (n, C, H, W) in [-1, 1], grey or in color; every sample has its own random numbers, from torch's global generator. Half precisions have too few
digits for random factors: they are computed in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["brightened", "contrasted", "cut", "diffaugment", "saturated", "translated"]


def uniform(x: Tensor, low: float, high: float) -> Tensor:
    """One number for each image, (n, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) * (high - low) + low


def brightened(x: Tensor) -> Tensor:
    """x + b, b ~ U(-0.5, 0.5)."""
    return x + uniform(x, -0.5, 0.5)


def saturated(x: Tensor) -> Tensor:
    """Away from or towards the mean over channels by a factor U(0, 2); grey images stay what they are."""
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * uniform(x, 0.0, 2.0) + mean


def contrasted(x: Tensor) -> Tensor:
    """Away from or towards the image's mean by a factor U(0.5, 1.5)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * uniform(x, 0.5, 1.5) + mean


def translated(x: Tensor, share: float = 0.125) -> Tensor:
    """Shifted along each axis by a whole number of pixels, at most `share` of the side, zeros moved in."""
    n, _, h, w = x.shape
    most = [int(side * share) for side in (h, w)]
    dy, dx = (torch.randint(-m, m + 1, (n, 1), device=x.device) for m in most)
    rows = (torch.arange(h, device=x.device) + dy).clamp(-1, h) + 1  # (n, H): where each row comes from, in the padded image
    columns = (torch.arange(w, device=x.device) + dx).clamp(-1, w) + 1
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    images = torch.arange(n, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut(x: Tensor, share: float = 0.5) -> Tensor:
    """A box with sides of `share` of the image's, centered anywhere in the image, set to zero."""
    n, _, h, w = x.shape
    inside = torch.ones(n, 1, 1, dtype=torch.bool, device=x.device)
    for dim, side in ((1, h), (2, w)):
        size = int(side * share + 0.5)
        center = torch.randint(0, side + (1 - size % 2), (n, 1), device=x.device)
        away = torch.arange(side, device=x.device) - center + size // 2  # the box is 0 .. size - 1
        within = (away >= 0) & (away < size)
        inside = inside & within.unsqueeze(3 - dim)
    return x * (~inside)[:, None].to(x.dtype)


def diffaugment(x: Tensor) -> Tensor:
    """Color, translation and cutout: brightness, saturation, contrast, shift, hole, in this order (their appendix's policy for few images)."""
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return cut(translated(contrasted(saturated(brightened(wide))))).to(x.dtype)
