"""Drawing one of K codes from logits: guidance first, then the temperature, then what is cut away, then the draw."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact", "guided_logits", "kept", "pick", "probabilities"]


def exact(x: Tensor) -> Tensor:
    """In float64, or on an accelerator without it (MPS) in float32."""
    return x.float() if x.device.type == "mps" else x.double()


def guided_logits(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u) for logits (B, K) of any normalization each: w = 1 is the conditional model, 0 the unconditional one.

    Of log-probabilities this is p(c) (p(c | y) / p(c))^w up to a constant (Ho and Salimans 2022, arXiv 2207.12598, eq. 6, w + 1 there).
    """
    return unconditional + weight * (conditional - unconditional)


def kept(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Which codes may be drawn, (B, K) bool: the top_k likeliest (Fan et al. 2018), and of their distribution the fewest that reach the
    probability top_p, the one that crosses it included (Holtzman et al. 2020, arXiv 1904.09751, eq. 2). Of equal ones the first in the order.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)
    ranked = logits.gather(1, order)
    good = torch.ones_like(ranked, dtype=torch.bool)
    if top_k is not None:
        good[:, top_k:] = False
    if top_p is not None:
        p = exact(ranked).masked_fill(~good, -torch.inf).softmax(1)
        good &= p.cumsum(1) - p < top_p  # what stands before it does not reach top_p
    return torch.zeros_like(good).scatter(1, order, good)


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What codes are drawn with, (B, K), `exact`: softmax(logits / temperature) over those that are `kept`; at temperature 0 the likeliest alone.

    top_p counts probabilities at the temperature.
    """
    if temperature == 0:
        return exact(torch.zeros_like(logits)).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    scaled = exact(logits) / temperature
    if top_k is not None or top_p is not None:
        scaled = scaled.masked_fill(~kept(scaled, top_k, top_p), -torch.inf)
    return scaled.softmax(1)


def pick(p: Tensor, u: Tensor) -> Tensor:
    """The code at which the sum of p (B, K) passes u (B,), uniform in [0, 1): (B,) int64, one number a draw. A code of probability 0 is never drawn."""
    total = p.cumsum(1)  # (B, K)
    at = torch.searchsorted(total, (u.to(total) * total[:, -1])[:, None], right=True)[:, 0]
    last = (p > 0).long().mul(torch.arange(1, p.shape[1] + 1, device=p.device)).argmax(1)
    return torch.minimum(at, last)
