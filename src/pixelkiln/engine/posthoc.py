"""Averages of weights by a power of the time, and any of them afterwards from a few snapshots (Karras et al. 2024, arXiv 2312.02696, sec. 3, app. C).

    p(tau) = (g + 1) tau^g / t^(g + 1) for 0 <= tau <= t                                eq. 4, "profile"
    std = sqrt((g + 1) / (g + 2)^2 / (g + 3)), its width as a share of t                eq. 5

After step i of t = 1, 2, ... steps, beta_t = (1 - 1 / t)^(g + 1) gives the weights of step i the share ((i / t)^(g + 1) - ((i - 1) / t)^(g + 1)): the
profile's integral over that step, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.config import from_json
from ..core.runs import Run
from ..core.types import UserError

__all__ = ["coefficients", "exponent", "inner", "reconstruct", "width"]

WIDEST = 12**-0.5  # of a mean over everything, g = 0


def exponent(std: float) -> float:
    """g >= 0 of the profile whose width is the share `std` of the training, in (0, 0.2886]: the largest root of
    g^3 + 7 g^2 + (16 - std^-2) g + 12 - std^-2 (algorithm 2). UserError elsewhere."""
    if not 0 < std <= WIDEST:
        raise UserError(f"an average of relative length {std:g}: choose a share of the training above 0, up to {math.floor(1e4 * WIDEST) / 1e4}")
    s, g, last = std**-2, 1 / std, math.inf
    while g < last:  # Newton's method from the right of the root, where the cubic is positive, rising and convex: it falls until rounding stops it
        last, g = g, g - (((g + 7) * g + 16 - s) * g + 12 - s) / ((3 * g + 14) * g + 16 - s)
    return max(last, 0.0)


def width(g: float) -> float:
    """The relative width of the profile, eq. 5."""
    return math.sqrt((g + 1) / (g + 2) ** 2 / (g + 3))


def inner(ta: Tensor, ga: Tensor, tb: Tensor, gb: Tensor) -> Tensor:
    """Inner products of the profiles (ta, ga), times and exponents (n,), with (tb, gb) (m,): (n, m) float64, algorithm 3.

    (ga + 1) (gb + 1) / (ga + gb + 1) / max(ta, tb) * (min / max)^g, with the exponent g of the later one.
    """
    ta, ga, tb, gb = ta[:, None].double(), ga[:, None].double(), tb[None].double(), gb[None].double()
    ratio = torch.where(ta < tb, (ta / tb) ** gb, (tb / ta) ** ga)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) / torch.maximum(ta, tb) * ratio


def coefficients(times: Sequence[float], stds: Sequence[float], time: float, std: float) -> Tensor:
    """Coefficients x (n,) float64, sum 1, with which the snapshots (times[i], stds[i]) come closest, in least squares over their profiles, to the
    average of width `std` at `time`: A x = b by the inner products."""
    t, g = torch.tensor(times, dtype=torch.float64), torch.tensor([exponent(s) for s in stds], dtype=torch.float64)
    wanted = torch.tensor([time], dtype=torch.float64), torch.tensor([exponent(std)], dtype=torch.float64)
    x = torch.linalg.lstsq(inner(t, g, t, g), inner(t, g, *wanted), driver="gelsd").solution[:, 0]
    return x / x.sum()


@torch.no_grad()
def reconstruct(run: Run, std: float) -> dict[str, Tensor]:
    """The averaged parameters of width `std` at the newest snapshot, fp32 by name; 0: none, so that the weights of the last step stand.

    Parameters only: buffers are those of the checkpoint. UserError: the run has no snapshots, or a damaged one.
    """
    if std == 0:
        return {}
    exponent(std)  # refuse what is none before anything is read
    points = run.snapshots()
    if not points:
        raise UserError(f"{run.path} has no snapshots to make an average of another length from: train it with --train.ema.kind power")
    kept = [(p, s) for p in points for s in from_json(tuple[float, ...], p.state.get("stds"), f"{p.path}: stds")]
    x = coefficients([p.step for p, _ in kept], [s for _, s in kept], points[-1].step, std)
    total: dict[str, Tensor] = {}
    for (point, s), weight in zip(kept, x.tolist(), strict=True):
        found = {name: value.float() for name, value in point.tensors(f"std-{s}").items()}
        total = total or {name: torch.zeros_like(value) for name, value in found.items()}
        if not found or {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in total.items()}:
            raise UserError(f"{point.path} does not fit the other snapshots: remove it to do without it")
        torch._foreach_add_([total[name] for name in found], list(found.values()), alpha=weight)
    return total
