"""Where a patch is on its grid, told to a transformer: sines and cosines added to the tokens, or rotations of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rope_2d", "rotate", "sincos_2d"]


def _grid(h: int, w: int, freq: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each position times the frequencies (F,): (hw, F) each, row by row."""
    y = torch.arange(h, dtype=torch.float32, device=freq.device)
    x = torch.arange(w, dtype=torch.float32, device=freq.device)
    return (y.repeat_interleave(w)[:, None] * freq), (x.repeat(h)[:, None] * freq)


def sincos_2d(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """Sine and cosine of column and row at dim / 4 frequencies from 1 down to 1e-4, (hw, dim) (Dosovitskiy et al. 2021, arXiv 2010.11929,
    appendix D.4; the form that DiT takes, Peebles and Xie 2023, section 3.2)."""
    y, x = _grid(h, w, 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4)))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


def rope_2d(h: int, w: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of d / 2 pairs, (hw, d / 2) each: half of the pairs turn with the row, half with the column, at frequencies
    100^(-4 i / d) (RoPE-Axial: Heo et al. 2024, arXiv 2403.13298, eq. 6 to 8)."""
    y, x = _grid(h, w, 100.0 ** (-4 * torch.arange(d // 4, dtype=torch.float32, device=device) / d))
    angle = torch.cat([y, x], dim=1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) of x (..., N, d) turned by its angle (N, d / 2), so that q k^T depends on differences of positions only
    (Su et al. 2021, arXiv 2104.09864, eq. 34)."""
    half = x.shape[-1] // 2
    cos, sin = torch.cat([cos, cos], dim=1).to(x.dtype), torch.cat([-sin, sin], dim=1).to(x.dtype)  # (N, d)
    return torch.addcmul(x * cos, x.roll(half, dims=-1), sin)
