"""Codes that are drawn: the relaxed categorical of the dVAE (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712)."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.quantize import Usage, rows
from ..layers.whitened import Whitened

__all__ = ["Drawn", "GumbelCodes", "Keys", "relaxed"]

SOFT = 0.5  # deviation of the keys' numbers at first: with D of them logits have a deviation of sqrt(D) / 2


class Drawn(NamedTuple):
    """z (B, D, h, w), the codes' numbers (B, 1, h, w), the KL in nats (B,), and what is to be logged."""

    z: Tensor
    indices: Tensor
    kl: Tensor
    terms: dict[str, Tensor]


def relaxed(logits: Tensor, tau: float, u: Tensor) -> Tensor:
    """softmax((logits + g) / tau) over the last dimension, g = -log(-log u), u uniform (Jang et al. 2017, eq. 2).

    For tau -> 0 a draw from softmax(logits), as a one-hot vector; for tau -> infinity 1 / K, whatever the logits.
    """
    waited = u.clamp(1e-20, 1 - 1e-7).log_().neg_().log_()  # -g
    return ((logits - waited) / tau).softmax(-1)


@final
class Keys(nn.Module):
    """Vectors (B, D, h, w) -> logits (B, K, h, w): whitened, their products with K keys that begin at random.

    Logits that a random network makes directly favor the same few codes everywhere, and those that are never likely get no gradient (docs/LOG.md).
    """

    def __init__(self, dim: int, codes: int) -> None:
        super().__init__()
        self.even = Whitened(dim)
        self.keys, self.bias = nn.Parameter(SOFT * torch.randn(codes, dim)), nn.Parameter(torch.zeros(codes))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            logits = F.linear(self.even(rows(z.float())), self.keys, self.bias)
            return logits.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


@final
class GumbelCodes(nn.Module):
    """Logits (B, K, h, w) to mixtures of K vectors: relaxed draws in training, the likeliest code otherwise."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(codes, dim))
        self.usage = Usage(codes)
        self.track_running_stats = True

    def forward(self, logits: Tensor, tau: float) -> Drawn:
        """kl: sum over positions of KL(q || uniform) = log K - H(q)."""
        with torch.autocast(logits.device.type, enabled=False):
            flat = logits.float().permute(0, 2, 3, 1)  # (B, h, w, K)
            log_q = flat.log_softmax(-1)
            kl = (torch.linalg.vecdot(log_q.exp(), log_q) + math.log(flat.shape[-1])).sum((1, 2))  # (B,)
            index = flat.argmax(-1)
            if not self.training:
                return Drawn(self.lookup(index[:, None]), index[:, None], kl, {})
            if self.track_running_stats:
                self.usage.update(index)
            y = relaxed(flat, tau, torch.rand_like(flat))
            return Drawn((y @ self.table).permute(0, 3, 1, 2), index[:, None], kl, self.usage.terms())

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, 1, h, w) -> (B, D, h, w)."""
        return self.table[indices[:, 0]].permute(0, 3, 1, 2)
