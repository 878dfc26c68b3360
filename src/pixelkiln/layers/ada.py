"""Adaptive discriminator augmentation's transforms (Karras et al. 2020, arXiv 2006.06676, appendix B)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

__all__ = ["Augmentations"]


@final
class Augmentations(nn.Module):
    """x (n, C, H, W) in [-1, 1] and the probability p -> x of the same shape, every transform applied with probability p."""

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        raise NotImplementedError
