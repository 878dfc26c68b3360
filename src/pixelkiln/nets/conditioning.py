"""The one place where conditions become tensors for a network: a vector (B, D), later a sequence (B, T, D) and a map (B, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.types import Condition

__all__ = ["Conditioner"]


class Conditioner(nn.Module):
    """Labels to vectors, with the null label of classifier-free guidance in the last row of the table.

    In training each sample loses its label with probability `drop`, independently of the others (Ho and Salimans 2022, algorithm 1).
    Labels of -1, and conditions without labels, are null.
    """

    def __init__(self, num_classes: int, dim: int, drop: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.dim, self.drop = num_classes, dim, drop
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, cond: Condition, batch: int) -> Tensor:
        """The conditions of a batch as vec (B, D)."""
        null = self.num_classes
        label = cond.label
        if label is None or not self.num_classes:
            label = self.table.weight.new_full((batch,), null, dtype=torch.long)
        label = torch.where(label < 0, null, label)  # (B,)
        if self.training and self.drop:
            lost = torch.rand(batch, device=label.device) < self.drop
            label = torch.where(lost, null, label)
        return self.table(label)
