"""The two networks of an autoencoder on vectors, by their configuration, with or without a label. n images, J units of the code, K classes."""

from __future__ import annotations

from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn

from ..core.types import ImageShape
from .convae import ConvDecoder, ConvEncoder
from .mlp import CouplingFlow, MLPDecoder, MLPEncoder

__all__ = ["LabeledDecoder", "LabeledEncoder", "LabeledFlow", "Sized", "Used", "coders", "encoder", "prior"]


class Sized(Protocol):
    """What the configurations of autoencoders say about their networks."""

    @property
    def latent(self) -> int: ...  # J
    @property
    def net(self) -> Literal["mlp", "conv"]: ...
    @property
    def width(self) -> int: ...  # mlp: hidden units; conv: channels of the largest map
    @property
    def depth(self) -> int: ...  # mlp: hidden layers; conv: residual blocks at every size
    @property
    def hidden(self) -> int: ...  # conv: units of the layer next to the code


class Used(Sized, Protocol):
    """... and about their prior."""

    @property
    def prior(self) -> Literal["normal", "flow"]: ...
    @property
    def flow_width(self) -> int: ...
    @property
    def flow_layers(self) -> int: ...


@final
class LabeledEncoder(nn.Module):
    """x (n, C, H, W), label (n,), -1 = none -> (n, out): a learned plane of each class, and one of no class, is one more channel of x."""

    def __init__(self, net: nn.Module, shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.net, self.classes = net, classes
        self.plane = nn.Embedding(classes + 1, shape.height * shape.width)
        nn.init.normal_(self.plane.weight, 0.0, 0.1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        plane = self.plane(torch.where(label < 0, self.classes, label)).view(len(x), 1, *x.shape[2:])
        return self.net(torch.cat([x, plane.to(x.dtype)], dim=1))


@final
class LabeledDecoder(nn.Module):
    """z (n, J), label (n,), -1 = none -> (n, C, H, W): the label's one-hot vector, zeros for none, beside z."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.net(torch.cat([z, one_hot(label, self.classes, z.dtype)], dim=1))


@final
class LabeledFlow(nn.Module):
    """z = g(u; y), of each label y (n,), -1 = none: a prior p(z|y). Every coupling sees the label's one-hot vector. u, z (..., n, J)."""

    def __init__(self, flow: CouplingFlow, classes: int) -> None:
        super().__init__()
        self.flow, self.classes = flow, classes

    def _seen(self, x: Tensor, label: Tensor) -> Tensor:
        """(..., n, K), zeros for none."""
        return one_hot(label, self.classes, x.dtype).expand(*x.shape[:-1], -1)

    def forward(self, u: Tensor, label: Tensor) -> Tensor:
        z: Tensor = self.flow(u, self._seen(u, label))
        return z

    def inverse(self, z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """u (..., n, J) and log |det du/dz| (..., n)."""
        return self.flow.inverse(z, self._seen(z, label))


def one_hot(label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(n,) -> (n, K), zeros for -1."""
    return (label[:, None] == torch.arange(classes, device=label.device)).to(dtype)


def encoder(shape: ImageShape, config: Sized, out: int) -> nn.Module:
    """x (n, C, H, W) -> (n, out). Raises `UserError` for sides that the conv net cannot halve."""
    return MLPEncoder(shape, out, config.width, config.depth) if config.net == "mlp" else ConvEncoder(shape, out, config.width, config.depth, config.hidden)


def coders(shape: ImageShape, config: Sized, out: int, classes: int = 0) -> tuple[nn.Module, nn.Module]:
    """Encoder, x (n, C, H, W) -> (n, out), and decoder, z (n, J) -> (n, C, H, W), unbounded; where there are classes, both take a label, too.

    Raises `UserError` for sides that the conv net cannot halve.
    """
    seen, J = ImageShape(shape.channels + (classes > 0), shape.height, shape.width), config.latent + classes
    coder, mlp = encoder(seen, config, out), config.net == "mlp"
    decoder: nn.Module = MLPDecoder(J, shape, config.width, config.depth) if mlp else ConvDecoder(J, shape, config.width, config.depth, config.hidden)
    return (LabeledEncoder(coder, shape, classes), LabeledDecoder(decoder, classes)) if classes else (coder, decoder)


def prior(config: Used, classes: int = 0) -> CouplingFlow | LabeledFlow | None:
    """g of a learned prior z = g(u), u ~ N(0, I), which takes a label, too, where there are classes; None for N(0, I) itself."""
    if config.prior == "normal":
        return None
    flow = CouplingFlow(config.latent, config.flow_width, config.flow_layers, classes)
    return LabeledFlow(flow, classes) if classes else flow
