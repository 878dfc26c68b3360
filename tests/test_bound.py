"""The variational bound against closed forms on Gaussian data, where the denoiser is exact.

Data N(MU, VAR), one dimension a pixel. Expectations over x0 and the noise are exact: all terms are quadratic in both, so that Gauss-Hermite
quadrature with three nodes integrates them. The closed forms are derived in the variance-preserving chain of Ho et al. 2020
(arXiv 2006.11239), from its table of betas, eq. 6 to 8, in NumPy.
"""

from __future__ import annotations

import itertools
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
def test_as_the_steps_grow_the_bound_falls_to_the_likelihood(path: GaussianPath):
    """With the variance beta and, in step 1, the exact one. With beta_tilde it does not."""
    gaps: dict[float, list[float]] = {0.0: [], 1.0: []}
    for f, found in gaps.items():
        for T in (25, 100, 400, 1600):
            levels = chain(path, T)
            small, large = log_ranges(levels)
            share = torch.full((T, 3), f, dtype=torch.float64)
            s2 = levels[1] ** 2
            share[0] = ((torch.tensor(VAR) * s2 / (torch.tensor(VAR) + s2)).log() - small[0]) / (large[0] - small[0])
            found.append(float((PAIRS * bound(levels, share).nats).sum()) - ENTROPY)
        assert all(gap > 0 for gap in found), found
        assert f == 0 or all(a > b for a, b in itertools.pairwise(found)), found
    assert gaps[1.0][-1] < 0.03 * gaps[1.0][0]
    assert gaps[0.0][-1] > 20 * gaps[1.0][-1]


@PATHS
def test_with_beta_tilde_a_gap_of_half_of_eulers_constant_per_dimension_remains(path: GaussianPath):
    """Near the data s_i^2 ~ i, so the exact variance is i / (i - 1) times beta_tilde for every T: sum_i KL -> sum_k (1/k - log(1 + 1/k)) / 2."""
    levels = chain(path, 200_000)
    r2, s2 = levels[1:-1] ** 2, levels[2:] ** 2
    gaps = []
    for log_var in log_ranges(levels):
        d = ((s2 - r2) * (0.5 + r2) / (0.5 + s2)).log() - log_var[1:]  # data of variance 1/2
        gaps.append(float(0.5 * (torch.expm1(d) - d).sum()))
    assert gaps[0] == pytest.approx(np.euler_gamma / 2, rel=0.01)
    assert gaps[1] < 1e-5


def test_a_few_steps_estimate_the_sum_over_all_without_bias():
    """The mean over many draws of chosen steps is the sum; and so is the curve's, step by step."""
    T, n = 200, 40_000
    L = torch.tensor([5.0, *(3 / i**1.3 for i in range(2, T + 1))], dtype=torch.float64)
    i, weights = chosen_steps(n, T, 8, torch.Generator().manual_seed(0))
    assert i.shape == weights.shape == (n, 8)
    assert (i[:, 0] == 1).all()
    assert int(i.min()) == 1
    assert int(i.max()) == T
    each = (weights * L[i - 1]).sum(1)
    assert abs(float(each.mean() - L.sum())) < 5 * float(each.std()) / n**0.5
    counted = torch.zeros(T, dtype=torch.float64).index_add_(0, i.flatten() - 1, weights.flatten()) / n
    np.testing.assert_allclose(counted.numpy(), 1, atol=0.2)
    assert counted[0] == 1
    flat = 5.0 + (T - 1) * L[torch.randint(1, T, (n,))]
    assert each.std() < 0.02 * flat.std()  # against one uniform step
    i, weights = chosen_steps(3, T, 1000, torch.Generator())
    assert torch.equal(i, torch.arange(1, T + 1).expand(3, T))
    assert (weights == 1).all()
    at, nats = Bound(torch.zeros(3), L.expand(3, T), i, weights).curve().T
    assert torch.equal(at, torch.arange(1.0, T + 1).double())
    assert torch.allclose(nats, L)


