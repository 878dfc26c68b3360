"""Perceptrons as generator and discriminator, for any shape of images, the plane included. n images, d latent, D = C H W."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

from torch import Tensor, nn

from ..core.types import ImageShape
from .judge import Condition, Judge, joined, planes

__all__ = ["MLPGenerator", "MLPNets", "mlp_nets"]


@dataclass(frozen=True)
class MLPNets:
    """Two perceptrons."""

    g_width: int = 512  # units of a hidden layer
    d_width: int = 512
    layers: int = 2  # hidden layers of each
    dropout: float = 0.3  # in D
    g_norm: Literal["none", "batch"] = "none"  # BatchNorm behind G's hidden layers but the first
    condition: Condition = "none"  # where a label enters


@final
class MLPGenerator(nn.Module):
    """z (n, d) -> x (n, C, H, W) in [-1, 1]: linear layers with ReLU, tanh, and where asked BatchNorm (Goodfellow et al. 2014, arXiv 1406.2661, section 5)."""

    def __init__(self, shape: ImageShape, latent: int, classes: int, config: MLPNets) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        sizes = [latent + classes] + [config.g_width] * config.layers
        hidden: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            hidden += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if i and config.g_norm == "batch" else []), nn.ReLU()]
        self.net = nn.Sequential(*hidden, nn.Linear(sizes[-1], shape.numel), nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z (n, d), label (n,) -> x."""
        x: Tensor = self.net(joined(z, label, self.classes))
        return x.unflatten(1, self.shape)


def mlp_nets(shape: ImageShape, latent: int, classes: int, config: MLPNets) -> tuple[nn.Module, nn.Module]:
    """The two networks; D has LeakyReLU and dropout (the paper: maxout and dropout)."""
    sizes = [(shape.channels + planes(config.condition, classes)) * shape.height * shape.width] + [config.d_width] * config.layers
    hidden = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2), nn.Dropout(config.dropout))]
    judge = Judge(nn.Sequential(nn.Flatten(), *hidden), config.d_width, shape, classes, config.condition)
    return MLPGenerator(shape, latent, classes, config), judge
