"""PCA against scikit-learn, scipy and the paper's own claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA as SklearnPCA
from torch import Tensor

from pixelkiln.core.protocols import Fit
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Request, UserError
from pixelkiln.methods import pca as module
from pixelkiln.methods.pca import MIN_NOISE, PCA, PCAConfig, pca

GEN = torch.Generator()


def correlated(n: int, shape: ImageShape, seed: int = 0) -> Tensor:
    """Random images (n, C, H, W) whose covariance has a falling spectrum."""
    gen = torch.Generator().manual_seed(seed)
    d = shape.numel
    mix = torch.linalg.qr(torch.randn(d, d, generator=gen, dtype=torch.float64)).Q * (0.5 * 0.8 ** torch.arange(d) + 0.02)
    x = torch.randn(n, d, generator=gen, dtype=torch.float64) @ mix.T + 0.1 * torch.randn(d, generator=gen, dtype=torch.float64)
    return x.float().unflatten(1, tuple(shape))


def fitted(x: Tensor, components: int, batch: int = 50, **options: bool) -> PCA:
    """A PCA fitted to images x, streamed in batches (the last one smaller)."""
    method = PCA(DataInfo(ImageShape(*x.shape[1:])), PCAConfig(components, **options))
    (row,) = method.updates()
    assert isinstance(row, Fit)
    scalars = row.run(lambda: (Batch(part) for part in x.split(batch)))
    assert all(math.isfinite(v) for v in scalars.values())
    return method


def oracle(x: Tensor, components: int) -> SklearnPCA:
    """scikit-learn's PCA, with the covariance divided by N as in the paper (it divides by N - 1)."""
    found = SklearnPCA(components, svd_solver="full").fit(x.flatten(1).double().numpy())
    found.explained_variance_ *= (len(x) - 1) / len(x)
    found.noise_variance_ *= (len(x) - 1) / len(x)
    return found


@pytest.mark.parametrize("direct", [True, False], ids=["covariance", "subspace-iteration"])
def test_matches_scikit_learn(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(module, "DIRECT", 0)
    x = correlated(333, ImageShape(1, 6, 5))
    ours, theirs = fitted(x, 7).model, oracle(x, 7)
    np.testing.assert_allclose(ours.mean, theirs.mean_, atol=1e-7)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.noise, theirs.noise_variance_, rtol=1e-6)
    np.testing.assert_allclose(np.abs(theirs.components_ @ ours.axes.numpy()), np.eye(7), atol=1e-5)


@pytest.mark.parametrize("components", [1, 12])
def test_likelihood_matches_scikit_learn_and_scipy(components: int) -> None:
    x = correlated(200, ImageShape(3, 3, 2), seed=1)
    method, theirs = fitted(x, components), oracle(x, components)
    new = correlated(20, ImageShape(3, 3, 2), seed=2)
    flat = new.flatten(1).double().numpy()
    score = method.log_prob(new, samples=1, gen=GEN)
    assert score.kind == "exact"
    np.testing.assert_allclose(score.nats, theirs.score_samples(flat), rtol=1e-5)
    w = method.model.weights.numpy()
    cov = w @ w.T + float(method.model.noise) * np.eye(18)
    np.testing.assert_allclose(score.nats, multivariate_normal(method.model.mean.numpy(), cov).logpdf(flat), rtol=1e-9)


def test_subspace_iteration_agrees_on_real_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(load_digits().images[:600, None] / 8 - 1).float()
    exact = fitted(x, 20).model
    monkeypatch.setattr(module, "DIRECT", 0)
    near = fitted(x, 20).model
    np.testing.assert_allclose(near.variances, exact.variances, rtol=1e-6)
    np.testing.assert_allclose(near.noise, exact.noise, rtol=1e-6)


