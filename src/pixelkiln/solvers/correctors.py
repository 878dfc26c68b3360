"""Predictor-corrector sampling: a step of the reverse SDE, then Langevin dynamics at the new level (Song et al. 2021, arXiv 2011.13456).

Legend: s the level now, r the next one (0 < r < s), D the denoised image, g the score, z standard normal. The corrector's step follows
the SNR rule, eps = 2 a (snr |z| / |g|)^2, with norms of each sample: the paper averages them over the batch, which would make a sample
depend on its neighbors. Samples of few pixels, whose g may vanish, have an eps of at most the variance of a noisy image, 1 + r^2. The last step, to 0, is D: free of noise, and the corrector rests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contract import Callback, Denoise, Noise, draw, fresh, levels, march

__all__ = ["pc_ve", "pc_vp"]


def pc_ve(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None, snr: float = 0.16) -> Tensor:
    """Reverse diffusion and Langevin dynamics of the variance-exploding SDE, 2n - 1 evaluations.

    Algorithm 2: x <- x + (s^2 - r^2) g + sqrt(s^2 - r^2) z, g = (D - x) / s^2; then, at r, algorithm 4 with one step:
    x <- x + eps g + sqrt(2 eps) z. snr 0.16 is theirs for CIFAR-10 (appendix G).
    """
    s = levels(sigmas)

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        r, gap = s[i + 1], s[i] ** 2 - s[i + 1] ** 2
        x = x + gap / s[i] ** 2 * (D - x) + math.sqrt(gap) * draw(noise, s[i], r)
        g = (denoise(x, r).to(x.dtype) - x) / r**2
        return _langevin(x, g, fresh(noise), snr, 1 + r**2)

    return march(denoise, x, s, callback, step)


def pc_vp(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None, snr: float = 0.16) -> Tensor:
    """Reverse diffusion and Langevin dynamics of the variance-preserving SDE, 2n - 1 evaluations, in its coordinates y = alpha x.

    Algorithm 3, with beta = 1 - abar_s / abar_r of this very step: y <- (2 - sqrt(1 - beta)) y + beta g + sqrt(beta) z,
    g = (alpha D - y) / sigma^2; then, at r, algorithm 5 with one step: y <- y + eps g + sqrt(2 eps) z, whose eps has the factor
    a = 1 - beta, beta of the step that comes next.
    """
    s = levels(sigmas)
    abar = [1 / (1 + v**2) for v in s]

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        r, a_s, a_r = s[i + 1], math.sqrt(abar[i]), math.sqrt(abar[i + 1])
        keep = abar[i] / abar[i + 1]  # 1 - beta
        y, beta = a_s * x, 1 - keep
        y = (2 - math.sqrt(keep)) * y + beta * (a_s * D - y) / (1 - abar[i]) + math.sqrt(beta) * draw(noise, s[i], r)
        g = (a_r * denoise(y / a_r, r).to(x.dtype) - y) / (1 - abar[i + 1])
        return _langevin(y, g, fresh(noise), snr, 1.0, abar[i + 1] / abar[i + 2]) / a_r

    return march(denoise, x, s, callback, step)


def _langevin(x: Tensor, g: Tensor, z: Tensor, snr: float, most: float, a: float = 1.0) -> Tensor:
    """x + eps g + sqrt(2 eps) z, eps = min(2 a (snr |z| / |g|)^2, most) for each sample."""
    ratio = _norm(z) / _norm(g).clamp_min(torch.finfo(g.dtype).tiny)
    eps = (2 * a * snr**2 * ratio**2).clamp_max(most)
    return x + eps * g + (2 * eps).sqrt() * z


def _norm(x: Tensor) -> Tensor:
    """The norm of each sample, (B, ...) -> (B, 1, ...)."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
