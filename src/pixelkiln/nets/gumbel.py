"""Codes that are drawn: the relaxed categorical of the dVAE (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712)."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from ..layers.quantize import Usage

__all__ = ["Drawn", "GumbelCodes", "relaxed"]


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
    gumbel = -torch.log(-torch.log(u.clamp(1e-20, 1 - 1e-7)))
    return ((logits + gumbel) / tau).softmax(-1)


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
            kl = (log_q.exp() * (log_q + math.log(flat.shape[-1]))).sum(-1).sum((1, 2))  # (B,)
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
