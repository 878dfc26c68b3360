"""A discriminator that judges patches: one logit for every receptive field (Isola et al. 2017, arXiv 1611.07004, section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) -> logits (B, 1, h, w). `halvings` convolutions of stride 2, two of stride 1, LeakyReLU 0.2, weights N(0, 0.02).

    Norms have one group and no batch statistics, so that a patch is judged by its own image alone (the paper has BatchNorm).
    """

    def __init__(self, channels: int, width: int, halvings: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        fan_in, fan_out = channels, width
        for i in range(halvings):
            parts += [nn.Conv2d(fan_in, fan_out, 4, 2, 1), nn.GroupNorm(1, fan_out) if i else nn.Identity(), nn.LeakyReLU(0.2)]
            fan_in, fan_out = fan_out, width * min(2 ** (i + 1), 8)
        parts += [nn.Conv2d(fan_in, fan_out, 3, 1, 1), nn.GroupNorm(1, fan_out), nn.LeakyReLU(0.2), nn.Conv2d(fan_out, 1, 3, 1, 1)]
        self.body = nn.Sequential(*parts)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        assert logits.ndim == 4
        return logits

    def nothing(self) -> Tensor:
        """0, with a gradient of 0 to every weight: the loss where it is not to learn yet."""
        return torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
