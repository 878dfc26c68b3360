"""Latents of mean 0 and deviation 1 in every channel: what a diffusion model expects of its data."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Standard"]


@final
class Standard(nn.Module):
    """Mean and mean square of each channel, moving over about 1 / (1 - decay) steps of training, without a bias towards 0."""

    first: Tensor
    second: Tensor
    weight: Tensor

    def __init__(self, channels: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay, self.track_running_stats = decay, True
        self.register_buffer("first", torch.zeros(channels))
        self.register_buffer("second", torch.zeros(channels))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def see(self, z: Tensor) -> None:
        """One step more, of latents (B, D, h, w). All three are linear in what is seen, so that parts of a batch count as the batch."""
        if self.training and self.track_running_stats:
            z = z.float()
            self.first.lerp_(z.mean((0, 2, 3)), 1 - self.decay)
            self.second.lerp_(z.square().mean((0, 2, 3)), 1 - self.decay)
            self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (D, 1, 1) each; 0 and 1 before anything was seen."""
        seen, w = self.weight > 0, self.weight.clamp_min(1e-12)
        mean = self.first / w
        deviation = torch.where(seen, (self.second / w - mean.square()).clamp_min(1e-8).sqrt(), 1.0)
        return mean[:, None, None], deviation[:, None, None]

    def forward(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> (z - mean) / deviation."""
        mean, deviation = self.moments()
        return (z - mean) / deviation

    def inverse(self, z: Tensor) -> Tensor:
        """z -> deviation z + mean."""
        mean, deviation = self.moments()
        return z * deviation + mean
