"""The one place where conditions become tensors for a network: a vector (B, D), channels beside the image's (B, K, H, W), and words (B, L, D)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import Condition, UserError
from .text import TextEncoder, Words

__all__ = ["Conditioned", "Conditioner", "split"]


class Conditioned(NamedTuple):
    """A condition as a network takes it: vec (B, D), and map (B, K, H, W) and words, or None. A network takes vec alone, too."""

    vec: Tensor
    map: Tensor | None = None
    words: Words | None = None


def split(x: Tensor, cond: Tensor | Conditioned) -> tuple[Tensor, Tensor, Words | None]:
    """Input, vector and words of a network: the map's channels behind those of x (B, C, H, W), enlarged to its sides; vec (B, D); words."""
    if not isinstance(cond, Conditioned):
        return x, cond, None
    if cond.map is None:
        return x, cond.vec, cond.words
    near = cond.map if cond.map.shape[2:] == x.shape[2:] else F.interpolate(cond.map, x.shape[2:], mode="bilinear", antialias=True)
    return torch.cat([x, near.to(x.dtype)], dim=1), cond.vec, cond.words


class Conditioner(nn.Module):
    """Labels to vectors, captions to words and a vector, and what a network sees beside the image.

    In training each sample loses its whole condition with probability `drop`, independently of the others (Ho and Salimans 2022, algorithm 1):
    one draw for all parts, since k draws would leave a sample without any with probability drop^k only. A lost label, -1, and no label are the
    table's last row, which exists only where samples are dropped (or there are no classes). words: how many of a caption are read, 0: captions
    are not used; no caption and a lost one are as an empty one. loses_map: the map is a part that is lost (zeros), too; else it is always seen.
    """

    def __init__(self, num_classes: int, dim: int, drop: float = 0.1, words: int = 0, loses_map: bool = False) -> None:
        super().__init__()
        self.num_classes, self.dim, self.drop, self.loses_map = num_classes, dim, drop, loses_map
        self.nullable = drop > 0 or not num_classes
        self.table = nn.Embedding(num_classes + self.nullable, dim)
        self.reader = TextEncoder(dim, words) if words else None

    def forward(self, cond: Condition, batch: int, map: Tensor | None = None) -> Conditioned:
        """The conditions of a batch, as a network takes them; map (B, K, H, W): made by the method from the images of the condition."""
        lost = None
        if self.training and self.drop:
            lost = torch.rand(batch, device=self.table.weight.device) < self.drop  # (B,)
        vec, words = self.table(self._labels(cond.label, batch, lost)), None
        if self.reader is not None:
            words, whole = self.reader(cond.text or ("",) * batch, lost)
            vec = vec + whole
        if map is not None and lost is not None and self.loses_map:
            map = map.masked_fill(lost[:, None, None, None], 0)
        return Conditioned(vec, map, words)

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
