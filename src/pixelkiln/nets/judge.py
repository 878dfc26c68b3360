"""The end of every discriminator: from features to a logit, with or without a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.types import ImageShape

__all__ = ["Condition", "Judge", "joined", "planes"]

Condition = Literal["none", "concat", "projection", "generator"]


def planes(condition: Condition, classes: int) -> int:
    """Channels that the label adds to D's input."""
    return 1 if condition == "concat" and classes else 0


def joined(z: Tensor, label: Tensor | None, classes: int) -> Tensor:
    """z (n, d) beside the label's one-hot vector, (n, d + K); without classes z itself (Mirza and Osindero 2014, arXiv 1411.1784, section 3.2)."""
    if not classes or label is None:
        return z
    return torch.cat([z, nn.functional.one_hot(label, classes).to(z.dtype)], dim=1)


def table(classes: int, features: int) -> nn.Embedding:
    """V of the projection, (K, F), so small at first that <V_y, h> is about as large as one feature."""
    embed = nn.Embedding(classes, features)
    nn.init.normal_(embed.weight, 0.0, features**-0.5)
    return embed


@final
class Judge(nn.Module):
    """D(x, y) = w . h(x) + b, features h (n, F) by `trunk`. A label enters as

    - concat: a learned plane of each class, one more channel of x (after Mirza and Osindero 2014, arXiv 1411.1784);
    - projection: + <V_y, h(x)> (Miyato and Koyama 2018, arXiv 1802.05637, eq. 3);
    - none, generator: not at all.

    `wrap` goes around what has a weight here (a spectral norm, or nothing).
    """

    def __init__(self, trunk: nn.Module, features: int, shape: ImageShape, classes: int, condition: Condition, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> None:
        super().__init__()
        self.trunk, self.head = trunk, wrap(nn.Linear(features, 1))
        self.plane = nn.Embedding(classes, shape.height * shape.width) if planes(condition, classes) else None
        self.embed = wrap(table(classes, features)) if condition == "projection" and classes else None

    def judge(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (n, C, H, W), label (n,) -> logits (n,), features (n, F)."""
        if self.plane is not None and label is not None:
            x = torch.cat([x, self.plane(label).view(len(x), 1, *x.shape[2:]).to(x.dtype)], dim=1)
        h: Tensor = self.trunk(x)
        logits: Tensor = self.head(h)[:, 0]
        if self.embed is not None and label is not None:
            logits = logits + (self.embed(label) * h).sum(1)
        return logits, h

    @property
    def depth(self) -> int:
        """Layers of the trunk that have weights and are no norms: convolutions, linear layers, blocks."""
        return len(self._layers())

    def inner(self, x: Tensor, layer: int) -> Tensor:
        """Output (n, ...) of layer 1..depth of the trunk for x (n, C, H, W), before its norm and nonlinearity, of a D that takes no label.

        In evaluation mode, so that an image's features are its own: no dropout, and BatchNorm by its running statistics. Those of a batch would hide
        in what two batches differ, such as their contrast, and would tie each image to its neighbors.
        """
        training = self.training
        try:
            h: Tensor = self.eval()._path()[: self._layers()[layer - 1] + 1](x)
        finally:
            self.train(training)
        return h

    def _path(self) -> nn.Sequential:
        path = getattr(self.trunk, "blocks", self.trunk)
        assert isinstance(path, nn.Sequential)
        return path

    def _layers(self) -> list[int]:
        """Where on the path they stand."""
        return [i for i, m in enumerate(self._path()) if next(m.parameters(), None) is not None and not isinstance(m, (_BatchNorm, nn.GroupNorm))]

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `judge`; compiled where a run is."""
        return self.judge(x, label)
