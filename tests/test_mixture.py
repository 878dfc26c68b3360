"""Mixtures of discretized logistics and the continuous Bernoulli, against sums over all levels, scipy, torch's distribution and integrals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from pixelkiln.objectives import likelihoods as lik

LEVELS = (torch.arange(256.0, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)


def raw(num: int, channels: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """What a net could say of one pixel, (1, P, 1, 1) float64."""
    gen = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1, lik.mixture_size(num, channels), 1, 1, generator=gen, dtype=torch.float64)


def one_channel(means: list[float], log_scale: float) -> lik.Mixture:
    mean = torch.tensor(means, dtype=torch.float64).view(1, -1, 1, 1, 1)
    weights = torch.linspace(-1, 1, len(means), dtype=torch.float64).view(1, -1, 1, 1)
    return lik.Mixture(weights, mean, torch.full_like(mean, log_scale), mean.new_zeros(1, len(means), 0, 1, 1))


def every(levels: int, channels: int) -> Tensor:
    """All colors of so many levels, (levels^C, C, 1, 1)."""
    v = torch.tensor(list(itertools.product(range(levels), repeat=channels)), dtype=torch.float64)
    return (2 * v / (levels - 1) - 1)[..., None, None]


def bins(levels: int, mean: float, scale: float) -> np.ndarray:
    """Masses of the levels, by scipy: the outer bins reach to infinity."""
    edges = np.concatenate([[-np.inf], (2 * np.arange(levels - 1) + 1) / (levels - 1) - 1, [np.inf]])
    return np.diff(stats.logistic(mean, scale).cdf(edges))


@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 5.0])
@pytest.mark.parametrize("means", [[0.1], [-0.3, 0.99], [-1.0, 1.0, 0.0], [-30.0, 1.7, -1.01, 40.0]])
def test_one_channel_sums_to_one(means: list[float], log_scale: float) -> None:
    """Wherever the means, also far outside of the range, and at the smallest and at huge scales."""
    log_p = lik.mixture_logistic_log_prob(LEVELS, one_channel(means, log_scale))
    assert log_p.shape == (256,)
    assert torch.isfinite(log_p).all()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("levels", [2, 5, 16])
def test_three_channels_sum_to_one(levels: int, scale: float) -> None:
    mix = lik.mixture_of(raw(4, 3, scale=scale), 3)
    assert float(lik.mixture_logistic_log_prob(every(levels, 3), mix, levels).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_one_channel_matches_scipy() -> None:
    mix = one_channel([-0.4, 0.2, 1.3], math.log(0.07))
    weights = mix.logits.flatten().softmax(0).numpy()
    want = sum(w * bins(256, float(m), 0.07) for w, m in zip(weights, mix.mean.flatten(), strict=True))
    np.testing.assert_allclose(lik.mixture_logistic_log_prob(LEVELS, mix).exp(), want, rtol=1e-8, atol=1e-15)


def test_three_channels_match_the_formula_written_out_with_scipy() -> None:
    """Eq. 3 pixel by pixel: one component for all channels, green leans on red, blue on red and green."""
    levels, num = 4, 2
    mix = lik.mixture_of(raw(num, 3, 1), 3)
    weights = mix.logits.flatten().softmax(0).numpy()
    mean, scale, coeff = (t[0, ..., 0, 0].numpy() for t in (mix.mean, mix.log_scale.exp(), mix.coeff))
    at = lambda v: 2 * v / (levels - 1) - 1
    want = []
    for r, g, b in itertools.product(range(levels), repeat=3):
        total = 0.0
        for k in range(num):
            p_r = bins(levels, mean[k, 0], scale[k, 0])[r]
            p_g = bins(levels, mean[k, 1] + coeff[k, 0] * at(r), scale[k, 1])[g]
            p_b = bins(levels, mean[k, 2] + coeff[k, 1] * at(r) + coeff[k, 2] * at(g), scale[k, 2])[b]
            total += weights[k] * p_r * p_g * p_b
        want.append(total)
    np.testing.assert_allclose(lik.mixture_logistic_log_prob(every(levels, 3), mix, levels).exp(), want, rtol=1e-8)


def test_one_component_without_coefficients_is_the_plain_logistic() -> None:
    x = torch.randint(0, 256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0)).double() / 127.5 - 1
    mean, log_scale = torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 5, 5, dtype=torch.float64) - 2
    mix = lik.Mixture(mean.new_zeros(4, 1, 5, 5), mean[:, None], log_scale[:, None], mean.new_zeros(4, 1, 3, 5, 5))
    torch.testing.assert_close(lik.mixture_logistic_log_prob(x, mix), lik.logistic_log_prob(x, mean, log_scale))


def test_tails_are_stable_in_float32() -> None:
    """Where a difference of sigmoids is 0 in float32, the value is float64's and the gradient pulls the mean to the pixel."""
    narrow, wide = one_channel([-1.0, -0.9], -7.0), one_channel([-1.0, -0.9], -7.0)
    single = lik.Mixture(*(t.float() for t in narrow))
    mean = single.mean.clone().requires_grad_()
    log_p = lik.mixture_logistic_log_prob(LEVELS.float(), single._replace(mean=mean))
    torch.testing.assert_close(log_p.double(), lik.mixture_logistic_log_prob(LEVELS, wide), rtol=1e-4, atol=1e-3)
    for level in (200, 255):
        (slope,) = torch.autograd.grad(log_p[level], mean, retain_graph=True)
        assert float(slope.sum()) == pytest.approx(math.exp(7), rel=1e-3), "1 / s, the tail's slope, shared by the components"


