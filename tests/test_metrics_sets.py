"""Scores of sets: sliced distance, kernels, Inception Score, modes, Vendi, memorization, extrapolation and intervals, each against an oracle."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity, polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from pixelkiln.metrics import (
    InceptionScore,
    Modes,
    Moments,
    Vendi,
    authenticity,
    bootstrap,
    copying,
    frechet_distance,
    frechet_error,
    frechet_infinity,
    inception_score,
    kernel_distance,
    mmd2,
    n_curve,
    nearest_ratio,
    neighborhood_scores,
    rbf,
    sliced_distance,
    vendi_score,
)
from pixelkiln.metrics.memorization import mann_whitney
from pixelkiln.metrics.neighbors import nearest, radii


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fd(x: Tensor, y: Tensor) -> float:
    return frechet_distance(Moments.of(x), Moments.of(y))


# ---- sliced Wasserstein distance


def transport(x: Tensor, y: Tensor) -> float:
    """W_2^2 in one dimension by linear assignment, both repeated to a common number."""
    n = math.lcm(len(x), len(y))
    a, b = x.repeat_interleave(n // len(x)).numpy(), y.repeat_interleave(n // len(y)).numpy()
    cost = (a[:, None] - b[None]) ** 2
    return float(cost[linear_sum_assignment(cost)].mean())


@pytest.mark.parametrize(("n", "m"), [(12, 12), (9, 6), (7, 5), (1, 4)])
def test_sliced_distance_in_one_dimension_is_optimal_transport(n: int, m: int) -> None:
    x, y = normal(n, 1, 0), 2 * normal(m, 1, 1) + 0.5
    found = sliced_distance(real=x, fake=y, num_projections=2)
    assert found.value == pytest.approx(transport(x[:, 0], y[:, 0]), rel=1e-10)
    assert found.mind == pytest.approx(3 * found.value)


def test_sliced_distance_against_the_closed_form_of_gaussians() -> None:
    """E_u [(u . mu)^2 + (s - 1)^2] = |mu|^2 / d + (s - 1)^2 for isotropic Gaussians."""
    mu = torch.linspace(0, 1, 10, dtype=torch.float64)
    found = sliced_distance(real=normal(8000, 10, 2), fake=1.5 * normal(8000, 10, 3) + mu, num_projections=500)
    assert found.value == pytest.approx(float(mu @ mu / 10 + 0.25), abs=4 * found.error + 0.01)


def test_sliced_distance_sees_what_the_first_two_moments_do_not() -> None:
    """Moment matching fools the Frechet distance: two spikes with the mean and the covariance of a Gaussian."""
    x = normal(2000, 4, 4)
    spikes = torch.sign(normal(2000, 4, 5))
    spikes = (spikes - spikes.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(spikes.T))).T
    spikes = spikes @ torch.linalg.cholesky(torch.cov(x.T)).T + x.mean(0)
    assert fd(x, spikes) < 1e-9
    same = sliced_distance(real=x, fake=normal(2000, 4, 6)).value
    assert sliced_distance(real=x, fake=spikes).value > 10 * same


def test_sliced_distance_has_less_bias_in_many_dimensions() -> None:
    """Two samples of one distribution, in units of its variance d: the Frechet distance's bias grows with d, this one's does not."""
    ratio = {}
    for d in (4, 64):
        x, y = normal(200, d, 7), normal(200, d, 8)
        ratio[d] = fd(x, y) / d, sliced_distance(real=x, fake=y).value
    assert ratio[64][0] > 4 * ratio[4][0]
    assert ratio[64][1] < 2 * ratio[4][1]


# ---- kernels


def test_kernels_against_scikit_learn() -> None:
    x, y = normal(40, 6, 9), normal(30, 6, 10) + 0.3
    for kernel, theirs in (
        (rbf(2.0), lambda a, b: rbf_kernel(a, b, gamma=1 / 8)),
        (None, lambda a, b: polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1)),
    ):
        kxx, kyy, kxy = theirs(x, x), theirs(y, y), theirs(x, y)
        expected = (kxx.sum() - np.trace(kxx)) / (40 * 39) + (kyy.sum() - np.trace(kyy)) / (30 * 29) - 2 * kxy.mean()
        assert float(mmd2(x, y, kernel) if kernel else mmd2(x, y)) == pytest.approx(expected, rel=1e-10)


def test_a_gram_matrix_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(40, 6, 11), normal(30, 6, 12)
    whole = mmd2(x, y, rbf(1.0))
    monkeypatch.setattr("pixelkiln.metrics.kernel.BLOCK", 7)
    assert float(mmd2(x, y, rbf(1.0))) == pytest.approx(float(whole), rel=1e-12)


def test_the_gaussian_kernel_sees_what_the_cubic_one_does_not() -> None:
    """Two distributions with the same first three moments (Gaussian; three atoms): a polynomial of degree 3 cannot tell them apart."""
    gen = torch.Generator().manual_seed(13)
    atoms = 3**0.5 * torch.multinomial(torch.tensor([1 / 6, 2 / 3, 1 / 6]), 6000, True, generator=gen)[:, None].double() - 3**0.5
    x = normal(6000, 1, 14)
    cubic, gauss = (kernel_distance(real=x, fake=atoms, num_subsets=20, **more) for more in ({}, {"kernel": rbf(0.5)}))
    assert abs(cubic.value) < 4 * cubic.error
    assert gauss.value > 10 * gauss.error
    with pytest.raises(ValueError, match="positive"):
        rbf(0)


def test_kernel_distance_needs_one_space() -> None:
    with pytest.raises(ValueError, match="3 .real. and 4 .fake."):
        kernel_distance(real=normal(9, 3, 0), fake=normal(9, 4, 0))
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(real=normal(9, 3, 0), fake=normal(9, 3, 0) / 0)
    with pytest.raises(ValueError, match=r"\(N, d\)"):
        sliced_distance(real=normal(9, 3, 0)[0], fake=normal(9, 3, 0))


# ---- Inception Score and modes


def probabilities(n: int, c: int, seed: int, sharp: float = 3.0) -> Tensor:
    return (sharp * normal(n, c, seed)).softmax(1)


def test_inception_score_against_scipy() -> None:
    p = probabilities(300, 7, 15)
    kl = [scipy.stats.entropy(row, p.mean(0).numpy()) for row in p.numpy()]
    found = inception_score(p, num_splits=1)
    assert found.value == pytest.approx(math.exp(np.mean(kl)), rel=1e-10)
    assert found.error is None


def test_inception_score_of_known_cases() -> None:
    certain = torch.eye(5, dtype=torch.float64).repeat(20, 1)
    assert inception_score(certain, num_splits=1).value == pytest.approx(5)  # sure and even: C, with p log p = 0 at p = 0
    assert inception_score(torch.full((100, 5), 0.2), num_splits=1).value == pytest.approx(1)  # unsure
    assert inception_score(certain[:1].repeat(100, 1)).value == pytest.approx(1)  # one class
    assert inception_score(certain[:1].repeat(100, 1)).error == pytest.approx(0)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`:UserWarning", "ignore:std.*degrees of freedom:UserWarning")
def test_inception_score_against_torchmetrics_and_its_splits() -> None:
    from torchmetrics.image.inception import InceptionScore as Theirs

    logits = 2 * normal(1000, 6, 16)
    theirs = Theirs(feature=nn.Identity(), splits=10)
    theirs.update(logits)
    torch.manual_seed(0)  # it shuffles by the global generator
    mean, std = theirs.compute()
    found = inception_score(logits.softmax(1))
    assert found.error is not None
    assert found.value == pytest.approx(float(mean), abs=4 * float(std) / 10**0.5)
    assert found.error * 10**0.5 == pytest.approx(float(std), rel=1)
    whole = Theirs(feature=nn.Identity(), splits=1)
    whole.update(logits)
    assert inception_score(logits.softmax(1), num_splits=1).value == pytest.approx(float(whole.compute()[0]), rel=1e-6)


def test_inception_score_states_its_true_error() -> None:
    found = [inception_score(probabilities(400, 6, 100 + i)) for i in range(60)]
    spread = float(torch.tensor([f.value for f in found]).std())
    stated = sum(f.error or 0 for f in found) / 60
    assert 0.7 * spread < stated < 1.4 * spread


def test_inception_score_needs_a_sample_a_split_and_probabilities() -> None:
    """A library returns NaN for fewer samples than splits."""
    with pytest.raises(ValueError, match="10 splits needs as many samples, and there are 9"):
        inception_score(probabilities(9, 4, 17))
    assert inception_score(probabilities(10, 4, 17)).value == pytest.approx(1)  # one sample a split: p(y|x) = p(y)
    with pytest.raises(ValueError, match="apply softmax"):
        inception_score(normal(20, 4, 18))
    with pytest.raises(ValueError, match="at least one split"):
        inception_score(probabilities(9, 4, 17), num_splits=0)
    with pytest.raises(ValueError, match="same classes, splits and seed"):
        InceptionScore(4).merge(InceptionScore(4, seed=1))


def test_splits_are_random_and_even() -> None:
    """Samples come sorted by class from many generators: splits in their order would hold one class each, and score 1."""
    p = torch.eye(10, dtype=torch.float64).repeat_interleave(100, 0)
    assert inception_score(p).value > 9
    in_order = [inception_score(part, num_splits=1).value for part in p.chunk(10)]
    assert np.mean(in_order) == pytest.approx(1)
    sizes = InceptionScore(10, 7).update(p[:100]).n
    assert sizes.max() - sizes.min() <= 1


def test_modes_against_scipy() -> None:
    gen = torch.Generator().manual_seed(19)
    a, b = torch.randint(0, 6, (500,), generator=gen), torch.randint(0, 8, (700,), generator=gen)
    fake, real = Modes(8).update(a[:100]).merge(Modes(8).update(a[100:])), Modes(8).update(b)
    assert fake.num_found() == 6
    assert fake.num_found(least=500) == 0
    p, r = np.bincount(a, minlength=8), np.bincount(b, minlength=8)
    assert fake.kl(real) == pytest.approx(scipy.stats.entropy(p, r), rel=1e-12)
    assert real.kl(real) == 0
    assert real.kl(fake) == math.inf
    even = Modes(8).update(torch.arange(8))
    assert Modes(8).update(torch.arange(2)).kl(even) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match=r"0\.\.7"):
        fake.update(torch.tensor([8]))
    with pytest.raises(ValueError, match="cannot be merged"):
        fake.merge(Modes(9))
    with pytest.raises(ValueError, match="on both sides"):
        fake.kl(Modes(8))


# ---- Vendi score


def vendi_by_hand(gram: np.ndarray) -> float:
    lam = np.linalg.eigvalsh(gram / len(gram))
    return math.exp(scipy.stats.entropy(lam[lam > 1e-15]))


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (20, 20)])
def test_vendi_against_the_gram_matrix(n: int, d: int) -> None:
    x = normal(n, d, 20) + 0.5
    expected = vendi_by_hand(cosine_similarity(x.numpy()))
    assert vendi_score(x) == pytest.approx(expected, rel=1e-6)
    assert Vendi(d).update(x[: n // 2]).merge(Vendi(d).update(x[n // 2 :])).score == pytest.approx(expected, rel=1e-6)
    assert vendi_score(x, rbf(2.0)) == pytest.approx(vendi_by_hand(rbf_kernel(x.numpy(), gamma=1 / 8)), rel=1e-6)


def test_vendi_counts_distinct_samples() -> None:
    assert vendi_score(torch.eye(7)) == pytest.approx(7)
    assert vendi_score(torch.eye(7).repeat(5, 1)) == pytest.approx(7)
    assert vendi_score(torch.ones(9, 3)) == pytest.approx(1)
    assert vendi_score(torch.eye(7)[[0] * 10 + [1] * 10]) == pytest.approx(2)
    far = 100 * normal(12, 3, 21)
    assert vendi_score(far, rbf(1.0)) == pytest.approx(12, rel=1e-6)
    assert vendi_score(far) <= 3 + 1e-9  # cosine kernel: at most d
    with pytest.raises(ValueError, match="a feature is 0"):
        vendi_score(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="k\\(x, x\\) = 1"):
        vendi_score(far, lambda x, y: x @ y.T)
    with pytest.raises(ValueError, match="at least one"):
        _ = Vendi(3).score


# ---- memorization


def test_nearest_and_radii_against_scikit_learn() -> None:
    x, pool = normal(50, 5, 22), normal(70, 5, 23)
    theirs = NearestNeighbors(n_neighbors=1).fit(pool.numpy()).kneighbors(x.numpy())
    for block in (1, 333, 2**24):
        distance, rows = nearest(x, pool, block)
        np.testing.assert_allclose(distance, theirs[0][:, 0], rtol=1e-12)
        assert (rows.numpy() == theirs[1][:, 0]).all()
        third = NearestNeighbors(n_neighbors=4).fit(pool.numpy()).kneighbors(pool.numpy())[0][:, 3]  # the first is itself
        np.testing.assert_allclose(radii(pool, 3, block), third, rtol=1e-12)


def test_authenticity_against_loops() -> None:
    train, fake = normal(30, 3, 24), normal(40, 3, 25)
    d, own = cdist(fake, train), cdist(train, train)
    np.fill_diagonal(own, np.inf)
    expected = np.mean([d[j].min() > own[d[j].argmin()].min() for j in range(40)])
    assert authenticity(train=train, fake=fake) == pytest.approx(expected)
    assert authenticity(train=train, fake=train) == 0
    assert authenticity(train=train, fake=train + 1e-6) == 0
    assert authenticity(train=train, fake=fake + 100) == 1
    with pytest.raises(ValueError, match="at least 2"):
        authenticity(train=train[:1], fake=fake)


def test_nearest_ratio_is_1_for_unseen_and_0_for_copies() -> None:
    train, test, unseen = (normal(800, 4, s) for s in (26, 27, 28))
    same = nearest_ratio(train=train, test=test, fake=unseen)
    assert same.ratio == pytest.approx(1, abs=0.1)
    assert same.closer == pytest.approx(0.05, abs=0.03)
    copies = nearest_ratio(train=train, test=test, fake=train[:100])
    assert (copies.ratio, copies.closer) == (0, 1)
    some = nearest_ratio(train=train, test=test, fake=torch.cat([train[:100], unseen[:400]]))
    assert some.ratio > 0.8  # the median does not see one copy in five
    assert some.closer == pytest.approx(0.2 + 0.8 * 0.05, abs=0.03)  # the share does
    d, own = cdist(unseen, train).min(1), cdist(test, train).min(1)
    assert same.ratio == pytest.approx(np.median(d) / np.median(own), rel=1e-9)
    assert same.closer == pytest.approx(np.mean(d < np.quantile(own, 0.05)))


@pytest.mark.parametrize(("m", "n", "ties"), [(30, 40, False), (25, 25, True), (200, 7, True), (1, 5, False)])
def test_mann_whitney_against_scipy(m: int, n: int, ties: bool) -> None:
    x, y = normal(m, 1, 29)[:, 0], normal(n, 1, 30)[:, 0] + 0.3
    if ties:
        x, y = (2 * x).round(), (2 * y).round()
    theirs = scipy.stats.mannwhitneyu(x, y, alternative="less", method="asymptotic", use_continuity=False)
    assert scipy.stats.norm.cdf(mann_whitney(x, y)) == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mann_whitney(x, y) == pytest.approx(-mann_whitney(y, x))
    assert mann_whitney(torch.zeros(3), torch.zeros(4)) == 0
    with pytest.raises(ValueError, match="on both sides"):
        mann_whitney(x, y[:0])


def test_copying_against_scipy() -> None:
    train, test, fake = normal(300, 3, 31), normal(100, 3, 32), 0.9 * normal(200, 3, 33)
    of_fake, of_test = cdist(fake, train).min(1), cdist(test, train).min(1)
    theirs = scipy.stats.mannwhitneyu(of_fake, of_test, alternative="less", method="asymptotic", use_continuity=False)
    assert copying(train=train, test=test, fake=fake, num_cells=1) == pytest.approx(scipy.stats.norm.ppf(theirs.pvalue), rel=1e-9)


def test_copying_is_a_z_score_under_the_null_and_strongly_negative_for_copies() -> None:
    """Under the null a mean over K even cells has deviation 1 / sqrt(K)."""
    null = [copying(train=normal(400, 3, 3 * i), test=normal(200, 3, 3 * i + 1), fake=normal(300, 3, 3 * i + 2), num_cells=3) for i in range(24)]
    assert abs(np.mean(null)) < 3 * 0.6 / 24**0.5
    assert 0.3 < np.std(null) < 0.9
    train, test, fake = normal(400, 3, 34), normal(200, 3, 35), normal(300, 3, 36)
    near = train[:300] + 0.02 * normal(300, 3, 37)
    for cells in (1, 4):
        assert copying(train=train, test=test, fake=near, num_cells=cells) < -5
        assert copying(train=train, test=test, fake=3 * fake, num_cells=cells) > 2
    copied_in_part = torch.cat([near[:100], 1.6 * fake[:200]])
    assert copying(train=train, test=test, fake=copied_in_part, num_cells=1) > -3  # hidden among samples that are too far away


def test_copying_refuses_empty_cells() -> None:
    train, test = normal(60, 3, 38), normal(30, 3, 39)
    with pytest.raises(ValueError, match="use fewer cells or more samples"):
        copying(train=train, test=test, fake=normal(20, 3, 40), num_cells=1)
    with pytest.raises(ValueError, match="as many as training images"):
        copying(train=train, test=test, fake=test, num_cells=61)


# ---- neighborhoods


def test_neighborhoods_of_many_samples_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block of distances is larger than stated, whatever N and M (the textbook matrix of 50,000 squared takes 20 GB in float64)."""
    seen = []
    exact = torch.addmm

    def spied(*args: Tensor, **more: float) -> Tensor:
        seen.append((found := exact(*args, **more)).numel())
        return found

    monkeypatch.setattr(torch, "addmm", spied)
    real, fake = normal(3000, 4, 41, torch.float32), normal(2000, 4, 42, torch.float32)
    found = neighborhood_scores(real=real, fake=fake, block=100_000)
    assert max(seen) <= 100_000
    assert sum(seen) == 3000**2 + 2000**2 + 3000 * 2000
    assert found == neighborhood_scores(real=real, fake=fake)


