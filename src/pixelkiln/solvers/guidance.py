"""Guidance maps a denoiser to a denoiser: no solver and no network knows of it.

Legend: x = x0 + s eps (B, ...), s its noise level, D = E[x0 | x] (B, ...), c a condition, w a weight. All of it happens to the estimate of
x0. By Tweedie's formula D = x + s^2 grad log p(x; s), so that adding denoisers with weights of sum 1 is adding scores, and as eps, v and
the score are affine in x0, guidance of any of them is the same guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.types import Condition, UserError
from .contract import Denoise

__all__ = [
    "Interval",
    "Model",
    "autoguided",
    "classifier_free",
    "classifier_guided",
    "composed",
    "conditioned",
    "inside",
    "joined",
    "null_of",
    "rescaled",
    "thresholded",
]

Model = Callable[[Tensor, Tensor, Condition], Tensor]  # x (B, ...), s (B,), condition -> x0 (B, ...), as `Denoiser.denoise`
Interval = tuple[float, float] | None  # noise levels (lo, hi] at which there is guidance; None: all


def null_of(cond: Condition) -> Condition:
    """What guidance compares a condition with: the same images (source, mask, coords), without label, text, layout and domain."""
    return replace(cond, label=None, text=None, layout=None, domain=None)


def inside(s: float, interval: Interval) -> bool:
    """lo < s <= hi (Kynkäänniemi et al. 2024, arXiv 2404.07724): the levels are noise, not shares of the steps."""
    return interval is None or interval[0] < s <= interval[1]


def joined(conds: Sequence[Condition], n: int) -> Condition:
    """The conditions of k batches of n rows as one of k n; what only some of them have is "none" in the others.

    None is label or domain -1, text "", and padding for layouts; ValueError for images (source, mask, coords) that only some have.
    """
    found: dict[str, Any] = {}
    for name in sorted(frozenset().union(*(c.given() for c in conds))):
        values = [getattr(c, name) for c in conds]
        if name == "text":
            found[name] = sum((v or ("",) * n for v in values), ())
            continue
        given = next(v for v in values if v is not None)
        if any(v is None for v in values) and name not in {"label", "domain", "layout"}:
            raise ValueError(f"{name!r} must be given in all conditions")
        found[name] = torch.cat([torch.full_like(given, -1) if v is None else v for v in values])
    return Condition(**found)


def _together(denoise: Model, x: Tensor, s: float, conds: Sequence[Condition]) -> Sequence[Tensor]:
    """D of each condition, (B, ...) each, in one forward of len(conds) times the batch."""
    n, k = len(x), len(conds)
    return denoise(torch.cat([x] * k), x.new_full((k * n,), s), joined(conds, n)).chunk(k)


def conditioned(denoise: Model, cond: Condition) -> Denoise:
    """The model under one condition."""
    return lambda x, s: denoise(x, x.new_full((len(x),), s), cond)


def classifier_free(denoise: Model, cond: Condition, null: Condition, w: float, interval: Interval = None, rescale: float = 0.0) -> Denoise:
    """D_u + w (D_c - D_u), both halves in one forward of twice the batch (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    null: the condition that means "none"; a missing label is -1. w = 1, and any level outside the interval, is the plain conditional
    model in one pass; w = 0 the unconditional one; the paper's own weight is w - 1. rescale: phi of `rescaled`.
    """
    plain = conditioned(denoise, cond)

    def guided(x: Tensor, s: float) -> Tensor:
        if w == 1 or not inside(s, interval) or not cond.given() | null.given():
            return plain(x, s)
        D_c, D_u = _together(denoise, x, s, (cond, null))
        return rescaled(D_u + w * (D_c - D_u), D_c, rescale)

    return guided


def rescaled(D: Tensor, D_c: Tensor, phi: float) -> Tensor:
    """phi (D std(D_c) / std(D)) + (1 - phi) D, standard deviations of each sample over all its pixels and channels, phi in [0, 1].

    Lin et al. 2023 (arXiv 2305.08891), eq. 14 to 16, which they apply to what their network predicts; here to x0, so that it means the
    same for every parameterisation, and what it brings back is the contrast of the image itself.
    """
    if not 0 <= phi <= 1:
        raise UserError(f"rescale {phi} is not in [0, 1]: 0 is off, 1 keeps the contrast of the unguided estimate")
    if phi == 0:
        return D
    wide = [-1] + [1] * (D.ndim - 1)
    deviation, wanted = (v.flatten(1).std(1).view(wide) for v in (D, D_c))  # (B, 1, ...)
    factor = torch.where(deviation > 0, wanted / deviation.clamp_min(1e-12), 1.0)
    return phi * (D * factor) + (1 - phi) * D


def autoguided(main: Denoise, weak: Denoise, w: float, interval: Interval = None) -> Denoise:
    """D_weak + w (D_main - D_weak): away from a weaker model of the same task (Karras et al. 2024, arXiv 2406.02507, section 4).

    weak: a smaller net, or one that was trained for less long, with the same condition. w = 1, and any level outside the interval, is main
    alone (one pass).
    """

    def guided(x: Tensor, s: float) -> Tensor:
        D = main(x, s)
        if w == 1 or not inside(s, interval):
            return D
        D_weak = weak(x, s)
        return D_weak + w * (D - D_weak)

    return guided


def classifier_guided(denoise: Denoise, logp: Denoise, w: float, interval: Interval = None) -> Denoise:
    """D + w s^2 grad_x log p(y | x; s), the denoiser of p(x) p(y | x)^w at w = 1 (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4).

    Bayes: grad log p(x | y) = grad log p(x) + grad log p(y | x) at each level, and D = x + s^2 grad log p(x; s) (Tweedie), hence
    E[x0 | x, y] = D + s^2 grad log p(y | x; s). Their shift of the mean by Sigma grad, and of eps by -sigma grad, are this one.
    logp: x (B, ...), s -> (B,) for noisy x in evaluation mode, row i of x i alone: any differentiable score. Gradients are switched on
    here, inside no_grad as well. w = 0, and any level outside the interval, evaluates `denoise` alone.
    """

    def guided(x: Tensor, s: float) -> Tensor:
        D = denoise(x, s)
        if w == 0 or not inside(s, interval):
            return D
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(logp(at, s).sum(), at)
        return D + w * s**2 * grad.to(D.dtype)

    return guided


def composed(denoise: Model, terms: Sequence[tuple[Condition, float]], null: Condition) -> Denoise:
    """D_u + sum_i w_i (D_i - D_u) in one forward: p(x) prod_i (p(x | c_i) / p(x))^w_i at each noise level; w_i < 0 is "not c_i".

    Liu et al. 2022 (arXiv 2206.01714), who add scores of noisy densities. The noisy product is not the product of the noisy ones,
    so that this is exact where the conditions concern different pixels, or where Gaussians share their covariance and the w_i sum to 1,
    and otherwise as s -> 0 only (Du et al. 2023, arXiv 2302.11552). What has no weight is not evaluated.
    """
    total = sum(w for _, w in terms)
    used = [(c, w) for c, w in (*terms, (null, 1.0 - total)) if w != 0]

    def guided(x: Tensor, s: float) -> Tensor:
        parts = _together(denoise, x, s, [c for c, _ in used])
        return torch.stack([w * D for (_, w), D in zip(used, parts, strict=True)]).sum(0)

    return guided


def thresholded(denoise: Denoise, p: float) -> Denoise:
    """D clamped to [-a, a] and divided by a, with a = max(1, the p-quantile of |D|) of each sample (Saharia et al. 2022, arXiv 2205.11487,
    section 2.3); p in (0, 1]. Quantiles between two values are linear in between."""
    if not 0 < p <= 1:
        raise UserError(f"threshold {p} is not in (0, 1]: it is a share of the pixels, such as 0.995")

    def guided(x: Tensor, s: float) -> Tensor:
        D = denoise(x, s)
        size = D.flatten(1).abs().float().sort(1).values  # (B, D); torch.quantile refuses more than 2^24 values
        at = p * (size.shape[1] - 1)
        low = int(at)
        high = min(low + 1, size.shape[1] - 1)
        a = torch.lerp(size[:, low], size[:, high], at - low).clamp_min(1).to(D.dtype)  # (B,)
        a = a.view([-1] + [1] * (D.ndim - 1))
        return D.clamp(-a, a) / a

    return guided
