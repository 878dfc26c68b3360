"""From an image to the noise that a deterministic solver turns into it; `euler` is the way back.

Legend: y the image at the level r, x at the next higher one s, e(x, s) = (x - D(x, s)) / s the slope. A step down is y = x + (r - s) e(x, s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.types import UserError
from .contract import Callback, Denoise, levels, state

__all__ = ["invert", "invert_exactly"]


def invert(denoise: Denoise, x0: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DDIM inversion, n evaluations: x0 (B, ...) -> x at sigmas[0]; sigmas as for a solver, falling to 0, walked upwards.

    x <- y + (s - r) e(y, r): Euler's method on the flow in the other direction (Song et al. 2021, arXiv 2010.02502, section 4.3), exact
    as n grows. At r = 0 there is no slope, so in the first step the image itself stands in for x at the lowest level s_min = sigmas[-2]:
    x <- x0 + s_min e(x0, s_min) = x0 + (x0 - D(x0, s_min)). callback: step, n and D, from the image to the noise.
    """
    s, x = levels(sigmas)[::-1], state(x0)
    n = len(s) - 1
    for i in range(n):
        at = max(s[i], s[1])  # s_min in the first step
        D = denoise(x, at).to(x.dtype)
        x = x + (s[i + 1] - s[i]) / at * (x - D)
        if callback is not None:
            callback(i, n, D)
    return x


def invert_exactly(
    denoise: Denoise, x0: Tensor, sigmas: Tensor, *, tolerance: float = 1e-4, most: int = 200, callback: Callback | None = None
) -> Tensor:
    """The x at sigmas[0] that `euler` on the same levels turns into x0, to `tolerance` per pixel: every step solved as an implicit one.

    Fixed point of x <- y + (s - r) e(x, s), the step down read backwards (Pan et al. 2023, arXiv 2309.04907, eq. 7); the last step down,
    x0 = D(x, s_min), is the case r = 0 and needs nothing else. The map contracts by (1 - r / s) |I - dD/dx|, at most 1 where D averages
    less than doubly; where the residual of a sample does not fall, its step is halved. Each step is solved, sample by sample, to
    tolerance / n sqrt(1 + r^2), because the flow shrinks what is made at the level r about that much on its way down.
    Costs between n and n * most evaluations. UserError where `most` do not suffice (an image that D never gives has no preimage).
    """
    s, x = levels(sigmas)[::-1], state(x0)
    n = len(s) - 1
    for i in range(n):
        x, D = _implicit(denoise, x, s[i], s[i + 1], tolerance / n * (1 + s[i] ** 2) ** 0.5, most)
        if callback is not None:
            callback(i, n, D)
    return x


def _implicit(denoise: Denoise, y: Tensor, r: float, s: float, enough: float, most: int) -> tuple[Tensor, Tensor]:
    """x with y = x + (r - s) e(x, s), and D(x, s); every sample stops when its own residual is small enough."""
    x, damping, before = y, torch.ones(len(y), *[1] * (y.ndim - 1), dtype=y.dtype, device=y.device), None
    for _ in range(most):
        D = denoise(x, s).to(y.dtype)
        gap = y - (D + r / s * (x - D))  # what the step down from x misses
        residual = gap.flatten(1).abs().amax(1).view_as(damping)
        if bool((residual <= enough).all()):
            return x, D
        if before is not None:
            damping = torch.where(residual < before, damping, damping / 2)
        before = residual
        x = torch.where(residual <= enough, x, x + damping * gap)
    raise UserError(f"no inversion to this tolerance: at level {s:.4g} a residual of {float(residual.max()):.2g} is left, not {enough:.2g}; "
                    "allow a larger tolerance, or take more steps")  # fmt: skip
