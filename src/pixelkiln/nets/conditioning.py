"""The one place where conditions become tensors for a network: a vector (B, D) and a map (B, K, H, W) of channels beside the image's."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import Condition, UserError

__all__ = ["Conditioned", "Conditioner", "Seen", "split"]

Seen = Literal["none", "source", "inpaint"]  # what of the condition becomes the map


class Conditioned(NamedTuple):
    """A condition as a network takes it: vec (B, D), and map (B, K, H, W) or None. A network takes vec alone, too."""

    vec: Tensor
    map: Tensor | None = None


def split(x: Tensor, cond: Tensor | Conditioned) -> tuple[Tensor, Tensor]:
    """Input and vector of a network: the map's channels behind those of x (B, C, H, W), enlarged to its sides; and vec (B, D)."""
    if not isinstance(cond, Conditioned):
        return x, cond
    if cond.map is None:
        return x, cond.vec
    near = cond.map if cond.map.shape[2:] == x.shape[2:] else F.interpolate(cond.map, x.shape[2:], mode="bilinear", antialias=True)
    return torch.cat([x, near.to(x.dtype)], dim=1), cond.vec


class Conditioner(nn.Module):
    """Labels to vectors, and images and masks to maps.

    In training each sample loses its whole condition with probability `drop`, independently of the others (Ho and Salimans 2022, algorithm 1):
    one draw for all parts, since k draws would leave a sample without any with probability drop^k only. A lost label, -1, and no label are the
    table's last row, which exists only where samples are dropped (or there are no classes). seen: "source" makes cond.source the map (lost:
    zeros), of `channels` channels; "inpaint" makes it what the mask leaves of the source, and the mask, 1 = to be painted (lost: all of it).
    """

    def __init__(self, num_classes: int, dim: int, drop: float = 0.1, seen: Seen = "none", channels: int = 0) -> None:
        super().__init__()
        self.num_classes, self.dim, self.drop, self.seen = num_classes, dim, drop, seen
        self.map_channels = {"none": 0, "source": channels, "inpaint": channels + 1}[seen]  # K
        self.nullable = drop > 0 or not num_classes
        self.table = nn.Embedding(num_classes + self.nullable, dim)

    def forward(self, cond: Condition, batch: int) -> Conditioned:
        """The conditions of a batch, as a network takes them."""
        lost = None
        if self.training and self.drop:
            lost = torch.rand(batch, device=self.table.weight.device) < self.drop  # (B,)
        return Conditioned(self.table(self._labels(cond.label, batch, lost)), self._map(cond, lost))

    def _labels(self, label: Tensor | None, batch: int, lost: Tensor | None) -> Tensor:
        """Rows of the table (B,)."""
        null = self.num_classes
        if not self.nullable:
            if label is None or (not self.training and bool((label < 0).any())):
                raise UserError("this net never lost a label in training, so it makes nothing without one: give --label, and no guidance")
            return label
        if label is None or not self.num_classes:
            label = torch.full((batch,), null, device=self.table.weight.device)
        label = torch.where(label < 0, null, label)
        return label if lost is None else torch.where(lost, null, label)

    def _map(self, cond: Condition, lost: Tensor | None) -> Tensor | None:
        """Channels beside the image's, (B, K, H, W)."""
        if self.seen == "none":
            return None
        if cond.source is None or (self.seen == "inpaint" and cond.mask is None):
            raise UserError(f"this net sees {'an image and a mask' if self.seen == 'inpaint' else 'an image'}: give --source{' and --mask' * (self.seen == 'inpaint')}")
        source, hidden = cond.source, cond.mask
        if lost is not None:
            gone = lost[:, None, None, None].to(source.dtype)
            source = source * (1 - gone)
            hidden = None if hidden is None else torch.maximum(hidden.to(source.dtype), gone)
        return source if self.seen == "source" else torch.cat([source * (1 - hidden), hidden], dim=1)  # type: ignore[operator, list-item]