def test_copies_lie_on_the_border_of_their_balls() -> None:
    """Closed balls: the copy of the neighbor that a ball is drawn through is in it, whatever the rounding of either distance."""
    real = normal(700, 50, 53, torch.float32)
    for block in (1000, 12_345, 2**24):
        found = neighborhood_scores(real=real, fake=real, block=block)
        assert found.density == 6 / 5  # itself and its 5 neighbors


def test_neighborhoods_refuse_nan() -> None:
    """A comparison with NaN is False: a broken extractor would be a bad model."""
    with pytest.raises(ValueError, match="real is not finite"):
        neighborhood_scores(real=normal(20, 3, 0) * math.nan, fake=normal(20, 3, 1))


# ---- number of samples


def test_frechet_error_is_the_spread_over_independent_samples() -> None:
    """For distributions that differ, in mean, in scale, in both."""
    real = Moments.of(normal(50_000, 5, 43))
    for shift, scale in ((0.7, 1.0), (0.0, 1.5), (0.3, 0.7)):
        draws = [scale * normal(400, 5, 1000 + i) + shift for i in range(120)]
        spread = float(torch.tensor([frechet_distance(real, Moments.of(x)) for x in draws]).std())
        stated = np.mean([frechet_error(real=real, fake=x) for x in draws[:20]])
        assert 0.8 * spread < stated < 1.25 * spread


