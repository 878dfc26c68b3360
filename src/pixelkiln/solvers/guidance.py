"""Guidance maps a denoiser to a denoiser: no solver and no network knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.types import Condition
from .contract import Denoise

__all__ = ["classifier_free", "joined"]


def joined(a: Condition, b: Condition, n: int) -> Condition:
    """The conditions of two batches of n rows as one of 2n; what only one of them has is "none" in the other.

    None is label or domain -1, text "", and padding for layouts; ValueError for images (source, mask, coords) that only one has.
    """
    fields: dict[str, Any] = {}
    for name in sorted(a.given() | b.given()):
        one, two = getattr(a, name), getattr(b, name)
        if name == "text":
            fields[name] = (one or ("",) * n) + (two or ("",) * n)
            continue
        if (one is None or two is None) and name not in {"label", "domain", "layout"}:
            raise ValueError(f"{name!r} must be given in both conditions")
        given = one if one is not None else two
        one, two = (torch.full_like(given, -1) if v is None else v for v in (one, two))
        fields[name] = torch.cat([one, two])
    return Condition(**fields)


def classifier_free(denoise: Callable[[Tensor, Tensor, Condition], Tensor], cond: Condition, null: Condition, w: float) -> Denoise:
    """A denoiser D_u + w (D_c - D_u), both halves in one forward of twice the batch (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    denoise: x (B, ...), s (B,), condition -> x0 (B, ...), as `Denoiser.denoise`. null: the condition that means "none"; a missing
    label is -1. w = 1 is the plain conditional model (one pass), w = 0 the unconditional one; the paper's own weight is w - 1.
    In x0, eps and v this is the same guidance, as they are affine in each other.
    """

    def guided(x: Tensor, s: float) -> Tensor:
        n = x.shape[0]
        if w == 1 or not cond.given() | null.given():
            return denoise(x, x.new_full((n,), s), cond)
        both = denoise(torch.cat([x, x]), x.new_full((2 * n,), s), joined(cond, null, n))  # (2B, ...)
        D_c, D_u = both.chunk(2)
        return D_u + w * (D_c - D_u)

    return guided
