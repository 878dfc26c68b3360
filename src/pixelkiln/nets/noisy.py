"""A classifier of noisy images: the way down of the diffusion U-Net, a mean over positions, a linear head.

Dhariwal and Nichol 2021 (arXiv 2105.05233, section 4.1) take the downsampling half of their U-Net; they end in attention pooling. There is
no batch norm, so that the gradient at one image knows nothing of the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.embed import sinusoidal
from .unet import Block, UNetConfig

__all__ = ["NoisyEncoder"]


class NoisyEncoder(nn.Module):
    """Logits (B, K) of images x (B, C, H, W) at times t (B,) in [0, 1]; legend and configuration as of `UNet`."""

    def __init__(self, channels: int, num_classes: int, dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.mults]
        self.time = nn.Sequential(nn.Linear(config.width, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.stem = nn.Conv2d(channels * config.patch**2, widths[0], 3, padding=1)
        self.down, c = nn.ModuleList(), widths[0]
        for i, width in enumerate(widths):
            if i:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            for _ in range(config.blocks):
                self.down.append(Block(c, width, dim, config.dropout, i in config.attention))
                c = width
        self.norm = nn.GroupNorm(1, c)
        self.head = nn.Linear(c, num_classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) -> logits (B, K)."""
        logits: Tensor = self.head(F.silu(self.norm(self.maps(x, t)[-1])).mean((2, 3)))
        return logits

    def maps(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """What leaves each block, (B, C_l, h_l, w_l)."""
        vec = self.time(sinusoidal(1000 * t, self.config.width))  # (B, D)
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        found: list[Tensor] = []
        for layer in self.down:
            h = layer(h, vec) if isinstance(layer, Block) else layer(h)
            found += [h] if isinstance(layer, Block) else []
        return found
