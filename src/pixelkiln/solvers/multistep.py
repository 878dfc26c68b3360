"""Multistep solvers of the probability-flow ODE: one evaluation a step, and the last ones extrapolated.

Legend: s the level now, r the next one (0 < r < s), D the denoised image, e = (x - D) / s the slope dx/ds, lambda = -log s.
The flow has two exact forms, and in each the integrand is replaced by the polynomial, in some clock c, through its last values:

    x_r = x_s + int_s^r e dv               slopes: Adams-Bashforth ("lms": c = s; "deis": c = t of the linear schedule)
    x_r = (r/s) x_s + r int_s^r D d(1/v)   estimates, the linear part solved exactly ("dpmpp-2m", "dpmpp-3m", "unipc": c = lambda)

The first steps, with fewer values, are of lower order. The last step, to 0, is D (`contract.march`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..processes import linear_path
from .contract import Callback, Denoise, levels, march

__all__ = ["deis", "dpmpp_2m", "dpmpp_3m", "extrapolated", "ipndm", "lms", "unipc"]

Clock = Callable[[np.ndarray], np.ndarray]  # levels -> the variable in which the integrand is a polynomial
LINEAR = linear_path()
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(32)
SHORT = 15  # with fewer steps than this, the last steps of DPM-Solver++ and UniPC are of lower order
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M), second order, n evaluations: exact in the linear part, D extrapolated from the last two.

    With h = log(s / r) and q = h_last / h: x <- (r / s) x + (1 - r / s) ((1 + 1/2q) D - 1/2q D_last)
    (Lu et al. 2022, arXiv 2211.01095, algorithm 2, divided by alpha).
    """
    s, past = levels(sigmas), [x]

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        E = extrapolated(s, i, D, past[0])
        past[0] = D
        return E + s[i + 1] / s[i] * (x - E)

    return march(denoise, x, s, callback, step)


def dpmpp_3m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(3M), third order, n evaluations: the parabola in lambda through the last three D, integrated exactly.

    Lu et al. 2022 (arXiv 2211.01095), eq. 7 to 9 with k = 3: D_s and its two derivatives. Their code and its ports take half of the
    second derivative (phi_3 D2 without the factor 2 that the single-step form has), which is a method of second order.
    """
    s, past = levels(sigmas), list[Tensor]()
    n = len(s) - 1

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        past[:0] = [D]
        return _predicted(s, i, x, past, _order(3, i, n))

    return march(denoise, x, s, callback, step)


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None, order: int = 3) -> Tensor:
    """UniPC with B_2(h) = e^h - 1, predictor of `order` 1 to 3, n evaluations: each D also corrects the step that led to it.

    Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8 in data prediction. Solving their R rho = b gives the weights of the
    polynomial through the nodes, the new one included (`_weights`); where one weight is left they take 1/2 for it: the predictor of
    order 2 is then DPM-Solver++(2M), and the first corrector the trapezoid in D. A corrected step of order p has a local error of
    order p + 2.
    """
    assert 1 <= order <= 3
    s, past = levels(sigmas), list[Tensor]()
    n = len(s) - 1
    before = x  # corrected, at the level s[i - 1]

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        nonlocal before
        if i > 0:
            x = _corrected(s, i, before, [D, *past], _order(order, i - 1, n))
        past[:0] = [D]
        before = x
        return _predicted(s, i, x, past, _order(order, i, n))

    return march(denoise, x, s, callback, step)


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """iPNDM, n evaluations: x <- x + (r - s) (55 e - 59 e_1 + 37 e_2 - 9 e_3) / 24, the weights of equal steps whatever the steps are.

    Zhang and Chen 2023 (arXiv 2204.13902), section 3.2 and appendix (it improves on PNDM, Liu et al. 2022, arXiv 2202.09778, eq. 12, by
    Adams-Bashforth of lower order in the first steps). In these coordinates the DDIM transfer is x + (r - s) e. Fourth order for equal steps in s, second order for any smooth
    spacing; for few steps it is nevertheless among the best.
    """
    s, past = levels(sigmas), list[Tensor]()

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        past[:0] = [(x - D) / s[i]]
        del past[4:]
        return x + (s[i + 1] - s[i]) * _sum(ADAMS[len(past) - 1], past)

    return march(denoise, x, s, callback, step)


def _adams(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None, clock: Clock) -> Tensor:
    """Adams-Bashforth in slopes, up to four of them, for unequal steps: x <- x + sum_j e_j int_s^r L_j(c(v)) dv."""
    s, past = levels(sigmas), list[Tensor]()

    def step(i: int, x: Tensor, D: Tensor) -> Tensor:
        past[:0] = [(x - D) / s[i]]
        del past[4:]
        nodes = s[i::-1][: len(past)]
        return x + _sum(_weights(nodes, s[i], s[i + 1], clock, lambda v: v), past)

    return march(denoise, x, s, callback, step)


def _linear_time(s: np.ndarray) -> np.ndarray:
    return LINEAR.t_of_ratio(torch.from_numpy(s)).numpy()


lms = partial(_adams, clock=lambda s: s)
"""Linear multistep, fourth order, n evaluations: the cubic in s through the last four slopes. The same as DEIS with rho-AB."""

deis = partial(_adams, clock=_linear_time)
"""DEIS with tAB3, fourth order, n evaluations: the cubic in the time of the linear schedule through the last four slopes.

