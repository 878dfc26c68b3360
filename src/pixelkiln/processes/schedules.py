"""The Gaussian paths of the literature in continuous time, each with its exact inverse, in float64; `PATHS` has them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from .gaussian import T_MIN, GaussianPath, keeps_data, keeps_variance, straight, sub_variance

__all__ = [
    "PATHS",
    "PathName",
    "cosine_path",
    "edm_path",
    "flow_path",
    "laplace_path",
    "linear_path",
    "sigmoid_path",
    "subvp_path",
    "ve_path",
    "zero_snr",
]

PathName = Literal["linear", "cosine", "sigmoid", "laplace", "linear-zero-snr", "subvp", "ve", "edm", "flow"]
BETA_0, BETA_1 = 0.1, 20.0  # 1000 times Ho's 1e-4 and 0.02
OFFSET = 0.008  # the small s of Nichol and Dhariwal, eq. 17
LAMBDA_MIN = -5.1
THETA_0 = math.pi / 2 * OFFSET / (1 + OFFSET)


def _integral(t: Tensor) -> Tensor:
    """The integral of beta from 0 to t for beta(t) = BETA_0 + (BETA_1 - BETA_0) t."""
    return BETA_0 * t + (BETA_1 - BETA_0) / 2 * t**2


def _time_of_integral(integral: Tensor) -> Tensor:
    return 2 * integral / (BETA_0 + (BETA_0**2 + 2 * (BETA_1 - BETA_0) * integral).sqrt())


def _linear_level(t: Tensor) -> Tensor:
    return torch.expm1(_integral(t)).sqrt()


def _linear_time(s: Tensor) -> Tensor:
    return _time_of_integral(torch.log1p(s**2))


def linear_path() -> GaussianPath:
    """The linear schedule in continuous time: beta(t) = 0.1 + 19.9 t, alpha(t)^2 = exp(-int_0^t beta) = exp(-0.1 t - 9.95 t^2).

    It is the limit of beta_1..beta_T = 1e-4..0.02 at T = 1000 (Ho et al. 2020, arXiv 2006.11239, section 4), as Song et al. 2021
    (arXiv 2011.13456, eq. 33) write it. s runs from 0.0105 at t_min = 1e-3, Ho's first step, to 152 at t = 1.
    """
    return GaussianPath("linear", _linear_level, _linear_time)


def _subvp_level(t: Tensor) -> Tensor:
    return 2 * torch.sinh(_integral(t) / 2)


def _subvp_time(s: Tensor) -> Tensor:
    return _time_of_integral(2 * torch.asinh(s / 2))


def subvp_path() -> GaussianPath:
    """Song et al.'s sub-VP path: the alpha of `linear_path`, with sigma = 1 - alpha^2 in place of (1 - alpha^2)^1/2.

    Song et al. 2021 (arXiv 2011.13456), section 3.4: s = 1 / alpha - alpha = 2 sinh(int_0^t beta / 2). s runs from 1.1e-4 at t_min = 1e-3
    (their sampling stops there too) to 152.
    """
    return GaussianPath("subvp", _subvp_level, _subvp_time, scale=sub_variance)


def _cosine_level(t: Tensor) -> Tensor:
    step = math.pi / 2 / (1 + OFFSET) * t  # theta(t) - theta(0)
    return (step.sin() * (step + 2 * THETA_0).sin()).sqrt() / (step + THETA_0).cos()


def _cosine_time(s: Tensor) -> Tensor:
    theta = torch.atan2((s**2 + math.sin(THETA_0) ** 2).sqrt(), torch.full_like(s, math.cos(THETA_0)))
    return (theta - THETA_0) * (1 + OFFSET) / (math.pi / 2)


def cosine_path() -> GaussianPath:
    """The cosine schedule: alpha(t)^2 = f(t) / f(0), f(t) = cos^2(theta), theta = pi/2 (t + 0.008) / (1 + 0.008).

    Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17. With theta_0 = theta(0), sigma^2 cos^2 theta_0 = sin^2 theta -
    sin^2 theta_0 = sin(theta - theta_0) sin(theta + theta_0), which does not cancel at small t. At t = 1 alpha is 0: no eps
    prediction can be inverted and lambda = -inf, so (where they clip beta at 0.999) time ends at t_max, where lambda = -5.1,
    s = e^5.1 = 164: about the linear schedule's end, and 0.004 % of the variance is still data. s_min = 0.0064.
    """
    t_max = _end(_cosine_time)
    return GaussianPath("cosine", _cosine_level, _cosine_time, t_max=t_max, t_min=T_MIN * t_max)


def sigmoid_path(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> GaussianPath:
    """Jabri et al.'s sigmoid schedule, of alpha^2 and not of beta: (g(end) - g(z)) / (g(end) - g(start)), z = start + (end - start) t,
    g(z) = 1 / (1 + exp(-z / tau)).

    Source: Jabri et al. 2022 (arXiv 2212.11972), and Chen 2023 (arXiv 2301.10972), section 2. Differences of sigmoids are ratios of hyperbolic
    functions, so that nothing cancels at either end: with w = (z - start) / tau of W = (end - start) / tau,
    s^2 = sinh(w / 2) / (k sinh((W - w) / 2)), k = cosh(start / 2 tau) / cosh(end / 2 tau), and
    w = log(1 + q e^(W/2)) - log(1 + q e^(-W/2)) for q = k s^2. At t = 1 alpha is 0: time ends at lambda = -5.1, as for the cosine.
    """
    assert start < end and tau > 0
    width, k = (end - start) / tau, math.cosh(start / (2 * tau)) / math.cosh(end / (2 * tau))

    def level(t: Tensor) -> Tensor:
        return (torch.sinh(width / 2 * t) / (k * torch.sinh(width / 2 * (1 - t)))).sqrt()

    def time(s: Tensor) -> Tensor:
        q = k * s**2
        return (torch.log1p(q * math.exp(width / 2)) - torch.log1p(q * math.exp(-width / 2))) / width

    t_max = _end(time)
    return GaussianPath("sigmoid", level, time, t_max=t_max, t_min=T_MIN * t_max)


def laplace_path(mu: float = 0.0, b: float = 0.5) -> GaussianPath:
    """The Laplace schedule: uniform times give log SNR the density exp(-|l - mu| / b) / 2b, which spends the training in the middle.

    Hang et al. 2024 (arXiv 2407.03297): log SNR = mu - b sgn(1/2 - t) log(1 - 2 |t - 1/2|), so s = e^(-mu/2) (2t)^(b/2) in
    the first half and e^(-mu/2) (2 (1 - t))^(-b/2) in the second. alpha^2 = SNR / (1 + SNR) (its root, as a well-known library has
    it, moves log SNR by 0.8 to 1). Time runs where |lambda| <= 5.1. With b = 0.5 that is within 7e-10 of either end: such times
    need float64, and a network needs to be told log s, not t.
    """
    assert b > 0
    middle = math.exp(-mu / 2)

    def level(t: Tensor) -> Tensor:
        return middle * torch.where(t < 0.5, (2 * t) ** (b / 2), (2 * (1 - t)) ** (-b / 2))

    def time(s: Tensor) -> Tensor:
        q = (s / middle) ** (2 / b)
        return torch.where(q < 1, q / 2, 1 - 1 / (2 * q))

    low = float(time(torch.tensor(LAMBDA_MIN, dtype=torch.float64).exp()))
    return GaussianPath("laplace", level, time, t_max=_end(time), t_min=low)


def _geometric(name: str, s_min: float, s_max: float) -> GaussianPath:
    """s(t) = s_min (s_max / s_min)^t, alpha = 1: time is affine in log s, for all real t."""
    assert 0 < s_min < s_max
    low, width = math.log(s_min), math.log(s_max / s_min)
    return GaussianPath(
        name, lambda t: torch.exp(low + width * t), lambda s: (s.log() - low) / width, t_min=0.0, scale=keeps_data
    )


def ve_path(s_min: float = 0.02, s_max: float = 100.0) -> GaussianPath:
    """Song et al.'s variance-exploding path, geometric: s(t) = s_min (s_max / s_min)^t, alpha = 1.

    Source: Song et al. 2021 (arXiv 2011.13456), appendix C. Their 0.01 and 50 are for images in [0, 1]; these are
    for [-1, 1], as in Karras et al. 2022, table 1. s_max should be about the largest distance between two training images (Song
    and Ermon 2020, arXiv 2006.09011, technique 1). There is no t with s = 0: t(0) = -inf.
    """
    return _geometric("ve", s_min, s_max)


def edm_path(s_min: float = 0.002, s_max: float = 80.0) -> GaussianPath:
    """Karras et al.'s path: sigma = s, alpha = 1 (arXiv 2206.00364, section 3), and time affine in log s, as their c_noise = ln(s) / 4.

    So a log-normal density of s is a normal one of t. Sampling takes their own spacing, not this time: `karras` in the solvers.
    """
    return _geometric("edm", s_min, s_max)


def flow_path(shift: float = 1.0) -> GaussianPath:
    """The straight path of rectified flow, xt = (1 - t') x0 + t' eps, s = t' / (1 - t') = shift t / (1 - t), up to pure noise at t = 1.

    Liu et al. 2022 (arXiv 2209.03003), Lipman et al. 2023 (arXiv 2210.02747). shift: Esser et al. 2024 (arXiv 2403.03206), section 5.3.2,
    t' = shift t / (1 + (shift - 1) t), which is s' = shift s: sqrt(m / n) keeps the uncertainty of an n-pixel picture at m pixels.
    """
    assert shift > 0
    return GaussianPath("flow", lambda t: shift * t / (1 - t), lambda s: 1 / (1 + shift / s), scale=straight)


def zero_snr(path: GaussianPath) -> GaussianPath:
    """A path that keeps the variance, its alpha shifted and scaled so that it ends in pure noise: (alpha - alpha_T) / (1 - alpha_T).

    Lin et al. 2024 (arXiv 2305.08891), algorithm 1, with alpha_T at t_max; they keep the value at the first of T steps, here it is that
    at t = 0. 1 - alpha = 2 sin^2(atan(s) / 2), so that nothing cancels at small t. Predict v, velocity or F on it: eps cannot be
    inverted at its end.
    """
    assert path.scale is keeps_variance and path.s_max < 1e4
    last = float(path.alpha(torch.tensor(path.t_max, dtype=torch.float64)))

    def level(t: Tensor) -> Tensor:
        short = 2 * (torch.atan(path.level(t)) / 2).sin() ** 2 / (1 - last)  # 1 - the new alpha
        alpha = torch.where(t >= path.t_max, torch.zeros_like(t), (keeps_variance(path.level(t)) - last) / (1 - last))
        return (short * (1 + alpha)).sqrt() / alpha

    def time(s: Tensor) -> Tensor:
        short = (1 - last) * 2 * (torch.atan(s) / 2).sin() ** 2  # 1 - the old alpha
        return path.time((short * (2 - short)).sqrt() / (last + (1 - last) * keeps_variance(s)))

    return GaussianPath(f"{path.name}-zero-snr", level, time, t_max=path.t_max, t_min=path.t_min)


def _end(time: Callable[[Tensor], Tensor]) -> float:
    """The time at which lambda = LAMBDA_MIN."""
    return float(time(torch.tensor(-LAMBDA_MIN, dtype=torch.float64).exp()))


PATHS: Mapping[PathName, Callable[[], GaussianPath]] = {
    "linear": linear_path,
    "cosine": cosine_path,
    "sigmoid": sigmoid_path,
    "laplace": laplace_path,
    "linear-zero-snr": lambda: zero_snr(linear_path()),
    "subvp": subvp_path,
    "ve": ve_path,
    "edm": edm_path,
    "flow": flow_path,
}
