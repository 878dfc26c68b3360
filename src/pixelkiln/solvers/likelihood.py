"""Log-likelihood along the probability-flow ODE of any denoiser (Song et al. 2021, arXiv 2011.13456, section 4.3 and appendix D.2).

In variance-exploding coordinates the flow is dx/ds = (x - D(x, s)) / s, that is dx/du = x - D in u = log s, and along it

    d log p / du = -div(x - D) = -(d - tr dD/dx),   so   log p_{s_min}(x) = log N(x(s_max); 0, std^2 I) + int_{log s_min}^{log s_max} (d - tr dD/dx) du,

d being the number of dimensions. The trace is estimated with probes e of independent signs, tr J = E[e^T J e] (Hutchinson 1990): one
gradient a probe. What it is a density of: the model's images with noise of level s_min, which is where sampling ends (before its last, exact
step); x is to be dequantized uniformly, so that E log p(x + u) + d log(bin) is at most the log-probability of the 8-bit image (Theis et
al. 2016, arXiv 1511.01844) under the model that rounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contract import Denoise, state

__all__ = ["ode_log_prob", "signs"]


def signs(num: int, shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    """num probes of independent +1 and -1, (num, *shape) float32: the probes of least variance among those with independent entries."""
    return 2.0 * torch.randint(0, 2, (num, *shape), generator=gen) - 1


def ode_log_prob(denoise: Denoise, x: Tensor, s_min: float, s_max: float, *, std: float, steps: int, probes: Tensor) -> Tensor:
    """log p_{s_min}(x) in nats, (B,) float64, by the classical Runge-Kutta method (order 4) with `steps` equal steps in log s: 4 steps evaluations.

    x (B, ...): images, dequantized. std: standard deviation of p at s_max (variance-preserving: sqrt(1 + s_max^2); exploding: s_max).
    probes (K, B, ...): the same along the whole path, so that the integrand is smooth; each costs one backward pass a step's stage, and
    the estimate is unbiased for every K >= 1. With the d unit vectors times sqrt(d) it is exact. Gradients are taken inside, whatever
    the caller's mode but inference mode; the parameters get none.
    """
    d = x[0].numel()
    u, h = math.log(s_min), math.log(s_max / s_min) / steps
    x = state(x)
    gained = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for _ in range(steps):
        k1, g1 = _field(denoise, x, u, probes)
        k2, g2 = _field(denoise, x + h / 2 * k1, u + h / 2, probes)
        k3, g3 = _field(denoise, x + h / 2 * k2, u + h / 2, probes)
        k4, g4 = _field(denoise, x + h * k3, u + h, probes)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained += h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
        u += h
    z = x.double().flatten(1) / std
    return gained - 0.5 * z.square().sum(1) - d * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _field(denoise: Denoise, x: Tensor, u: float, probes: Tensor) -> tuple[Tensor, Tensor]:
    """x - D (B, ...) and its divergence (B,) float64 by the probes, at the level e^u."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        D = denoise(x, math.exp(u)).to(x.dtype)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for k, e in enumerate(probes):
            e = e.to(x)
            (back,) = torch.autograd.grad(D, x, e, retain_graph=k + 1 < len(probes))
            trace += (back * e).double().flatten(1).sum(1)
    field = (x - D).detach()
    return field, x[0].numel() - trace / len(probes)