def test_mean_is_that_of_all_levels_to_half_a_level() -> None:
    for log_scale in (-7.0, -3.0, -1.0, 1.0):
        for means in ([0.3], [-0.3, 0.99], [-3.0, 1.7, -1.01]):
            mix = one_channel(means, log_scale)
            want = (lik.mixture_logistic_log_prob(LEVELS, mix).exp() * LEVELS.flatten()).sum()
            assert float(lik.mixture_logistic_mean(mix)) == pytest.approx(float(want), abs=1 / 255)


def test_mean_of_colors() -> None:
    """Narrow components inside of the range: nothing is clipped, and the mean is that of all colors."""
    levels = 32
    mix = lik.mixture_of(raw(2, 3, 2, 0.2), 3)
    mix = mix._replace(log_scale=torch.full_like(mix.log_scale, math.log(0.03)))
    x = every(levels, 3)
    want = (lik.mixture_logistic_log_prob(x, mix, levels).exp()[:, None] * x.flatten(1)).sum(0)
    torch.testing.assert_close(lik.mixture_logistic_mean(mix).flatten(), want, atol=2e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_the_probabilities_that_the_density_says(channels: int) -> None:
    levels, n = 4, 60_000
    mix = lik.mixture_of(raw(3, channels, 3), channels)
    u = torch.rand(n, 1 + channels, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = lik.mixture_logistic_sample(lik.Mixture(*(t.expand(n, *t.shape[1:]) for t in mix)), u, levels)
    assert drawn.shape == (n, channels, 1, 1)
    v = lik.discrete_levels(drawn, levels).flatten(1).long()
    torch.testing.assert_close(2 * v.double() / (levels - 1) - 1, drawn.flatten(1))  # levels, and nothing in between
    place = (v * torch.tensor([levels**i for i in range(channels)][::-1])).sum(1)
    found = torch.bincount(place, minlength=levels**channels) / n
    want = lik.mixture_logistic_log_prob(every(levels, channels), mix, levels).exp()
    assert float((found - want).abs().max()) < 5 * math.sqrt(0.25 / n)


def test_a_sample_of_a_pixel_depends_on_its_own_numbers_alone() -> None:
    gen = torch.Generator().manual_seed(0)
    mix, u = lik.mixture_of(torch.randn(2, lik.mixture_size(3, 3), 4, 5, generator=gen), 3), torch.rand(2, 4, 4, 5, generator=gen)
    whole = lik.mixture_logistic_sample(mix, u)
    part = lik.mixture_logistic_sample(lik.Mixture(*(t[1:, ..., 2:3, 3:4] for t in mix)), u[1:, :, 2:3, 3:4])
    assert torch.equal(part, whole[1:, :, 2:3, 3:4])


def test_sizes() -> None:
    assert lik.mixture_size(10, 3) == 100 and lik.mixture_size(10, 1) == 30
    mix = lik.mixture_of(torch.full((2, 3, 100, 4, 5), -50.0), 3)
    assert [tuple(t.shape) for t in mix] == [(2, 3, 10, 4, 5), (2, 3, 10, 3, 4, 5), (2, 3, 10, 3, 4, 5), (2, 3, 10, 3, 4, 5)]
    assert float(mix.log_scale.min()) >= lik.MIN_LOG_SCALE and float(mix.coeff.min()) >= -1
    assert lik.mixture_logistic_log_prob(torch.zeros(2, 3, 3, 4, 5), mix).shape == (2, 3)


# ---- continuous Bernoulli
LOGITS = [-60.0, -8.0, -0.6, -0.5, -0.4999, -1e-4, 0.0, 1e-6, 0.3, 0.5, 2.0, 30.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one_with_its_mean(logit: float) -> None:
    density = lambda x: math.exp(lik.continuous_bernoulli_log_prob(torch.tensor(x, dtype=torch.float64).view(1, 1, 1), torch.tensor(logit, dtype=torch.float64)))
    mass, _ = integrate.quad(density, 0, 1, points=[0.02, 0.98])
    mean, _ = integrate.quad(lambda x: x * density(x), 0, 1, points=[0.02, 0.98])
    assert mass == pytest.approx(1, abs=1e-10)
    assert float(lik.continuous_bernoulli_mean(torch.tensor(logit, dtype=torch.float64))) == pytest.approx(mean, abs=1e-10)


def test_continuous_bernoulli_matches_torch() -> None:
    x = torch.rand(50, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = 3 * torch.randn(50, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    far = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))
    torch.testing.assert_close(lik.continuous_bernoulli_log_prob(x, logits), far.log_prob(x).sum((1, 2, 3)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(lik.continuous_bernoulli_mean(logits), far.mean, rtol=1e-8, atol=1e-8)
    near = torch.linspace(-1e-3, 1e-3, 24, dtype=torch.float64).view(1, 2, 3, 4)  # where torch has a Taylor polynomial
    theirs = torch.distributions.ContinuousBernoulli(logits=near).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(lik.continuous_bernoulli_log_prob(x, near), theirs, rtol=0, atol=1e-8)


def test_continuous_bernoulli_is_the_bernoulli_with_its_normalizer() -> None:
    """log C(l) = log(2 atanh(1 - 2l) / (1 - 2l)), which plain cross-entropy on grey values leaves out: 0.69 nats a pixel at least."""
    x, logits = torch.tensor([0.1, 0.5, 0.9]).double().view(3, 1, 1, 1), torch.tensor([2.2, -1.0, 0.7]).double().view(3, 1, 1, 1)
    l = torch.sigmoid(logits)
    normalizer = torch.log(2 * torch.atanh(1 - 2 * l) / (1 - 2 * l)).flatten()
    torch.testing.assert_close(lik.continuous_bernoulli_log_prob(x, logits) - lik.bernoulli_log_prob(x, logits), normalizer)
    assert float(normalizer.min()) > math.log(2)


def test_continuous_bernoulli_has_its_gradient_everywhere() -> None:
    """d log p / dn = x - E[x], in float32 too, at 0 and where the branches meet."""
    logits = torch.tensor(LOGITS, requires_grad=True)
    (slope,) = torch.autograd.grad(lik.continuous_bernoulli_log_prob(torch.full((1, 1, len(LOGITS)), 0.3), logits), logits)
    torch.testing.assert_close(slope, 0.3 - lik.continuous_bernoulli_mean(logits.detach()), atol=2e-5, rtol=0)
    n = torch.tensor([-2.0, -0.5, 0.0, 0.2, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lik.continuous_bernoulli_mean, (n + 1e-9,))
