"""Weight norm: length and direction of each output's weights, learned apart (Salimans and Kingma 2016, arXiv 1602.07868)."""

from __future__ import annotations

from typing import TypeVar, final

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["WeightNorm", "weight_normed"]

Layer = TypeVar("Layer", bound=nn.Module)


@final
class WeightNorm(nn.Module):
    """(g, v) -> W = g v / |v|, eq. 2: |.| of what belongs to one output, along `dim`. torch's own has a wrong second derivative (2.13, dim 0)."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def length(self, v: Tensor) -> Tensor:
        """|v| of each output, of as many dimensions as v."""
        others = [d for d in range(v.ndim) if d != self.dim]
        return v.square().sum(others, keepdim=True).sqrt()

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """The weight of the layer."""
        return g * v / self.length(v)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Where it begins: g = |v|, v = W."""
        return self.length(weight), weight


def weight_normed(layer: Layer) -> Layer:
    """The layer with its weight normed, v ~ N(0, 0.02) and biases 0 at first, as a DCGAN's."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    nn.init.normal_(weight, 0.0, 0.02)
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        nn.init.zeros_(bias)
    parametrize.register_parametrization(layer, "weight", WeightNorm(1 if isinstance(layer, nn.ConvTranspose2d) else 0))
    return layer