def test_frechet_error_of_fewer_samples_than_dimensions() -> None:
    real, x = Moments.of(normal(500, 64, 44)), 2 * normal(20, 64, 45)
    assert 0 < frechet_error(real=real, fake=x) < frechet_distance(real, Moments.of(x))


def test_the_curve_goes_over_disjoint_parts() -> None:
    x = torch.arange(60.0, dtype=torch.float64)[:, None]
    sums: dict[int, list[float]] = {}

    def score(part: Tensor) -> float:
        sums.setdefault(len(part), []).append(float(part.sum()))
        return float(len(part))

    curve = n_curve(score, x, num_points=3)
    assert curve.sizes == (60, 30, 20)
    assert curve.values == (60, 30, 20)
    assert {n: (len(s), sum(s)) for n, s in sums.items()} == {60: (1, 1770), 30: (2, 1770), 20: (3, 1770)}
    with pytest.raises(ValueError, match="at least 62"):
        n_curve(score, x, num_points=31)
    with pytest.raises(ValueError, match="at least 3 sizes"):
        n_curve(score, x, num_points=2).line()


def test_a_line_against_scipy() -> None:
    curve = n_curve(lambda x, y: fd(x, y), normal(300, 4, 46), normal(280, 4, 47), num_points=6)
    fit = scipy.stats.linregress([1 / n for n in curve.sizes], curve.values)
    line = curve.line()
    assert (line.value, line.slope, line.error) == pytest.approx((fit.intercept, fit.slope, fit.intercept_stderr), rel=1e-9)


