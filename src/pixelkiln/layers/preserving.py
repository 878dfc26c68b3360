"""Magnitude-preserving layers: unit variance in, unit variance out, with no normalization of activations but where it is asked for.

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024 (EDM2, arXiv 2312.02696), appendix B. Constant factors go
into the weights, which are small, instead of the activations, which are not: `MPConv` takes a gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SILU", "Fourier", "MPConv", "force", "mp_cat", "mp_silu", "mp_sum"]

SILU = 1 / 0.596  # 1 / standard deviation of silu(x) for x ~ N(0, 1), eq. 81
CLOSE = 1e-5  # a row whose norm is as close to its due is left alone


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (eq. 81)."""
    return F.silu(x) * SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (eq. 88)."""
    norm = math.hypot(1 - t, t)
    return torch.add(b * (t / norm), a, alpha=(1 - t) / norm)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """a (B, Na, H, W) and b (B, Nb, H, W) in one, each with half of the total square: sqrt((Na + Nb) / 2 N) times itself (eq. 103, t = 1/2)."""
    n_a, n_b = a.shape[1], b.shape[1]
    if n_a != n_b:  # otherwise both factors are 1
        a, b = a * math.sqrt((n_a + n_b) / (2 * n_a)), b * math.sqrt((n_a + n_b) / (2 * n_b))
    return torch.cat([a, b], dim=1)


def _norms(w: Tensor) -> Tensor:
    """Root mean square of the weights of each output, in w's number of dimensions."""
    return torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True) * w[0].numel() ** -0.5


@torch.no_grad()
def force(weights: Iterable[nn.Parameter]) -> None:
    """Forced weight normalization (section 2.3, algorithm 1): the weights of each output get a root mean square of 1, in place.

    Rows within 1e-5 of it stay as they are, bit by bit: so a second call changes nothing, and a batch in two parts, or two forwards before
    one backward, give what one does. Frozen weights are left alone.
    """
    for w in weights:
        if w.requires_grad:
            norm = _norms(w)
            w.data.div_(torch.where((norm - 1).abs() < CLOSE, 1.0, norm))  # .data: the values that a graph has saved are these


class MPConv(nn.Module):
    """Convolution (kernel k: x (B, C_in, H, W), zero padding) or linear layer (k = 0: x (B, C_in)) without bias, its weights w / ||w|| for each
    output times `gain` (eq. 47 and 66): unit variance in, gain^2 out. The weights start as N(0, 1), which `force` keeps them near."""

    def __init__(self, c_in: int, c_out: int, k: int = 0) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.randn(c_out, c_in, *[k] * (2 if k else 0)))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """x (B, C_in, ...) -> (B, C_out, ...)."""
        w = self.weight * (gain * self.weight[0].numel() ** -0.5 / _norms(self.weight))
        return F.conv2d(x, w.to(x.dtype), padding=self.k // 2) if self.k else x @ w.t().to(x.dtype)


class Fourier(nn.Module):
    """Random features of a number x (B,): sqrt(2) cos(2 pi (f x + p)), (B, dim), f ~ N(0, 1), p ~ U(0, 1), kept as buffers (eq. 75)."""

    freq: Tensor
    phase: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("freq", 2 * math.pi * torch.randn(dim))
        self.register_buffer("phase", 2 * math.pi * torch.rand(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,) -> (B, dim) float32."""
        return math.sqrt(2) * torch.cos(x.float()[:, None] * self.freq + self.phase)
