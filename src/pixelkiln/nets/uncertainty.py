"""How uncertain the loss is at each noise level, learned beside the network and thrown away afterwards."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.preserving import Fourier

__all__ = ["Uncertainty"]


class Uncertainty(nn.Module):
    """u(c) = w^T fourier(c), for L = e^(-u) L(sigma) + u, whose least value has e^u = E[L | sigma]: every noise level then counts alike.

    Karras et al. 2024 (EDM2, arXiv 2312.02696), eq. 15 and 16, after Kendall et al. 2018. It starts at 0, where L is the loss itself.
    """

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.fourier = Fourier(dim)
        self.weight = nn.Linear(dim, 1)
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)

    def forward(self, c: Tensor) -> Tensor:
        """c (B,), log(sigma) / 4 or a time in [0, 1] -> u (B,) float32."""
        return self.weight(self.fourier(c)).float().squeeze(1)
