"""Adaptive discriminator augmentation's transforms (Karras et al. 2020, arXiv 2006.06676, appendix B).

In their order, each with probability p of each sample: pixel blitting and geometry (`ada_geometry`), color (`ada_color`), amplification of frequency
bands, noise, cutout. Every sample has its own random numbers, from torch's global generator. n images, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor, nn

from .ada_color import colored, colors
from .ada_geometry import blits, blitted, inverse, moves, resampled
from .separable import full_precision, separable
from .wavelets import bands

__all__ = ["Augmentations", "Groups", "amplified", "cut", "gains", "noisy"]

Groups = Literal["b", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # of the four bands in natural images


def gains(x: Tensor, p: Tensor) -> Tensor:
    """(n, 4): each band's amplification, t ~ 2^N(0, 1), with probability p; all are then divided by sqrt(sum_j lambda_j t_j^2), which keeps the power."""
    on = (torch.rand(len(x), 4, device=x.device) < p).to(x.dtype)
    t = torch.exp2(torch.randn(len(x), 4, device=x.device, dtype=x.dtype) * on)
    power = torch.tensor(POWER, dtype=x.dtype, device=x.device)
    return t / (1 + power * (t.square() - 1)).sqrt().prod(dim=1, keepdim=True)  # one band at a time: the others' t_j are 1


def amplified(x: Tensor, g: Tensor) -> Tensor:
    """The filter sum_i g_i H_i along rows and along columns; g (n, 4)."""
    with full_precision(x):
        down, across = (torch.einsum("nb,bij->nij", g, bands(side, x.dtype, x.device)) for side in x.shape[2:])
    return separable(x, down, across)


def noisy(x: Tensor, p: Tensor) -> Tensor:
    """x + sigma e of all pixels and channels, with probability p; sigma ~ |N(0, 0.1^2)| of each sample."""
    n = len(x)
    on = (torch.rand(n, 1, 1, 1, device=x.device) < p).to(x.dtype)
    sigma = 0.1 * torch.randn(n, 1, 1, 1, device=x.device, dtype=x.dtype).abs() * on
    return x + sigma * torch.randn_like(x)


def cut(x: Tensor, p: Tensor) -> Tensor:
    """Zeros, with probability p, in a box of half the sides, centered anywhere in the image."""
    n = len(x)
    on = torch.rand(n, 1, device=x.device) < p
    center = torch.rand(n, 2, 1, device=x.device)
    within = []
    for i, side in enumerate(x.shape[2:]):
        low, high = (((center[:, i] + d) * side).round() for d in (-0.25, 0.25))  # (n, 1)
        place = torch.arange(side, device=x.device)
        within.append((place >= low) & (place < high) & on)
    hole = within[0][:, None, :, None] & within[1][:, None, None, :]
    return x.masked_fill(hole, 0.0)


@final
class Augmentations(nn.Module):
    """x (n, C, H, W) in [-1, 1] and the probability p (0-dim, in [0, 1]) -> x of the same shape and type, every transform with probability p.

    groups: b blitting, g geometry, c color, f frequencies, n noise, c cutout; bgc is the best for few images (section 3.2 and figure 4). Computed in
    fp32 at least. It has no state, and its filters are no buffers, which a run would average and save.
    """

    def __init__(self, groups: Groups = "bgc") -> None:
        super().__init__()
        self.depth = get_args(Groups).index(groups) + 1

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        """Augmented images."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            y, p = x.to(wide), p.detach().to(x.device, wide)
            if self.depth == 1:
                y = blitted(y, blits(y, p))
            else:
                with full_precision(y):
                    place = inverse(blits(y, p), moves(y, p))
                y = resampled(y, *place)
            if self.depth >= 3:
                y = colored(y, colors(y, p))
            if self.depth >= 4:
                y = amplified(y, gains(y, p))
            if self.depth >= 5:
                y = noisy(y, p)
            if self.depth >= 6:
                y = cut(y, p)
            return y.to(x.dtype)
