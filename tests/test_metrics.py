"""The metrics against closed forms, brute force, scipy and torchmetrics; and the traps of the field, one test each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from pixelkiln.metrics import (
    K,
    Moments,
    Report,
    Result,
    accuracy,
    frechet_distance,
    kernel_distance,
    mmd2,
    neighborhood_scores,
)
from pixelkiln.metrics.neighbors import nearest, radii


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(mean: Tensor, cov: Tensor) -> Moments:
    moments = Moments(len(mean))
    moments.n, moments.mean, moments.scatter = 2, mean.double(), cov.double()
    return moments


def random_cov(d: int, seed: int, rank: int | None = None) -> Tensor:
    a = normal(d, rank or 2 * d, seed)
    return a @ a.T / d


def fd(x: Tensor, y: Tensor) -> float:
    return frechet_distance(Moments.of(x), Moments.of(y))


# ---- Gaussian statistics


@pytest.mark.parametrize("sizes", [[300], [1] * 20 + [280], [7, 193, 99, 1], [0, 150, 0, 150]])
def test_moments_do_not_depend_on_the_batches(sizes: list[int]) -> None:
    x = normal(300, 6, 0) @ random_cov(6, 1) + 3
    moments = Moments(6)
    for part in torch.split(x[torch.randperm(300, generator=torch.Generator().manual_seed(1))], sizes):
        moments.update(part)
    assert moments.n == 300
    np.testing.assert_allclose(moments.mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.cov.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-11)


def test_moments_of_workers_merge() -> None:
    x = normal(101, 5, 2)
    merged = Moments.of(x[:17]).merge(Moments(5)).merge(Moments.of(x[17:60])).merge(Moments.of(x[60:]))
    np.testing.assert_allclose(merged.cov.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-12)


def test_covariance_survives_a_large_mean_in_float32() -> None:
    """Raw second moments in float32 are 5 % off here (asserted too, so that the test can fail)."""
    x = (10 + 0.1 * normal(4000, 8, 3)).float()
    exact = torch.from_numpy(np.cov(x.double().numpy(), rowvar=False))
    raw = (x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    assert (raw.double() - exact).abs().max() > 1e-5
    assert (Moments.of(x, batch=64).cov - exact).abs().max() < 1e-12


def test_moments_refuse_what_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        _ = Moments.of(normal(1, 4, 0)).cov
    with pytest.raises(ValueError, match="not finite"):
        Moments(2).update(torch.tensor([[1.0, float("nan")]]))


# ---- Frechet distance


def test_frechet_closed_form_of_commuting_gaussians() -> None:
    a, b, mu = torch.rand(12) + 0.1, torch.rand(12) + 0.1, torch.randn(12)
    q = torch.linalg.qr(normal(12, 12, 4)).Q
    expected = mu.double().square().sum() + (a.double().sqrt() - b.double().sqrt()).square().sum()
    found = frechet_distance(gaussian(mu, q @ a.double().diag() @ q.T), gaussian(torch.zeros(12), q @ b.double().diag() @ q.T))
    assert found == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("d", [2, 9, 40])
def test_frechet_against_scipy(d: int) -> None:
    s1, s2, mu = random_cov(d, 5), random_cov(d, 6), torch.randn(d).double()
    root = scipy.linalg.sqrtm((s1 @ s2).numpy())  # no disp=: that argument is gone from SciPy
    expected = float(mu @ mu + s1.trace() + s2.trace()) - 2 * np.trace(root).real
    assert frechet_distance(gaussian(mu, s1), gaussian(torch.zeros(d), s2)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("n1", "n2"), [(10, 10), (10, 25), (20, 200), (2, 2)])
def test_frechet_of_fewer_images_than_dimensions(n1: int, n2: int) -> None:
    """tr (S1 S2)^1/2 = |X1c X2c^T|_* / sqrt((n1 - 1)(n2 - 1)), the nuclear-norm form (arXiv 2009.14075)."""
    x, y = normal(n1, 64, 7) + 1, 2 * normal(n2, 64, 8)
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = torch.linalg.matrix_norm(xc @ yc.T, "nuc") / ((n1 - 1) * (n2 - 1)) ** 0.5
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * nuclear
    assert fd(x, y) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 50, 500])
def test_frechet_of_a_set_with_itself_is_zero_and_never_negative(n: int) -> None:
    x = normal(n, 64, 9) * 100
    assert 0 <= fd(x, x) < 1e-8
    assert 0 <= frechet_distance(Moments.of(x), Moments.of(x.flip(0), batch=3)) < 1e-8


def test_frechet_of_constant_features() -> None:
    assert fd(torch.ones(5, 3), torch.zeros(4, 3)) == 3


def test_frechet_affine_laws() -> None:
    x, y, q = normal(200, 10, 10), normal(150, 10, 11) @ random_cov(10, 12), torch.linalg.qr(normal(10, 10, 13)).Q
    base, shift = fd(x, y), torch.full((10,), 2.0).double()
    assert fd(y, x) == pytest.approx(base, rel=1e-9)
    assert fd(3 * x @ q + shift, 3 * y @ q + shift) == pytest.approx(9 * base, rel=1e-9)
    assert fd(x, x + shift) == pytest.approx(40, rel=1e-9)


def test_frechet_agrees_with_torchmetrics_with_the_same_extractor() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(nn.Module):
        num_features = 12

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(12, 48, 14, torch.float32))

        def forward(self, x: Tensor) -> Tensor:
            return (x.float().flatten(1) / 255) @ self.weight.T

    net, gen = Features(), torch.Generator().manual_seed(15)
    real = torch.randint(0, 256, (120, 3, 4, 4), generator=gen, dtype=torch.uint8)
    fake = torch.randint(40, 200, (90, 3, 4, 4), generator=gen, dtype=torch.uint8)
    theirs = FrechetInceptionDistance(feature=net, input_img_size=(3, 4, 4), normalize=False)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    with torch.no_grad():
        assert fd(net(real), net(fake)) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_frechet_is_biased_by_the_number_of_samples() -> None:
    """Two samples of one Gaussian: true distance 0, estimate about 1/N. This is why every score states N and a floor at the same N."""
    found = [fd(normal(n, 32, 16), normal(n, 32, 17)) for n in (100, 400, 1600, 6400)]
    assert found == sorted(found, reverse=True)
    assert found[1] / found[3] == pytest.approx(16, rel=0.25)


# ---- kernel distance


def test_mmd_against_brute_force() -> None:
    x, y = normal(9, 5, 18), normal(7, 5, 19) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert float(mmd2(x, y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
def test_kernel_distance_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

    x, y = normal(400, 8, 20), 1.3 * normal(400, 8, 21) + 0.2
    exact = poly_mmd(x, y, 3, None, 1.0)
    assert float(mmd2(x, y)) == pytest.approx(float(exact), rel=1e-9)
    theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=50, subset_size=100)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    torch.manual_seed(0)  # it draws from the global generator
    mean, std = theirs.compute()
    ours = kernel_distance(real=x, fake=y, subset=100)
    assert ours.value == pytest.approx(float(mean), abs=4 * float(std) / 50**0.5)


def test_kernel_distance_is_unbiased_and_may_be_negative() -> None:
    pairs = [(normal(80, 4, 2 * i), normal(80, 4, 2 * i + 1)) for i in range(60)]
    found = torch.tensor([kernel_distance(real=x, fake=y, num_subsets=20).value for x, y in pairs])
    assert (found < 0).any(), "never clamped"
    assert (found > 0).any()
    assert abs(found.mean()) < 3 * found.std() / 60**0.5


def test_kernel_distance_leaves_the_global_generators_alone() -> None:
    x, y = normal(60, 4, 22), normal(60, 4, 23)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = kernel_distance(real=x, fake=y, subset=20)
    torch.manual_seed(5)
    assert kernel_distance(real=x, fake=y, subset=20) == first
    assert kernel_distance(real=x, fake=y, subset=20, seed=1).value != first.value
    torch.set_rng_state(before)
    kernel_distance(real=x, fake=y)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_kernel_distance_states_its_true_error() -> None:
    """The jackknife error against the spread over independent draws, for distributions that differ."""
    found = [kernel_distance(real=normal(400, 4, 2 * i), fake=normal(400, 4, 2 * i + 1) + 0.7, subset=100) for i in range(40)]
    spread = float(torch.tensor([f.value for f in found]).std())
    stated = sum(f.error for f in found) / len(found)
    assert 0.7 * spread < stated < 1.5 * spread


def test_kernel_distance_is_defined_for_small_sets() -> None:
    assert kernel_distance(real=normal(5, 3, 24), fake=normal(4, 3, 25)).subset == 2
    with pytest.raises(ValueError, match="at least 4"):
        kernel_distance(real=normal(50, 3, 24), fake=normal(3, 3, 25))


# ---- precision, recall, density, coverage


def brute(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(x: list[Tensor], i: int) -> float:
        return sorted(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i)[k - 1]

    r, f = list(real), list(fake)
    rr, rf = [radius(r, i) for i in range(len(r))], [radius(f, j) for j in range(len(f))]
    inside = [[float((a - b).norm()) <= rr[i] for b in f] for i, a in enumerate(r)]  # fake j in the ball of real i
    recalled = [[float((a - b).norm()) <= rf[j] for j, b in enumerate(f)] for a in r]
    precision = np.mean([any(inside[i][j] for i in range(len(r))) for j in range(len(f))])
    recall = np.mean([any(row) for row in recalled])
    return float(precision), float(recall), float(np.sum(inside) / (k * len(f))), float(np.mean([any(row) for row in inside]))


@pytest.mark.parametrize(("n", "m", "k"), [(30, 20, 5), (20, 30, 3), (6, 6, 5), (12, 40, 1)])
def test_neighborhoods_against_brute_force(n: int, m: int, k: int) -> None:
    real, fake = normal(n, 3, 26), 0.7 * normal(m, 3, 27) + 0.4
    for block in (1, 150, 2**24):
        found = neighborhood_scores(real=real, fake=fake, k=k, block=block)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(brute(real, fake, k), abs=1e-9)


def test_neighborhoods_of_one_distribution() -> None:
    found = neighborhood_scores(real=normal(2000, 8, 28), fake=normal(2000, 8, 29))
    assert K == 5
    assert found.precision > 0.9
    assert found.recall > 0.9
    assert found.density == pytest.approx(1, abs=0.1)
    assert found.coverage == pytest.approx(1 - 0.5**K, abs=0.02)  # Naeem et al., 2020, section 3.3


def test_arguments_cannot_be_swapped_silently() -> None:
    """A collapsed model has precision 1 and recall near 0; a library had it the other way round for four years."""
    real = torch.cat([normal(200, 4, 30), normal(200, 4, 31) + 20])
    collapsed = real[0] + 0.01 * normal(200, 4, 32)
    found = neighborhood_scores(real=real, fake=collapsed)
    assert found.precision > 0.95
    assert found.recall < 0.05
    assert found.coverage < 0.3
    swapped = neighborhood_scores(real=collapsed, fake=real)
    assert swapped.precision < 0.05
    with pytest.raises(TypeError):
        neighborhood_scores(real, collapsed)  # type: ignore[misc]
    with pytest.raises(TypeError):
        kernel_distance(real, collapsed)  # type: ignore[misc]


def test_dropped_modes_lower_recall_and_coverage_only() -> None:
    modes = [normal(300, 4, 33 + i) + 30 * i for i in range(4)]
    real = torch.cat(modes)
    fresh = [normal(300, 4, 43 + i) + 30 * i for i in range(4)]
    scores = [neighborhood_scores(real=real, fake=torch.cat(fresh[:kept])) for kept in (1, 2, 3, 4)]
    for name in ("recall", "coverage"):
        values = [getattr(s, name) for s in scores]
        assert values == sorted(values)
        assert values[0] < 0.27
    assert all(s.precision > 0.9 for s in scores)


def test_repeated_samples_hold_each_other() -> None:
    """Repeats have radius 0: open balls would give a perfect copy of the real images the score 0."""
    real = normal(10, 4, 34).repeat_interleave(K + 1, 0)
    found = neighborhood_scores(real=real, fake=real)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_equal_features_are_at_distance_zero_far_from_the_origin() -> None:
    x = (1000 + normal(50, 64, 35)).float()
    assert (nearest(x, x)[0] == 0).all()
    np.testing.assert_allclose(radii(x, 1), torch.cdist(x.double(), x.double()).fill_diagonal_(9e9).min(1).values, rtol=1e-6)
    assert torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").diagonal().max() > 0.01  # why that form is not used in float32


def test_neighborhoods_need_more_than_k() -> None:
    with pytest.raises(ValueError, match="more than 5"):
        neighborhood_scores(real=normal(20, 3, 0), fake=normal(5, 3, 1))


# ---- accuracy and records


def test_accuracy() -> None:
    assert accuracy(predicted=torch.tensor([1, 2, 3, 3]), labels=torch.tensor([1, 2, 0, 3])) == 0.75
    with pytest.raises(ValueError, match="one prediction a label"):
        accuracy(predicted=torch.tensor([1, 2]), labels=torch.tensor([1]))
    with pytest.raises(ValueError, match="one prediction a label"):
        accuracy(predicted=torch.empty(0), labels=torch.empty(0))


def test_a_score_is_printed_with_its_protocol_and_floor() -> None:
    a = Result("fd", 3.25, "lower", 1.5, {"extractor": "cnn-1", "N": 2000, "seed": 0})
    b = Result("kd", -0.5, "lower", None, {"extractor": "cnn-1", "N": 500, "seed": 0}, error=0.25)
    assert str(a) == "fd 3.25 (floor 1.5; lower is better; extractor cnn-1, N 2000, seed 0)"
    assert str(b) == "kd -0.5 +/- 0.25 (no floor; lower is better; extractor cnn-1, N 500, seed 0)"
    report = Report((a, b), ("few samples",))
    assert report.shared() == {"extractor": "cnn-1", "seed": 0}
    assert [(r["metric"], r["protocol"]) for r in report.table()] == [("fd", "N 2000"), ("kd", "N 500")]
    assert json.loads(json.dumps(report.to_json()))["metrics"][0]["protocol"]["N"] == 2000
    assert report["kd"] is b
    with pytest.raises(KeyError):
        _ = report["fid"]
