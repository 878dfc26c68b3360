"""Where the noise levels of n steps lie: (n + 1,) float64, falling strictly, the last one 0, for every n >= 1.

Levels are real numbers, never rounded to the steps of a training table (rounded ones collapse to duplicates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.config import nearest
from ..core.types import UserError
from ..processes import GaussianPath
from .few import few_levels

__all__ = ["Spacing", "few", "karras", "leading_time", "linspace_time", "log_linear", "spaced", "spacing_named", "uniform_time"]

Spacing = Literal["karras", "time", "loglinear", "leading", "linspace", "few"]


def karras(n: int, s_min: float, s_max: float, rho: float = 7.0) -> Tensor:
    """Uniform in s^(1/rho) from s_max to s_min, then 0 (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    ramp = _ramp(n)
    s = (s_max ** (1 / rho) + ramp * (s_min ** (1 / rho) - s_max ** (1 / rho))) ** rho
    return _ended(s.clamp(s_min, s_max))


def log_linear(n: int, s_min: float, s_max: float) -> Tensor:
    """Uniform in lambda = -log s from s_max to s_min, then 0 (Lu et al. 2022, arXiv 2206.00927, section 3.4)."""
    s = torch.exp(math.log(s_max) + _ramp(n) * math.log(s_min / s_max))
    return _ended(s.clamp(s_min, s_max))


def uniform_time(n: int, ratio: Callable[[Tensor], Tensor], t_max: float = 1.0) -> Tensor:
    """s = ratio(t) at t_i = t_max (n - i) / n, i = 0..n: "trailing" spacing, which starts at the highest noise for every n.

    ratio: times (n,) float64 -> noise levels, rising.
    """
    _ramp(n)
    t = t_max * torch.arange(n, 0, -1, dtype=torch.float64) / n
    return _ended(ratio(t))


def leading_time(n: int, ratio: Callable[[Tensor], Tensor], t_min: float, t_max: float = 1.0) -> Tensor:
    """s = ratio(t) at t_i = t_min + (t_max - t_min) (n - 1 - i) / n: "leading" spacing, the default of many libraries.

    It ends at the lowest noise and never starts at the highest, so the noise that it is given is not what the model expects (Lin et al.
    2023, arXiv 2305.08891, section 3.3). Here for comparison.
    """
    _ramp(n)
    return _ended(ratio(t_min + (t_max - t_min) * torch.arange(n - 1, -1, -1, dtype=torch.float64) / n))


def linspace_time(n: int, ratio: Callable[[Tensor], Tensor], t_min: float, t_max: float = 1.0) -> Tensor:
    """s = ratio(t) at n times from t_max to t_min, both included ("linspace"), then 0."""
    return _ended(ratio(t_max + _ramp(n) * (t_min - t_max)))


def few(n: int, s_min: float, s_max: float) -> Tensor:
    """The levels at which Euler's method does best on Gaussian data with the spectrum of images, from s_max (`few.cost`), then 0."""
    _ramp(n)
    return _ended(torch.tensor(few_levels(n, s_min, s_max), dtype=torch.float64))


def spaced(path: GaussianPath, n: int, spacing: Spacing, levels: tuple[float, float] | None = None) -> Tensor:
    """Levels of n steps, spaced as a solver wants them, over the range of a path or the part of it between two levels; (n + 1,) float64.

    UserError for levels between which the path has nothing.
    """
    low, high, first, last = path.s_min, path.s_max, path.t_min, path.t_top
    if levels is not None:
        if levels[0] >= high or levels[1] <= low:
            raise UserError(f"levels {levels[0]:g},{levels[1]:g} lie outside those of the model, {low:.3g} to {high:.3g}")
        low, high = max(low, levels[0]), min(high, levels[1])
        first, last = path.t_of_ratio(torch.tensor([low, high], dtype=torch.float64)).tolist()
    match spacing:
        case "karras":
            return karras(n, low, high)
        case "loglinear":
            return log_linear(n, low, high)
        case "few":
            return few(n, low, high)
        case "leading":
            return leading_time(n, path.ratio, first, last)
        case "linspace":
            return linspace_time(n, path.ratio, first, last)
        case "time":  # its last level, at t_max / n, is no lower than the path has, or than asked for
            return uniform_time(n, path.ratio, last) if last / n >= first else linspace_time(n, path.ratio, first, last)


def spacing_named(name: str) -> Spacing:
    """The spacing of that name; UserError with the nearest names where there is none."""
    found = next((known for known in get_args(Spacing) if known == name), None)
    if found is None:
        raise UserError(f"unknown spacing {name!r}: {nearest(name, get_args(Spacing))}")
    spacing: Spacing = found
    return spacing


def _ramp(n: int) -> Tensor:
    """0..1 in n points (n = 1: just 0); UserError for n < 1."""
    if n < 1:
        raise UserError(f"cannot sample in {n} steps: give 1 or more")
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _ended(s: Tensor) -> Tensor:
    return torch.cat([s, s.new_zeros(1)])
