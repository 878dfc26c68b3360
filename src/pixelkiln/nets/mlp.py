"""Networks on vectors: multilayer perceptrons from images to vectors and back (the 784-400-20 of Kingma and Welling 2014, appendix C,
for any shape), and an invertible one made of affine couplings (Dinh et al., Density Estimation Using Real NVP, 2017, arXiv 1605.08803)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..core.types import ImageShape

__all__ = ["CouplingFlow", "MLPDecoder", "MLPEncoder"]


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


class _Coupling(nn.Module):
    """Shift t and log-scale s in -2 .. 2, (..., out) each, from one half of a vector, (..., fan_in); both start at 0."""

    def __init__(self, fan_in: int, out: int, width: int) -> None:
        super().__init__()
        self.body = _stack([fan_in, width, width])
        self.head = nn.Linear(width, 2 * out)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, a: Tensor) -> tuple[Tensor, Tensor]:
        t, s = self.head(torch.relu(self.body(a))).float().chunk(2, dim=-1)
        return t, 2 * torch.tanh(s / 2)


class CouplingFlow(nn.Module):
    """An invertible map u (..., J) <-> z (..., J), J >= 2: each layer scales and shifts one half of the vector as the other half says,
    and then reverses its order. It starts as the identity, but for the order."""

    def __init__(self, dims: int, width: int, layers: int) -> None:
        super().__init__()
        self.sizes = [dims // 2, dims - dims // 2]
        self.layers = nn.ModuleList(_Coupling(self.sizes[0], self.sizes[1], width) for _ in range(layers))

    def forward(self, u: Tensor) -> Tensor:
        """z = g(u): b <- b * exp(s(a)) + t(a), layer by layer. (Dinh et al. 2017, eq. 7.)"""
        for layer in self.layers:
            a, b = u.split(self.sizes, dim=-1)
            t, s = layer(a)
            u = torch.cat([a, b * torch.exp(s) + t], dim=-1).flip(-1)
        return u

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u = g^-1(z), (..., J), and log |det du/dz|, (...,). (Dinh et al. 2017, eq. 6 and 8.)"""
        log_det = torch.zeros(z.shape[:-1], device=z.device)
        for layer in reversed(self.layers):
            a, b = z.flip(-1).split(self.sizes, dim=-1)
            t, s = layer(a)
            z, log_det = torch.cat([a, (b - t) * torch.exp(-s)], dim=-1), log_det - s.sum(-1)
        return z, log_det