Zhang and Chen 2023 (arXiv 2204.13902), eq. 14 and 15; their t is that of the network's own schedule, here always the linear one,
t(s) = `processes.linear_path`, which makes a cubic of slopes on any path.
"""


def extrapolated(s: Sequence[float], i: int, D: Tensor, last: Tensor) -> Tensor:
    """D at the middle of the step in lambda: (1 + 1/2q) D - 1/2q D_last, q = h_last / h; D itself in the first step."""
    if i == 0:
        return D
    return D + (D - last) * (math.log(s[i] / s[i + 1]) / math.log(s[i - 1] / s[i]) / 2)


def _order(most: int, i: int, n: int) -> int:
    """Of step i of n: what the past allows, and lower at the end of a short way."""
    return min(most, i + 1, n - i if n < SHORT else most)


def _predicted(s: Sequence[float], i: int, x: Tensor, past: Sequence[Tensor], order: int) -> Tensor:
    """x at s[i + 1] from the last D, newest first, at s[i], s[i - 1], ..."""
    if order == 2:
        E = extrapolated(s, i, past[0], past[1])
        return E + s[i + 1] / s[i] * (x - E)
    return _data_step(x, s[i], s[i + 1], s[i::-1][:order], past)


def _corrected(s: Sequence[float], i: int, before: Tensor, past: Sequence[Tensor], order: int) -> Tensor:
    """x at s[i] once more, from x at s[i - 1] and the D at s[i], s[i - 1], ..., newest first."""
    if order == 1:
        E = (past[0] + past[1]) / 2
        return E + s[i] / s[i - 1] * (before - E)
    return _data_step(before, s[i - 1], s[i], s[i::-1][: order + 1], past)


def _data_step(x: Tensor, s: float, r: float, nodes: Sequence[float], past: Sequence[Tensor]) -> Tensor:
    """(r / s) x + sum_j D_j r int_s^r L_j(log v) d(1/v)."""
    return r / s * x + _sum(_weights(nodes, s, r, np.log, lambda v: -r / v), past)


def _weights(nodes: Sequence[float], s: float, r: float, clock: Clock, density: Clock) -> list[float]:
    """int_s^r L_j(clock(v)) density(v) d(log v) for the Lagrange polynomials through the nodes, by 32 points of Gauss and Legendre."""
    a, b = math.log(s), math.log(r)
    v = np.exp((a + b) / 2 + (b - a) / 2 * POINTS)
    w = (b - a) / 2 * WEIGHTS * density(v)
    c, at = clock(v), clock(np.array(nodes))
    return [float(w @ math.prod(((c - m) / (k - m) for m in at if m != k), start=np.ones_like(c))) for k in at]


def _sum(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    total = weights[0] * terms[0]
    for w, term in zip(weights[1:], terms[1:], strict=False):
        total = total + w * term
    return total
