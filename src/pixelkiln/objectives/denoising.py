"""The denoising objective: squared error of eps, x0 or v, weighted by the signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..processes import GaussianPath, Kind, mix, target

__all__ = ["Weighting", "denoising_loss", "halves", "loss_weight", "uncertain"]

Weighting = Literal["uniform", "snr", "min-snr", "soft-min-snr"]


def loss_weight(kind: Kind, weighting: Weighting, snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight of the squared error of the predicted quantity, like snr, for signal-to-noise ratios in [0, inf].

    "uniform": 1. Otherwise a weight w on the error of x0, restated for what is predicted, since
    |eps error|^2 = SNR |x0 error|^2 and |v error|^2 = (SNR + 1) |x0 error|^2: x0 w; eps w / SNR; v w / (SNR + 1), with
    "snr" w = SNR; "min-snr" w = min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556);
    "soft-min-snr" w = SNR gamma / (SNR + gamma) (Crowson et al. 2024, arXiv 2401.11605).
    At SNR = 0 every weight is 1: eps would be 0 / 0, and with weight 0 the first sampling step would never be trained.
    """
    if weighting == "uniform":
        return torch.ones_like(snr)
    cap = {"snr": snr, "min-snr": snr.clamp(max=gamma), "soft-min-snr": gamma / (1 + gamma / snr)}[weighting]
    share = {"snr": torch.ones_like(snr), "min-snr": (gamma / snr).clamp(max=1), "soft-min-snr": gamma / (snr + gamma)}[weighting]
    w = {"x0": cap, "eps": share, "v": share / (1 + 1 / snr)}[kind]  # share = w / SNR, without 0 / 0 or inf / inf
    return torch.where(snr == 0, torch.ones_like(w), w)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    path: GaussianPath,
    kind: Kind = "eps",
    weighting: Weighting = "uniform",
    gamma: float = 5.0,
    sigma_data: float = 0.5,
) -> Tensor:
    """Loss of each sample, (B,) float32: weight(SNR) mean_{C,H,W} (predict(xt, t) - target)^2, xt = alpha x0 + sigma eps.

    x0, eps: (B, C, H, W); t: (B,); predict: xt, t -> (B, C, H, W), the quantity named by `kind`. "uniform" with "eps" is L_simple
    (Ho et al. 2020, arXiv 2006.11239, eq. 14), which is also "snr" with any kind.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)  # (B,) float64
    out = predict(mix(alpha, x0, sigma, eps), t)
    error = out.float() - target(kind, x0, eps, alpha, sigma, sigma_data).float()
    weight = loss_weight(kind, weighting, (alpha / sigma) ** 2, gamma).float()  # (B,)
    return weight * error.square().flatten(1).mean(1)


def uncertain(error: Tensor, u: Tensor) -> Tensor:
    return error * (-u).exp() + u


def halves(each: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Means of the losses (B,) over the cleaner samples (B,) bool and the noisier ones, to be logged as "low_noise" and "high_noise"."""
    low, each = clean.float(), each.detach()
    return {
        "low_noise": (each * low).sum() / low.sum().clamp_min(1),
        "high_noise": (each * (1 - low)).sum() / (1 - low).sum().clamp_min(1),
    }
