"""The denoising objective: squared error of what is predicted, weighted by a function of the signal-to-noise ratio.

A weighting is a weight w(SNR) of the squared error of x0. For one and the same prediction the squared errors of all kinds are multiples
of each other, |error|^2 = m |x0 error|^2, m = (det / sigma)^2 with the det of `processes.convert`, so on the error of any kind the
weight is w / m:

    kind      m                                 weighting       w
    x0        1                                 snr             SNR: L_simple, uniform on eps
    eps       SNR                               min-snr         min(SNR, gamma), gamma = 5        Hang et al. 2023 (arXiv 2303.09556)
    v         (alpha^2 + sigma^2)^2 / sigma^2   soft-min-snr    SNR gamma / (SNR + gamma)         Crowson et al. 2024 (arXiv 2401.11605)
    velocity  (SNR^1/2 + 1)^2                   p2              SNR / (1 + SNR)^gamma, gamma = 1  Choi et al. 2022 (arXiv 2204.00227)
    score     SNR / sigma^2                     edm             SNR + 1 / sd^2: uniform on F      Karras et al. 2022 (arXiv 2206.00364)
    F         SNR + 1 / sd^2                    uniform         m: weight 1 on what is predicted

On a path that keeps the variance m is SNR + 1 for v, and F is -v where sd = 1. A weight multiplies the density of the times that
are drawn ([densities](../processes/densities.py)): the two together are the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..processes import SIGMA_DATA, GaussianPath, Kind, mix, target

__all__ = ["Weighting", "denoising_loss", "halves", "loss_weight"]

Weighting = Literal["uniform", "snr", "min-snr", "soft-min-snr", "p2", "edm"]
GAMMA: Mapping[Weighting, float] = {"min-snr": 5.0, "soft-min-snr": 5.0, "p2": 1.0}
LEAST, MOST = 1e-30, 1e30  # SNR 0 and inf are taken as these: every quotient is then finite, and has its limit's value
VANISHING, EXPLODING = 1e-9, 1e9


def loss_weight(
    kind: Kind, weighting: Weighting, snr: Tensor, gamma: float | None = None, sigma_data: float = SIGMA_DATA, sigma: Tensor | None = None
) -> Tensor:
    """Weight w / m of the squared error of the predicted quantity, like snr, for signal-to-noise ratios in [0, inf].

    gamma: None is the weighting's own. sigma, like snr: of the path, for v and score; None is that of a path that keeps the variance,
    (1 + SNR)^-1/2. At SNR = 0 a weight that would vanish or explode is 1: eps would be 0 / 0, and with weight 0 (v) the first
    sampling step would never be trained.
    """
    if weighting == "uniform":
        return torch.ones_like(snr)
    g, r = GAMMA.get(weighting, 1.0) if gamma is None else gamma, snr.clamp(LEAST, MOST)
    if weighting == "snr":
        w = r
    elif weighting == "min-snr":
        w = r.clamp(max=g)
    elif weighting == "soft-min-snr":
        w = r * (g / (r + g))
    elif weighting == "p2":
        w = r / (1 + r) ** g
    else:
        w = r + sigma_data**-2
    weight = w / _multiple(kind, r, sigma_data, 1 / (1 + r) if sigma is None else sigma**2)
    lost = (snr == 0) & ((weight < VANISHING) | (weight > EXPLODING))
    return torch.where(lost, torch.ones_like(weight), weight)


def _multiple(kind: Kind, snr: Tensor, sigma_data: float, variance: Tensor) -> Tensor:
    """m, the squared error of a kind in units of x0's; variance: sigma^2."""
    if kind == "x0":
        return torch.ones_like(snr)
    if kind == "eps":
        return snr
    if kind == "v":
        return variance * (1 + snr) ** 2
    if kind == "velocity":
        return (1 + snr.sqrt()) ** 2
    return snr / variance if kind == "score" else snr + sigma_data**-2


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    path: GaussianPath,
    kind: Kind = "eps",
    weighting: Weighting = "uniform",
    gamma: float | None = None,
    sigma_data: float = SIGMA_DATA,
) -> Tensor:
    """Loss of each sample, (B,) float32: weight(SNR) mean_{C,H,W} (predict(xt, t) - target)^2, xt = alpha x0 + sigma eps.

    x0, eps: (B, C, H, W); t: (B,), float64 where the path ends in pure noise; predict: xt, t -> (B, C, H, W), the quantity named by
    `kind`. "uniform" with "eps" is L_simple (Ho et al. 2020, arXiv 2006.11239, eq. 14), which is also "snr" with any kind.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)  # (B,) float64
    out = predict(mix(alpha, x0, sigma, eps), t)
    error = out.float() - target(kind, x0, eps, alpha, sigma, sigma_data).float()
    weight = loss_weight(kind, weighting, path.snr(t), gamma, sigma_data, sigma).float()  # (B,)
    return weight * error.square().flatten(1).mean(1)


def halves(each: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Means of the losses (B,) over the cleaner samples (B,) bool and the noisier ones, to be logged as "low_noise" and "high_noise"."""
    low, each = clean.float(), each.detach()
    return {
        "low_noise": (each * low).sum() / low.sum().clamp_min(1),
        "high_noise": (each * (1 - low)).sum() / (1 - low).sum().clamp_min(1),
    }
