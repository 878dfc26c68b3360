"""Which times a batch is trained at: the quantile functions of a few densities, fed with stratified uniform numbers.

A density of times and a weight of the loss multiply: E_{t ~ p}[w(t) L(t)] = int p w L dt. So a log-normal density together with a
weight that was meant for uniform times counts the middle twice. Nor is "uniform" neutral: it is uniform in the path's own time.

Times are float64. Near t = 0 float32 would do, near t = 1 it would not: its steps there are 6e-8, and on a path that ends in pure noise
s is about 1 / (1 - t), off by 0.06 % at s = 1e4 (on the Laplace path the last ones round to t = 1, s = inf). The level and the
coefficients are derived from t in float64; a network may be fed any rounding of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .gaussian import T_MIN, GaussianPath

__all__ = ["Density", "draw_times", "quantile", "strata", "times"]


@dataclass(frozen=True)
class Density:
    """A density of times within [t_min, t_max] of a path; `mean` and `std` are those of the normal law behind it.

    "uniform" in t; "log-normal": log s ~ N(mean, std^2) (Karras et al. 2022, arXiv 2206.00364, section 5: -1.2 and 1.2; EDM2, arXiv
    2312.02696: -0.4 and 1.0); "logit-normal": log(t / (1 - t)) ~ N(mean, std^2) (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """

    name: Literal["uniform", "log-normal", "logit-normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0


def strata(n: int, device: torch.device | str = "cpu") -> Tensor:
    """(i + u_i) / n, i = 0..n-1, u_i ~ U[0, 1), in random order, (n,) float64: each is uniform, and one falls in each of n equal strata.

    That lowers the variance of the loss (Kingma et al. 2021, arXiv 2107.00630, have the form with one u); in order, the first images
    of a batch would always get the least noise. From torch's global generator.
    """
    order = torch.randperm(n, device=device)
    return (order.double() + torch.rand(n, device=device, dtype=torch.float64)) / n


def quantile(q: Tensor, path: GaussianPath, density: Density) -> Tensor:
    """The time below which a share q of the density lies, like q, float64, for q in [0, 1]; cut off outside [t_min, t_max]."""
    if density.name == "uniform":
        return path.t_min + (path.t_max - path.t_min) * q.double()
    assert density.std > 0
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    raw = path.ratio(ends).log() if density.name == "log-normal" else torch.logit(ends)
    low, high = (float(v) for v in torch.special.ndtr((raw - density.mean) / density.std))
    x = density.mean + density.std * torch.special.ndtri(low + (high - low) * q.double())
    t = path.t_of_ratio(x.exp()) if density.name == "log-normal" else torch.sigmoid(x)
    return t.clamp(path.t_min, path.t_max)  # by rounding only


def draw_times(n: int, path: GaussianPath, density: Density = Density(), device: torch.device | str = "cpu") -> Tensor:
    """n stratified times of a density in random order, (n,) float64, from torch's global generator."""
    return quantile(strata(n, device), path, density)


def times(n: int, t_max: float, t_min: float = T_MIN, device: torch.device | str = "cpu") -> Tensor:
    """Stratified uniform times on [t_min, t_max), (n,) float32, in random order: for paths with t_max clear of pure noise."""
    return (t_min + (t_max - t_min) * strata(n, device)).float()
