"""ADA's transforms of color: one matrix of each sample (Karras et al. 2020, arXiv 2006.06676, appendix B).

In their order, on (r, g, b, 1), with v = (1, 1, 1) / sqrt 3 the luma axis: brightness + b, contrast * c, luma flip I - 2 i v v^T, a rotation of the hue
by theta about v, saturation v v^T + s (I - v v^T). All of them keep v and the plane across it apart, so that their product is

    x -> M x + c (1 - 2 i) b,   M = c ( (1 - 2 i) v v^T + s (cos theta (I - v v^T) + sin theta [v]_x) ).

A grey image is one with three equal channels, and the mean of what becomes of them: c (1 - 2 i) (x + b).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.types import UserError
from .separable import separable

__all__ = ["Colors", "colored", "colors", "matrix"]


class Colors(NamedTuple):
    """All (n,): brightness, contrast, flip (-1 where the luma is flipped, else 1), hue in radians, saturation."""

    brightness: Tensor
    contrast: Tensor
    flip: Tensor
    hue: Tensor
    saturation: Tensor


def colors(x: Tensor, p: Tensor) -> Colors:
    """Each with probability p: brightness ~ N(0, 0.2^2), contrast ~ 2^N(0, 0.5^2), flip ~ U{0, 1}, hue ~ U(-pi, pi), saturation ~ 2^N(0, 1)."""
    n = len(x)
    on = (torch.rand(n, 5, device=x.device) < p).to(x.dtype)
    z = torch.randn(n, 3, device=x.device, dtype=x.dtype)
    u = torch.rand(n, 2, device=x.device, dtype=x.dtype)
    return Colors(
        brightness=0.2 * z[:, 0] * on[:, 0],
        contrast=torch.exp2(0.5 * z[:, 1] * on[:, 1]),
        flip=1 - 2 * on[:, 2] * (2 * u[:, 0]).floor(),
        hue=on[:, 3] * (2 * u[:, 1] - 1) * math.pi,
        saturation=torch.exp2(z[:, 2] * on[:, 4]),
    )


def matrix(c: Colors) -> tuple[Tensor, Tensor]:
    """M (n, 3, 3) and what is added (n, 3, 1)."""
    eye = torch.eye(3, dtype=c.hue.dtype, device=c.hue.device)
    luma = torch.full_like(eye, 1 / 3)  # v v^T
    cross = (eye.roll(1, 0) - eye.roll(-1, 0)) / math.sqrt(3)  # [v]_x
    flip, across, along = (a[:, None, None] for a in (c.contrast * c.flip, c.contrast * c.saturation * c.hue.cos(), c.contrast * c.saturation * c.hue.sin()))
    return flip * luma + across * (eye - luma) + along * cross, (flip * c.brightness[:, None, None]).expand(-1, 3, 1)


def colored(x: Tensor, c: Colors) -> Tensor:
    """x (n, C, H, W), C = 3 or 1. Raises `UserError` for other numbers of channels."""
    if x.shape[1] == 1:
        gain = (c.contrast * c.flip)[:, None, None, None]
        return gain * (x + c.brightness[:, None, None, None])
    if x.shape[1] != 3:
        raise UserError(f"ada changes colors of images with 1 or 3 channels, not {x.shape[1]}: give --model.rules.ada bg")
    m, added = matrix(c)
    return (separable(x.flatten(2)[:, None], m, None)[:, 0] + added).view_as(x)
