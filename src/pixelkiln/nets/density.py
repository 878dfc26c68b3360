"""A flow as a density of vectors of any mean and deviation, and of any class. n vectors, J dimensions, Y classes."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from .coders import LabeledFlow
from .mlp import CouplingFlow

__all__ = ["FlowDensity"]


@final
class FlowDensity(nn.Module):
    """z = mean + deviation g(u; y), u ~ N(0, I), for labels y, -1 = none, where there are classes. mean and deviation (J,), and the share p(y) of each
    class (Y,), are buffers, which somebody sets."""

    mean: Tensor
    deviation: Tensor
    shares: Tensor

    def __init__(self, dims: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        flow = CouplingFlow(dims, width, layers, classes)
        self.flow: LabeledFlow | CouplingFlow = LabeledFlow(flow, classes) if classes else flow
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("deviation", torch.ones(dims))
        self.register_buffer("shares", torch.full((classes,), 1 / max(classes, 1)))

    def forward(self, u: Tensor, label: Tensor) -> Tensor:
        """z (n, J) for u (n, J) and label (n,)."""
        return self.mean + self.deviation * self.flow(u, *([label] if len(self.shares) else [])).float()

    def log_prob(self, z: Tensor, label: Tensor) -> Tensor:
        """log p(z|y), (n,), for z (n, J) and label (n,)."""
        u, log_det = self.flow.inverse((z - self.mean) / self.deviation, *([label] if len(self.shares) else []))
        return -0.5 * (u.square().sum(1) + u.shape[1] * math.log(2 * math.pi)) + log_det - self.deviation.log().sum()

    def mixed(self, z: Tensor) -> Tensor:
        """log sum_y p(y) p(z|y), (n,)."""
        each = [self.log_prob(z, torch.full((len(z),), y, device=z.device)) for y in range(len(self.shares))]
        return torch.logsumexp(torch.stack(each, dim=1) + self.shares.log(), dim=1)