def test_the_infinite_sample_frechet_distance_is_unbiased_where_the_plain_one_is_not() -> None:
    """Known distances to a Gaussian reference: 0, and (0.5)^2 d."""
    d = 16
    real = Moments(d)
    real.n, real.scatter = 2, torch.eye(d, dtype=torch.float64)
    for shift in (0.0, 0.5):
        truth = shift**2 * d
        draws = [normal(800, d, 2000 + i) + shift for i in range(24)]
        plain = np.array([frechet_distance(real, Moments.of(x)) for x in draws])
        found = [frechet_infinity(real=real, fake=x) for x in draws]
        values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
        assert plain.mean() - truth > 0.06
        assert abs(values.mean() - truth) < 0.35 * (plain.mean() - truth)
        assert 0.6 * values.std() < errors.mean() < 2 * values.std()


# ---- intervals


def percentile(score, x: Tensor, num: int, level: float) -> tuple[float, float]:
    """The textbook's bootstrap: resampled with replacement, quantiles as they are."""
    gen = torch.Generator().manual_seed(0)
    found = torch.tensor([score(x[torch.randint(len(x), (len(x),), generator=gen)]) for _ in range(num)])
    return float(found.quantile((1 - level) / 2)), float(found.quantile((1 + level) / 2))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_interval_of_a_frechet_distance_covers_the_truth_and_the_textbooks_does_not(shift: float) -> None:
    d, level, n = 12, 0.9, 150
    real = Moments(d)
    real.n, real.scatter = 2, torch.eye(d, dtype=torch.float64)
    score = lambda x: frechet_distance(real, Moments.of(x))
    truth, ours, theirs = shift**2 * d, 0, 0
    for i in range(50):
        x = normal(n, d, 3000 + i) + shift
        found = bootstrap(score, x, num=60, level=level)
        ours += found.low <= truth <= found.high
        low, high = percentile(score, x, 60, level)
        theirs += low <= truth <= high
    assert ours >= 40  # of 50; 45 expected, less than 40 in one of a hundred
    assert theirs < 15


