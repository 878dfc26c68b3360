"""The variational bound against closed forms on Gaussian data, where the denoiser is exact.

Data N(MU, VAR), one dimension a pixel. Expectations over x0 and the noise are exact: all terms are quadratic in both, so that Gauss-Hermite
quadrature with three nodes integrates them. The closed forms are derived in the variance-preserving chain of Ho et al. 2020
(arXiv 2006.11239), from its table of betas, eq. 6 to 8, in NumPy.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pixelkiln.objectives.bound import (
    Bound,
    chosen_steps,
    continuous_rate,
    log_ranges,
    prior_nats,
    step_nats,
    variational_bound,
)
from pixelkiln.objectives.likelihoods import discretized_gaussian_log_prob, gaussian_log_prob
from pixelkiln.processes import GaussianPath, cosine_path, linear_path

MU = np.array([0.3, -0.7, 0.1])
VAR = np.array([0.04, 0.5, 0.9])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
X0 = torch.tensor(MU + np.sqrt(VAR) * np.repeat(NODES, 3)[:, None]).reshape(9, 1, 1, 3)  # (9, 1, 1, 3): every pair of a data node
EPS = torch.tensor(np.tile(NODES, 3)[:, None] * np.ones(3)).reshape(9, 1, 1, 3)  # and a noise node
PAIRS = torch.tensor(np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2)
PATHS = pytest.mark.parametrize("path", [linear_path(), cosine_path()], ids=lambda p: p.name)
ENTROPY = 0.5 * np.sum(np.log(2 * np.pi * np.e * VAR))


def chain(path: GaussianPath, T: int) -> Tensor:
    """Levels of T equal steps in time, from 0."""
    return path.ratio(path.t_max * torch.arange(T + 1, dtype=torch.float64) / T)


def exact(x: Tensor, s: Tensor) -> Tensor:
    """E[x0 | x]."""
    mu, var, s2 = torch.tensor(MU), torch.tensor(VAR), s.reshape(-1, 1, 1, 1) ** 2
    return mu + var / (var + s2) * (x - mu)


def bound(levels: Tensor, share: Tensor) -> Bound:
    """All steps with a share (T, 3), Gaussian decoder, at the quadrature's nodes."""
    T = len(levels) - 1

    def moments(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        i = torch.searchsorted(levels, s)
        return exact(x, s), share[i - 1].reshape(-1, 1, 1, 3)

    steps = torch.arange(1, T + 1).expand(9, T), torch.ones(9, T, dtype=torch.float64)
    return variational_bound(moments, X0, levels, steps, lambda: EPS, math.sqrt(1 + float(levels[-1]) ** 2), gaussian_log_prob)


def table(levels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """abar, abar of the step before, beta, beta_tilde (beta_tilde of step 2 for step 1) of the variance-preserving chain."""
    abar = 1 / (1 + levels.numpy()[1:] ** 2)
    before = np.concatenate([[1.0], abar[:-1]])
    beta = 1 - abar / before
    tilde = beta * (1 - before) / (1 - abar)
    tilde[0] = tilde[1]
    return abar, before, beta, tilde


@PATHS
@pytest.mark.parametrize("T", [2, 7, 100])
def test_ranges_are_the_logs_of_beta_and_beta_tilde(path: GaussianPath, T: int):
    levels = chain(path, T)
    _, before, beta, tilde = table(levels)
    small, large = log_ranges(levels)
    np.testing.assert_allclose(small.numpy(), np.log(tilde) - np.log(before), rtol=0, atol=1e-9)
    np.testing.assert_allclose(large.numpy(), np.log(beta) - np.log(before), rtol=0, atol=1e-9)
    assert torch.isfinite(small).all()


def test_a_respaced_chain_has_betas_of_its_own():
    """beta_i = 1 - abar_i / abar_{i-1} over the steps that are kept (guided diffusion's rule), not the betas of the long chain."""
    levels = chain(cosine_path(), 1000)
    abar = 1 / (1 + levels.numpy() ** 2)
    kept = np.arange(0, 1001, 40)
    _, large = log_ranges(levels[kept])
    np.testing.assert_allclose(np.exp(large.numpy()) * abar[kept[:-1]], 1 - abar[kept[1:]] / abar[kept[:-1]], rtol=1e-9)
    for n in range(1, 61):
        small, large = log_ranges(chain(cosine_path(), n))
        assert torch.isfinite(small).all()
        assert (small[1:] < large[1:]).all()


@PATHS
@pytest.mark.parametrize("kind", ["small", "large", "between"])
def test_every_term_equals_the_closed_form_of_the_linear_gaussian_model(path: GaussianPath, kind: str):
    T = 10
    levels = chain(path, T)
    abar, before, beta, tilde = (v[:, None] for v in table(levels))  # (T, 1)
    f = {"small": np.zeros((T, 3)), "large": np.ones((T, 3)), "between": np.linspace(-0.2, 1.1, 3 * T).reshape(T, 3)}[kind]
    var = np.exp(f * np.log(beta) + (1 - f) * np.log(tilde))
    spread = VAR * (1 - abar) / (abar * VAR + 1 - abar)  # E (x0 - E[x0 | xt])^2
    c0 = np.sqrt(before) * beta / (1 - abar)  # of x0 in the mean of eq. 7
    true = beta * (1 - before) / (1 - abar)
    with np.errstate(divide="ignore"):
        want = 0.5 * (np.log(var / true) + true / var - 1 + c0**2 * spread / var)
    want[0] = 0.5 * (np.log(2 * np.pi * var[0]) + spread[0] / var[0])  # -log N(x0; D, var)
    found = bound(levels, torch.tensor(f))
    np.testing.assert_allclose((PAIRS[:, None] * found.terms).sum(0).numpy(), want.sum(1), rtol=1e-8, atol=1e-10)
    a = abar[-1]
    last = 0.5 * (a * (VAR + MU**2) + (1 - a) - 1 - np.log(1 - a))  # KL(N(sqrt(a) x0, 1 - a) || N(0, 1))
    assert float((PAIRS * found.prior).sum()) == pytest.approx(last.sum(), rel=1e-8)
    assert float((PAIRS * found.nats).sum()) == pytest.approx(last.sum() + want.sum(), rel=1e-9)


@PATHS
@pytest.mark.parametrize("T", [1, 2, 5, 50])
def test_with_the_exact_variance_the_bound_is_the_likelihood_whatever_the_number_of_steps(path: GaussianPath, T: int):
    """The share that gives var[x_r | x_s] exactly: what is left of the gap is KL(N(MU, VAR + s^2) || N(0, 1 + s^2)) at the chain's end."""
    levels = chain(path, T)
    small, large = (v[:, None] for v in log_ranges(levels))
    r2, s2 = levels[:-1, None] ** 2, levels[1:, None] ** 2
    var = torch.tensor(VAR)
    true = ((s2 - r2) * (var + r2) / (var + s2)).log()
    if T == 1:  # both ends of the range are beta: no share gives another variance
        true = large.expand(1, 3)
    share = torch.where(large == small, 0.0, (true - small) / (large - small))
    found = float((PAIRS * bound(levels, share).nats).sum())
    end = float(s2[-1])
    gap = 0.5 * np.sum((VAR + end + MU**2) / (1 + end) - 1 - np.log((VAR + end) / (1 + end)))
    if T == 1:
        one = VAR * end / (VAR + end)
        gap += 0.5 * np.sum(np.log(end / (1 + end) / one) + one / (end / (1 + end)) - 1)
    assert found == pytest.approx(ENTROPY + gap, rel=1e-9)


@PATHS
@pytest.mark.parametrize("f", [0.0, 1.0])
def test_as_the_steps_grow_the_bound_falls_to_the_likelihood(path: GaussianPath, f: float):
    """Step 1, whose variance is free, gets its exact one; the rest of the gap is then of the order 1 / T for either fixed variance."""
    gaps = []
    for T in (25, 100, 400, 1600):
        levels = chain(path, T)
        small, large = log_ranges(levels)
        share = torch.full((T, 3), f, dtype=torch.float64)
        s2 = levels[1] ** 2
        share[0] = ((torch.tensor(VAR) * s2 / (torch.tensor(VAR) + s2)).log() - small[0]) / (large[0] - small[0])
        gaps.append(float((PAIRS * bound(levels, share).nats).sum()) - ENTROPY)
    assert all(a > b > 0 for a, b in zip(gaps, gaps[1:], strict=False)), gaps
    assert gaps[-1] < 0.02 * gaps[0] + 2e-4
