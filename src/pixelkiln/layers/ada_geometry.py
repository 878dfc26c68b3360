"""ADA's blitting and geometric transforms: one affine map of each sample, sampled once (Karras et al. 2020, arXiv 2006.06676, appendix B).

Positions v = (x, y) are pixels from the image's center, y down. A sample's transforms, in their order, are flip F, quarter turns Q, a shift by
whole pixels t, scale s, rotation R1, stretch A = diag(a, 1/a), rotation R2 and a shift by parts of pixels m: the pixel at v shows what was at

    F^-1 Q^-1 ( s^-1 R1^-1 A^-1 R2^-1 (v - m) - t ).

n images, C channels, H x W pixels. Images are continued by reflection.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .separable import separable
from .wavelets import downsampling, period, reflected, sym6_delay, upsampling

__all__ = ["Blits", "Moves", "blits", "blitted", "inverse", "moves", "resampled"]


class Blits(NamedTuple):
    """flip (n,) is -1 where mirrored, else 1; turns (n,) in 0 .. 3; shift (n, 2) in whole pixels, x and y."""

    flip: Tensor
    turns: Tensor
    shift: Tensor


class Moves(NamedTuple):
    """scale (n,), first (n,) and second (n,) in radians, stretch (n,), shift (n, 2) in pixels."""

    scale: Tensor
    first: Tensor
    stretch: Tensor
    second: Tensor
    shift: Tensor


def blits(x: Tensor, p: Tensor) -> Blits:
    """Each with probability p: flip ~ U{0, 1}; turns ~ U{0, 1, 2, 3}; shift ~ U(-1/8, 1/8) of the sides, rounded."""
    n, h, w = len(x), x.shape[2], x.shape[3]
    on = (torch.rand(n, 3, device=x.device) < p).to(x.dtype)
    u = torch.rand(n, 4, device=x.device, dtype=x.dtype)
    flip = 1 - 2 * on[:, 0] * (2 * u[:, 0]).floor()
    share = (u[:, 2:] - 0.5) * 0.25
    shift = torch.stack([share[:, 0] * w, share[:, 1] * h], dim=1).round()
    return Blits(flip, on[:, 1] * (4 * u[:, 1]).floor(), on[:, 2:] * shift)


def moves(x: Tensor, p: Tensor) -> Moves:
    """scale and stretch ~ 2^N(0, 0.2^2) and shift ~ N(0, 1/8^2) of the sides, each with probability p; both rotations ~ U(-pi, pi) with 1 - sqrt(1 - p),
    so that a sample is rotated with probability p."""
    n, h, w = len(x), x.shape[2], x.shape[3]
    rotate = 1 - (1 - p).clamp(min=0).sqrt()
    on = (torch.rand(n, 5, device=x.device) < torch.stack([p, p, p, rotate, rotate])).to(x.dtype)
    z = torch.randn(n, 4, device=x.device, dtype=x.dtype)
    factors = torch.exp2(0.2 * z[:, :2] * on[:, :2])  # scale, stretch
    angles = on[:, 3:] * (2 * torch.rand(n, 2, device=x.device, dtype=x.dtype) - 1) * math.pi
    shift = torch.stack([z[:, 2] * w, z[:, 3] * h], dim=1) * 0.125 * on[:, 2:3]
    return Moves(factors[:, 0], angles[:, 0], factors[:, 1], angles[:, 1], shift)


def turned(cos: Tensor, sin: Tensor) -> Tensor:
    """R^-1 (n, 2, 2) of the rotation R that takes (1, 0) to (cos, sin)."""
    return torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)


def inverse(b: Blits, m: Moves | None) -> tuple[Tensor, Tensor]:
    """L (n, 2, 2) and o (n, 2): the pixel at v shows what was at L v + o."""
    cos, sin = ((b.turns == k).to(b.flip) - (b.turns == k + 2).to(b.flip) for k in (0, 1))
    sides = torch.stack([b.flip, torch.ones_like(b.flip)], dim=1)
    left = sides[:, :, None] * turned(cos, sin)  # F^-1 Q^-1
    if m is None:
        return left, -(left @ b.shift[:, :, None])[:, :, 0]
    first = turned(m.first.cos(), m.first.sin()) / m.scale[:, None, None]
    right = first * torch.stack([1 / m.stretch, m.stretch], dim=1)[:, None, :] @ turned(m.second.cos(), m.second.sin())
    return left @ right, -(left @ (right @ m.shift[:, :, None] + b.shift[:, :, None]))[:, :, 0]


def blitted(x: Tensor, b: Blits) -> Tensor:
    """Pixels moved as they are, without any filter. A quarter turn of an image whose sides differ by an odd number ends half a pixel up and left."""
    n, _, h, w = x.shape
    linear, offset = inverse(b, None)
    across, down = (torch.arange(side, device=x.device, dtype=x.dtype) - (side - 1) / 2 for side in (w, h))
    index = []
    for i, side in ((1, h), (0, w)):
        place = linear[:, i, 1, None, None] * down[:, None] + linear[:, i, 0, None, None] * across + offset[:, i, None, None]  # (n, H, W)
        index.append(reflected((place + (side - 1) / 2 + 0.5).floor().long(), side))
    flat = (index[0] * w + index[1]).view(n, 1, h * w).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, flat).view_as(x)


def resampled(x: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """x at L v + o: the rate doubled by sym6, bilinear samples, the rate halved by sym6. L = I, o = 0 is the identity."""
    n, _, h, w = x.shape
    up = separable(x, upsampling(h, x.dtype, x.device), upsampling(w, x.dtype, x.device))  # (n, C, P_H + 1, P_W + 1)
    more = linear - torch.eye(2, dtype=x.dtype, device=x.device)  # of what stays in its place nothing is rounded
    j_w, j_h = (torch.arange(2 * side + 10, device=x.device, dtype=x.dtype) for side in (w, h))
    far_w, far_h = (j - (side - 1) - sym6_delay() for j, side in ((j_w, w), (j_h, h)))  # from the center, in samples
    places = up.new_empty(n, 2 * h + 10, 2 * w + 10, 2)
    for i, side in ((0, w), (1, h)):
        across, down = more[:, i, 0, None, None] * far_w, more[:, i, 1, None, None] * far_h[:, None] + 2 * offset[:, i, None, None]
        there = j_w + across + down if i == 0 else across + (j_h[:, None] + down)  # (n, 2 H + 10, 2 W + 10)
        turns = (there / period(side)).floor_().mul_(period(side))  # as remainder(), which is slow
        places[..., i] = there.sub_(turns).mul_(2).sub_(period(side)).div_(period(side) + 1)  # grid_sample's numbers, align_corners=False
    samples: Tensor = Sampled.apply(up, places)
    return separable(samples, downsampling(h, x.dtype, x.device), downsampling(w, x.dtype, x.device))


class Sampled(torch.autograd.Function):
    """Bilinear samples S x (n, C, h, w) of x at the places of a grid (n, h, w, 2), which has no gradient.

    S is linear in x: its gradient is S^T g, and that of S^T is S again. torch's own grid_sample had no second derivative for long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, "bilinear", "border", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        found: Tensor = Scattered.apply(grads[0], grid, ctx.shape)
        return found, None


class Scattered(torch.autograd.Function):
    """S^T g: what `Sampled` read at a place is added there."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        x = g.new_zeros(()).expand(shape)  # S is linear: what x holds does not matter
        found: Tensor = torch.ops.aten.grid_sampler_2d_backward(g, x, grid, 0, 1, False, [True, False])[0]
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        found: Tensor = Sampled.apply(grads[0], grid)
        return found, None, None
