"""Spectral norm: a weight divided by its largest singular value, estimated by power iteration (Miyato et al. 2018, arXiv 1802.05957)."""

from __future__ import annotations

from typing import TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["SpectralNorm", "spectral"]

Layer = TypeVar("Layer", bound=nn.Module)
WARM = 15  # iterations on the first weights, so that the first steps have a good estimate


@final
class SpectralNorm(nn.Module):
    """W -> W / sigma(W), sigma = u^T W v (eq. 8); v <- W^T u / |W^T u|, u <- W v / |W v| once in each forward pass in training (algorithm 1).

    W (out, ...) is taken as a matrix of `out` rows (of `dim` 1 for transposed convolutions). In evaluation, or where the loop holds the net's
    statistics still (`track_running_stats`), u and v stand. The gradient goes through sigma with u and v fixed.
    """

    track_running_stats = True  # the loop switches it off while another net is trained
    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        w = self.matrix(weight.detach())
        self.register_buffer("u", F.normalize(torch.randn(len(w)), dim=0).to(w))
        self.register_buffer("v", F.normalize(torch.randn(w.shape[1]), dim=0).to(w))
        for _ in range(WARM):
            self.iterate(w)

    def matrix(self, weight: Tensor) -> Tensor:
        """(rows, everything else)."""
        return weight.transpose(0, self.dim).flatten(1)

    @torch.no_grad()
    def iterate(self, w: Tensor) -> None:
        """One power iteration."""
        self.v.copy_(F.normalize(w.t() @ self.u, dim=0, eps=1e-12))
        self.u.copy_(F.normalize(w @ self.v, dim=0, eps=1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight of the layer."""
        with torch.autocast(weight.device.type, enabled=False):
            w = self.matrix(weight)
            if self.training and self.track_running_stats:
                self.iterate(w.detach())
            u, v = self.u.clone(), self.v.clone()  # a second pass before the backward one writes over the buffers
            return weight / torch.dot(u, w @ v)


def spectral(layer: Layer) -> Layer:
    """The layer with a spectrally normalised weight."""
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight, dim))
    return layer