def test_the_interval_of_a_mean_is_the_usual_one() -> None:
    x = normal(400, 1, 48)
    found = bootstrap(lambda z: float(z.mean()), x, num=2000)
    se = float(x.std()) / 20
    assert found.error == pytest.approx(se, rel=0.05)
    assert found.corrected == pytest.approx(found.value, abs=1e-12)  # complementary halves cancel: no bias is invented
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * se, found.value + 1.96 * se), abs=0.15 * se)


def test_intervals_take_several_sets_and_any_score() -> None:
    real, fake = normal(300, 4, 49), normal(240, 4, 50)
    found = bootstrap(lambda r, f: neighborhood_scores(real=r, fake=f).coverage, real, fake, num=20)
    assert found.low < found.value < found.high
    assert found == bootstrap(lambda r, f: neighborhood_scores(real=r, fake=f).coverage, real, fake, num=20)
    seen: list[int] = []
    bootstrap(lambda r, f: seen.append(len(r) + len(f)) or 0.0, real[:11], fake[:8], num=3)  # type: ignore[func-returns-value]
    assert sorted(seen) == [9, 10, 10, 19]
    for bad in ({"num": 1}, {"level": 1.0}):
        with pytest.raises(ValueError, match="num >= 2"):
            bootstrap(lambda r: 0.0, real, **bad)
    with pytest.raises(ValueError, match="at least 4"):
        bootstrap(lambda r: 0.0, real[:3])


def test_errors_shrink_with_the_number_of_samples() -> None:
    x, real = normal(1600, 4, 51), Moments.of(normal(5000, 4, 52) + 0.5)
    errors = [bootstrap(lambda z: frechet_distance(real, Moments.of(z)), x[:n], num=40).error for n in (100, 400, 1600)]
    assert all(1.4 < a / b < 2.9 for a, b in pairwise(errors))
