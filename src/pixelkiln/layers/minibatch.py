"""What the images of a group have in common, as a feature: how a discriminator sees that a generator always draws the same."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["MinibatchDeviation"]


@final
class MinibatchDeviation(nn.Module):
    """h (n, C, H, W) -> (n, C + 1, H, W): one more channel, the mean over C, H, W of the standard deviation over a group of images.

    s = mean_{c,y,x} sqrt( mean_i (h_icyx - mean_i h_icyx)^2 + 1e-8 ),   i over the group             Karras et al. 2018, arXiv 1710.10196, section 3

    `group` images, those n / group apart, share one s (StyleGAN's; the paper's is one for the whole batch); where n does not divide, the largest
    group below it that does.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        """Of at least fp32 inside, since squares of small differences are summed."""
        n, group = len(h), next(g for g in range(min(self.group, len(h)), 0, -1) if len(h) % g == 0)
        with torch.autocast(h.device.type, enabled=False):
            x = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
            y = x.reshape(group, n // group, *x.shape[1:])  # (G, n / G, C, H, W)
            s = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))  # (n / G,)
        return torch.cat([h, s.repeat(group).to(h.dtype)[:, None, None, None].expand(n, 1, *h.shape[2:])], dim=1)
