"""Batch normalisation whose scale and shift depend on a vector."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

__all__ = ["ConditionalBatchNorm"]


@final
class ConditionalBatchNorm(nn.Module):
    """(1 + A c) * batchnorm(h) + B c, without biases: h (n, C, H, W), c (n, d), such as one-hot labels (then A and B are embeddings, `embeds`) or an
    embedding beside a part of z.

    Dumoulin et al. 2017, arXiv 1610.07629, eq. 5; de Vries et al. 2017, arXiv 1707.00683; Brock et al. 2019, arXiv 1809.11096, appendix B.
    """

    def __init__(self, channels: int, dim: int, embeds: bool = False) -> None:
        super().__init__()
        self.embeds = embeds
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = nn.Linear(dim, channels, bias=False), nn.Linear(dim, channels, bias=False)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h of the same shape."""
        y: Tensor = self.norm(h) * (1 + self.gain(c))[:, :, None, None] + self.shift(c)[:, :, None, None]
        return y
