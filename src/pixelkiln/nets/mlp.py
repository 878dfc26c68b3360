"""Networks on vectors: multilayer perceptrons from images to vectors and back (the 784-400-20 of Kingma and Welling 2014, appendix C,
for any shape), an invertible one made of affine couplings (Dinh et al., Density Estimation Using Real NVP, 2017, arXiv 1605.08803), and a
residual one for diffusion in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape
from ..layers.embed import sinusoidal
from .conditioning import Conditioned, split

__all__ = ["CouplingFlow", "MLPConfig", "MLPDecoder", "MLPDenoiser", "MLPEncoder"]


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
    """An invertible map u (..., J) <-> z (..., J), J >= 2: each layer scales and shifts one half of the vector as the other half, and a condition c
    (..., num) where there is one, say, and then reverses its order. It starts as the identity, but for the order."""

    def __init__(self, dims: int, width: int, layers: int, num: int = 0) -> None:
        super().__init__()
        self.sizes = [dims // 2, dims - dims // 2]
        self.layers = nn.ModuleList(_Coupling(self.sizes[0] + num, self.sizes[1], width) for _ in range(layers))

    def forward(self, u: Tensor, *c: Tensor) -> Tensor:
        """z = g(u; c): b <- b * exp(s(a, c)) + t(a, c), layer by layer. (Dinh et al. 2017, eq. 7.)"""
        for layer in self.layers:
            a, b = u.split(self.sizes, dim=-1)
            t, s = layer(torch.cat([a, *c], dim=-1))
            u = torch.cat([a, b * torch.exp(s) + t], dim=-1).flip(-1)
        return u

    def inverse(self, z: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        """u = g^-1(z; c), (..., J), and log |det du/dz|, (...,). (Dinh et al. 2017, eq. 6 and 8.)"""
        log_det = torch.zeros(z.shape[:-1], device=z.device)
        for layer in reversed(self.layers):
            a, b = z.flip(-1).split(self.sizes, dim=-1)
            t, s = layer(torch.cat([a, *c], dim=-1))
            z, log_det = torch.cat([a, (b - t) * torch.exp(-s)], dim=-1), log_det - s.sum(-1)
        return z, log_det


@dataclass(frozen=True)
class MLPConfig:
    """Size of a residual perceptron."""

    width: int = 256
    depth: int = 4  # residual blocks

    @property
    def multiple(self) -> int:
        """What the image's sides must be a multiple of."""
        return 1


class _Residual(nn.Module):
    """h + W2 silu(W1 (norm(h) (1 + scale) + shift)); scale and shift come from the vector; it starts as the identity."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.affine = nn.Linear(dim, 2 * width)
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, vec: Tensor) -> Tensor:
        scale, shift = self.affine(vec).chunk(2, dim=1)
        normed = torch.addcmul(shift.float(), F.layer_norm(h.float(), h.shape[1:]), 1 + scale.float())
        return h + self.leave(F.silu(self.enter(normed)))


class MLPDenoiser(nn.Module):
    """F(x, t, cond) for points of the plane and other small vectors: the image is flattened, and its shape is fixed.

    shape: of x and the condition's map together; out_channels: of the result, by default as many. It starts as zero.
    """

    def __init__(self, shape: ImageShape, dim: int, config: MLPConfig, out_channels: int | None = None) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.out = (out_channels or shape.channels, shape.height, shape.width)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.stem = nn.Linear(shape.numel, config.width)
        self.blocks = nn.ModuleList(_Residual(config.width, dim) for _ in range(config.depth))
        self.head = nn.Linear(config.width, ImageShape(*self.out).numel)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Conditioned) -> Tensor:
        """x (B, C, H, W), t (B,) in [0, 1], cond or its vec (B, D) -> (B, C_out, H, W)."""
        x, vec, _ = split(x, cond)
        vec = F.silu(self.time(sinusoidal(1000 * t, self.dim)) + vec)  # (B, D)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, vec)
        return self.head(F.silu(h)).unflatten(1, self.out)