def test_samples_have_the_models_covariance() -> None:
    """The usual bug, z ~ N(0, I) in unscaled components, gives unit variance along every axis."""
    x = correlated(400, ImageShape(1, 4, 4)) * 0.15  # small, so that nothing is clipped
    method = fitted(x, 5, noise=True)
    drawn = method.sample(Request(seeds=tuple(range(8000)))).flatten(1).double()
    w = method.model.weights
    cov = w @ w.T + method.model.noise * torch.eye(16, dtype=torch.float64)
    assert torch.linalg.matrix_norm(drawn.T.cov() - cov) < 0.05 * torch.linalg.matrix_norm(cov)
    assert torch.linalg.matrix_norm(drawn.T.cov() - x.flatten(1).double().T.cov()) < 0.1 * torch.linalg.matrix_norm(cov)


def test_likelihood_is_at_its_maximum() -> None:
    """Equations 7 and 8 are the maximum: any change of the noise, the scale of the axes or the mean lowers the likelihood."""
    x = correlated(150, ImageShape(1, 4, 3))
    method = fitted(x, 3)
    best = method.log_prob(x, 1, GEN).nats.mean()
    for name, factor in [("noise", 1.05), ("noise", 0.95), ("variances", 1.05), ("variances", 0.95), ("mean", 1.1), ("mean", 0.9)]:
        changed = fitted(x, 3)
        getattr(changed.model, name).mul_(factor)
        assert changed.log_prob(x, 1, GEN).nats.mean() < best - 1e-6, name


def test_posterior_mean_matches_the_formula() -> None:
    """M^-1 W^T (x - mu), M = W^T W + sigma^2 I, written out."""
    x = correlated(100, ImageShape(1, 4, 3))
    method = fitted(x, 4)
    w, r = method.model.weights, x.flatten(1).double() - method.model.mean
    expected = torch.linalg.solve(w.T @ w + method.model.noise * torch.eye(4, dtype=torch.float64), w.T @ r.T).T
    torch.testing.assert_close(method.encode(x), expected.float())


def test_encode_undoes_decode_where_noise_is_small() -> None:
    x = correlated(100, ImageShape(1, 4, 3))
    flat = x.flatten(1) - x.flatten(1).mean(0)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    low_rank = ((u[:, :3] * s[:3]) @ v[:3]).unflatten(1, (1, 4, 3))
    method = fitted(low_rank, 3)
    torch.testing.assert_close(method.decode(method.encode(low_rank)), low_rank, atol=1e-3, rtol=0)
    assert float(method.model.noise) == pytest.approx(MIN_NOISE)  # nothing is discarded: the floor, not zero
    assert torch.isfinite(method.log_prob(low_rank, 1, GEN).nats).all()


def test_batches_do_not_matter() -> None:
    x = correlated(130, ImageShape(1, 4, 4))
    one, many = fitted(x, 4, batch=130).model, fitted(x, 4, batch=7).model
    torch.testing.assert_close(one.weights, many.weights, atol=1e-8, rtol=1e-6)


def test_state_survives() -> None:
    x = correlated(60, ImageShape(3, 4, 4))
    method = fitted(x, 5)
    other = PCA(method.info, method.config)
    other.load_state_dict(method.state_dict())
    order = Request(seeds=(3, 1, 4))
    assert torch.equal(other.sample(order), method.sample(order))
    assert torch.equal(other.log_prob(x, 1, GEN).nats, method.log_prob(x, 1, GEN).nats)


def test_samples_do_not_depend_on_the_batch() -> None:
    method = fitted(correlated(60, ImageShape(1, 4, 4)), 5, noise=True)
    whole = method.sample(Request(seeds=(5, 6, 7)))
    torch.testing.assert_close(whole[1:2], method.sample(Request(seeds=(6,))))


@pytest.mark.parametrize(("images", "components", "word"), [(5, 5, "5 images"), (50, 16, "15"), (50, 0, "15")])
def test_too_many_components(images: int, components: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        fitted(correlated(images, ImageShape(1, 4, 4)), components)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipe(size: str) -> None:
    recipe = pca(size)  # type: ignore[arg-type]
    stage = recipe.last
    side = max(8, stage.data.at_least)
    assert recipe.family == "classical" and "Tipping" in recipe.paper
    assert stage.method(DataInfo(ImageShape(1, side, side)), stage.model).updates()
