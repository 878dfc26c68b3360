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


def iterated(w: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration on a matrix w (m, n), written into u (m,) and v (n,); copies of both."""
    v.copy_(F.normalize(w.t() @ u, dim=0, eps=1e-12))
    u.copy_(F.normalize(w @ v, dim=0, eps=1e-12))
    return u.clone(), v.clone()  # a second pass before the backward one writes over the buffers


# For compiled networks the iteration is one opaque operation: inductor of torch 2.13 keeps the buffer itself for the backward pass in place of its copy.
_opaque = torch.library.custom_op("pixelkiln::power_iteration", iterated, mutates_args=("u", "v"))
_opaque.register_fake(lambda w, u, v: (torch.empty_like(u), torch.empty_like(v)))


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
            iterated(w, self.u, self.v)

    def matrix(self, weight: Tensor) -> Tensor:
        """(rows, everything else)."""
        return weight.transpose(0, self.dim).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight of the layer."""
        with torch.autocast(weight.device.type, enabled=False):
            w = self.matrix(weight)
            if self.training and self.track_running_stats:
                u, v = (_opaque if torch.compiler.is_compiling() else iterated)(w.detach(), self.u, self.v)
            else:
                u, v = self.u.clone(), self.v.clone()
            return weight / torch.dot(u, w @ v)


def spectral(layer: Layer) -> Layer:
    """The layer with a spectrally normalised weight."""
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight, dim))
    return layer