def test_the_continuous_bound_is_the_likelihood_of_gaussian_data():
    """-E log p(x0) = L_T + int |x0 - D|^2 / s^2 d log s + E[-log p(x0 | x_smin)] with the exact denoiser and posterior (Kingma et al. 2021)."""
    low, high, n = 0.01, 200.0, 400
    nodes, weights = np.polynomial.legendre.leggauss(n)
    u = 0.5 * (math.log(high) - math.log(low)) * (nodes + 1) + math.log(low)
    total = 0.0
    for at, w in zip(u, weights, strict=True):
        s = torch.full((9,), math.exp(at), dtype=torch.float64)
        rate = continuous_rate(X0, exact(X0 + s[0] * EPS, s), s)
        total += w * 0.5 * math.log(high / low) * float((PAIRS * rate).sum())
    total += float((PAIRS * prior_nats(X0, high, math.sqrt(1 + high**2))).sum())
    post = VAR * low**2 / (VAR + low**2)
    D = exact(X0 + low * EPS, torch.full((9,), low, dtype=torch.float64))
    total -= float((PAIRS * gaussian_log_prob(X0, D, torch.tensor(0.5 * np.log(post)))).sum())
    gap = 0.5 * np.sum((VAR + high**2 + MU**2) / (1 + high**2) - 1 - np.log((VAR + high**2) / (1 + high**2)))
    assert total == pytest.approx(ENTROPY + gap, rel=1e-9)


def test_the_discretized_gaussian_is_a_distribution_over_256_levels():
    v = torch.arange(256, dtype=torch.float64)
    x = (2 * v / 255 - 1).reshape(256, 1, 1, 1)
    for mean in (-1.3, -1.0, -0.2, 0.777, 1.0, 5.0):
        for log_std in (-7.0, -5.0, -2.0, 1.0):
            log_p = discretized_gaussian_log_prob(x, torch.full_like(x, mean), torch.tensor(log_std, dtype=torch.float64))
            assert torch.isfinite(log_p).all()
            assert float(torch.logsumexp(log_p, 0)) == pytest.approx(0, abs=1e-10)


def test_the_discretized_gaussian_equals_scipy_and_is_exact_far_away():
    mean, std = 0.1, 0.05
    edges = np.concatenate([[-np.inf], (2 * np.arange(255) + 1) / 255 - 1, [np.inf]])
    with np.errstate(divide="ignore"):  # a difference of probabilities has nothing far away
        want = np.log(np.diff(stats.norm.cdf(edges, mean, std)))
    x = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(256, 1, 1, 1)
    found = discretized_gaussian_log_prob(x, torch.full_like(x, mean), torch.tensor(math.log(std), dtype=torch.float64)).numpy()
    near = want > -15  # where the difference of two numbers near 1 still has its digits
    np.testing.assert_allclose(found[near], want[near], rtol=1e-9)
    assert np.isneginf(want[-1]) or want[-1] < -150
    far = stats.norm.logsf(edges[255], mean, std)
    assert found[-1] == pytest.approx(far, rel=1e-12)
    m = torch.full((1, 1, 1, 1), -1.0, requires_grad=True)
    discretized_gaussian_log_prob(torch.ones(1, 1, 1, 1), m, torch.tensor(-5.0)).sum().backward()
    assert torch.isfinite(m.grad).all()
    assert m.grad.item() > 1e4  # (x - mean) / sigma^2: in the tail the gradient still points home


def test_step_one_of_a_learned_range_is_finite_and_its_gradient_too():
    """beta_tilde of step 1 is 0, and a clamp of it at 1e-20 would give log -46; with step 2's the log is about -10."""
    levels = chain(linear_path(), 1000)
    small, _ = log_ranges(levels)
    assert -11 < small[0] < -9
    x0, D = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 0.01, requires_grad=True)
    share = torch.full((4, 1, 2, 2), 0.5, requires_grad=True)
    nats = step_nats(x0, D, share, torch.tensor([1, 2, 500, 1000]), levels)
    nats.sum().backward()
    for t in (nats, D.grad, share.grad):
        assert torch.isfinite(t).all()
    assert (share.grad.flatten(1).abs().sum(1) > 0).all()
