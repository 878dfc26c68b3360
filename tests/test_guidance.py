"""Guidance over Gaussians and mixtures, where conditional denoisers, classifiers and products are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from pixelkiln.core.types import Condition, UserError
from pixelkiln.solvers import autoguided, classifier_free, classifier_guided, composed, conditioned, heun, karras, null_of, thresholded
from pixelkiln.solvers.guidance import inside, rescaled

MEANS, VAR, SHARE = torch.tensor([-1.0, 0.5, 2.0]).double(), 0.3, torch.tensor([0.2, 0.5, 0.3]).double()  # a mixture in each of two pixels


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(x: Tensor, s: float) -> Tensor:
    """p(component | x) at level s, x (B, 2) with one component for both pixels, by SciPy's densities."""
    density = np.stack([multivariate_normal([m, m], (VAR + s**2) * np.eye(2)).pdf(x.numpy()).reshape(-1) for m in MEANS.tolist()], 1)
    joint = torch.from_numpy(density) * SHARE
    return joint / joint.sum(1, keepdim=True)


def component(x: Tensor, s: Tensor | float, k: Tensor) -> Tensor:
    """E[x0 | x, component k]."""
    mu = MEANS[k][:, None]
    return mu + VAR / (VAR + torch.as_tensor(s, dtype=torch.float64).reshape(-1, 1) ** 2) * (x - mu)


def mixture(x: Tensor, s: float) -> Tensor:
    """E[x0 | x]."""
    each = torch.stack([component(x, s, torch.full((len(x),), k)) for k in range(3)], 1)  # (B, 3, 2)
    return (posterior(x, s)[:, :, None] * each).sum(1)


class Model:
    """The mixture as a model with labels; it keeps the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, s: Tensor, cond: Condition) -> Tensor:
        assert s.shape == (len(x),)
        self.sizes.append(len(x))
        label = torch.full((len(x),), -1) if cond.label is None else cond.label
        assert len(label) == len(x)
        plain = mixture(x, float(s[0]))
        return torch.where((label < 0)[:, None], plain, component(x, s, label.clamp_min(0)))


def logp(x: Tensor, s: float, label: Tensor) -> Tensor:
    """log p(label | x) at level s as torch can differentiate it: Bayes with normal densities."""
    joint = SHARE.log() - ((x[:, None] - MEANS[:, None]) ** 2).sum(2) / (2 * (VAR + s**2))
    return joint.log_softmax(1).gather(1, label[:, None])[:, 0]


X, LABEL = randn(6, 2) * 2, torch.tensor([0, 1, 2, 0, 1, 2])
COND = Condition(label=LABEL)


@pytest.mark.parametrize("s", [0.05, 0.7, 5.0])
def test_classifier_guidance_with_the_exact_classifier_is_the_exact_conditional_denoiser(s: float) -> None:
    with torch.no_grad():  # as in sampling
        found = classifier_guided(mixture, lambda x, s: logp(x, s, LABEL), 1.0)(X, s)
    torch.testing.assert_close(found, component(X, s, LABEL), atol=1e-9, rtol=1e-9)
    assert not found.requires_grad
    off = classifier_guided(mixture, lambda x, s: logp(x, s, LABEL), 0.0)(X, s)
    assert torch.equal(off, mixture(X, s))
    assert not torch.allclose(off, found, atol=1e-2)


def test_the_weight_multiplies_the_gradient_of_log_p_which_finite_differences_give() -> None:
    s, w, h = 0.8, 2.5, 1e-5
    steps = torch.eye(2).double() * h
    grad = torch.stack([(logp(X + e, s, LABEL) - logp(X - e, s, LABEL)) / (2 * h) for e in steps], 1)
    found = classifier_guided(mixture, lambda x, s: logp(x, s, LABEL), w)(X, s)
    torch.testing.assert_close(found, mixture(X, s) + w * s**2 * grad, atol=1e-8, rtol=1e-6)


def test_classifier_guided_samples_are_those_of_the_class() -> None:
    x, label = 40 * randn(4000, 2, seed=3), torch.full((4000,), 2)
    denoise = classifier_guided(mixture, lambda x, s: logp(x, s, label), 1.0)
    out = heun(denoise, x, karras(40, 0.002, 40.0))
    assert out.mean().item() == pytest.approx(2.0, abs=0.03)
    assert out.std().item() == pytest.approx(math.sqrt(VAR), rel=0.03)


def test_classifier_free_is_one_pass_at_weight_1_and_outside_the_interval() -> None:
    for w, interval, s in ((1.0, None, 0.7), (3.0, (0.5, 2.0), 0.4), (3.0, (0.5, 2.0), 2.1), (3.0, (0.5, 2.0), 0.5)):
        model = Model()
        found = classifier_free(model, COND, Condition(), w, interval, rescale=0.7)(X, s)
        assert torch.equal(found, component(X, s, LABEL))
        assert model.sizes == [6]
    for s in (0.51, 1.0, 2.0):  # (lo, hi]
        model = Model()
        found = classifier_free(model, COND, Condition(), 3.0, (0.5, 2.0))(X, s)
        plain = mixture(X, s)
        torch.testing.assert_close(found, plain + 3 * (component(X, s, LABEL) - plain))
        assert model.sizes == [12]
    assert inside(1e9, None)


@pytest.mark.parametrize("phi", [0.0, 0.35, 1.0])
def test_rescale_is_the_formula_of_the_paper_for_each_sample(phi: float) -> None:
    D, D_c = 3 * randn(4, 3, 5, 6, seed=1) + 1, randn(4, 3, 5, 6, seed=2)
    found = rescaled(D, D_c, phi).numpy()
    for one, c, out in zip(D.numpy(), D_c.numpy(), found, strict=True):
        np.testing.assert_allclose(out, phi * (one * c.std(ddof=1) / one.std(ddof=1)) + (1 - phi) * one)
    again = rescaled(D[1:2], D_c[1:2], phi)  # no sample knows of another
    assert torch.equal(again[0], rescaled(D, D_c, phi)[1])
    constant = torch.ones(1, 1, 2, 2)
    assert torch.isfinite(rescaled(constant, constant, 1.0)).all()
    with pytest.raises(UserError, match="rescale 1.5"):
        rescaled(D, D_c, 1.5)


def test_autoguidance() -> None:
    sizes: list[str] = []

    def main(x: Tensor, s: float) -> Tensor:
        sizes.append("main")
        return x / (1 + s)

    def weak(x: Tensor, s: float) -> Tensor:
        sizes.append("weak")
        return x / (2 + s)

    assert torch.equal(autoguided(main, weak, 1.0)(X, 0.3), X / 1.3)
    assert torch.equal(autoguided(main, weak, 2.0, (1.0, 2.0))(X, 0.3), X / 1.3)
    assert sizes == ["main", "main"]
    torch.testing.assert_close(autoguided(main, weak, 2.0)(X, 0.3), X / 2.3 + 2 * (X / 1.3 - X / 2.3))
    torch.testing.assert_close(autoguided(main, weak, 0.0)(X, 0.3), X / 2.3)


def gaussian(x: Tensor, s: Tensor | float, mu: Tensor, var: Tensor) -> Tensor:
    s = torch.as_tensor(s, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
    return mu + var / (var + s**2) * (x - mu)


class Product:
    """A model whose labels 0 and 1 are Gaussians over two pixels, and whose null is a third: means (3, 2), variances (3, 2)."""

    def __init__(self, mu: Tensor, var: Tensor) -> None:
        self.mu, self.var = mu.double(), var.double()
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, s: Tensor, cond: Condition) -> Tensor:
        self.sizes.append(len(x))
        label = torch.full((len(x),), -1) if cond.label is None else cond.label
        return gaussian(x, s, self.mu[label], self.var[label])  # -1 is the last row

    def product(self, w: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x) prod (p(x | c_i) / p(x))^w_i, by completing the square."""
        share = torch.tensor([*w, 1 - sum(w)], dtype=torch.float64)[:, None]
        precision = (share / self.var).sum(0)
        return (share * self.mu / self.var).sum(0) / precision, 1 / precision


def both(n: int, w: tuple[float, float]) -> list[tuple[Condition, float]]:
    return [(Condition(label=torch.full((n,), k)), w[k]) for k in (0, 1)]


APART = Product(torch.tensor([[2.0, 0.1], [-0.3, -1.5], [-0.3, 0.1]]), torch.tensor([[0.2, 0.9], [0.5, 0.1], [0.5, 0.9]]))  # each changes one pixel
ALIKE = Product(torch.tensor([[1.0, 0.2], [-0.5, 0.4], [0.1, 0.0]]), torch.full((3, 2), 0.4))  # one covariance


def test_rescaled_guidance_keeps_the_conditional_deviation() -> None:
    cond = Condition(label=torch.zeros(6, dtype=torch.long))
    plain, raw, found = (classifier_free(APART, cond, Condition(), w, rescale=phi)(X, 0.7) for w, phi in ((1.0, 0.0), (4.0, 0.0), (4.0, 1.0)))
    torch.testing.assert_close(found.std(1), plain.std(1))
    assert not torch.allclose(raw.std(1), plain.std(1), rtol=0.2)


@pytest.mark.parametrize(("model", "w"), [(APART, (1.0, 1.0)), (ALIKE, (1.0, 1.0)), (ALIKE, (0.7, 0.3)), (ALIKE, (1.5, -0.5))])
@pytest.mark.parametrize("s", [0.05, 0.7, 5.0])
def test_composition_is_the_product_where_that_is_exact(model: Product, w: tuple[float, float], s: float) -> None:
    mu, var = model.product(w)
    found = composed(model, both(len(X), w), Condition())(X, s)
    torch.testing.assert_close(found, gaussian(X, s, mu, var), atol=1e-9, rtol=1e-9)


def test_composition_is_the_product_only_at_low_noise_in_general() -> None:
    """Scores of noisy densities do not multiply to the noisy product: the trap that Du et al. point out."""
    model = Product(torch.tensor([[1.0, 0.2], [-0.5, 0.4], [0.1, 0.0]]), torch.tensor([[0.3, 0.5], [0.2, 0.6], [2.0, 2.0]]))
    mu, var = model.product((1.0, 1.0))
    error = [(composed(model, both(len(X), (1.0, 1.0)), Condition())(X, s) - gaussian(X, s, mu, var)).abs().max().item() for s in (0.01, 1.0)]
    assert error[0] < 1e-4
    assert error[1] > 0.05


def test_composition_takes_one_forward_and_leaves_out_what_has_no_weight() -> None:
    for w, size in (((1.0, 1.0), 18), ((0.5, 0.5), 12), ((1.0, 0.0), 6), ((2.0, 0.0), 12), ((0.0, 0.0), 6)):
        model = Product(ALIKE.mu, ALIKE.var)
        composed(model, both(6, w), Condition())(X, 0.7)
        assert model.sizes == [size]
    one = composed(Model(), [(COND, 2.5)], Condition())(X, 0.7)
    torch.testing.assert_close(one, classifier_free(Model(), COND, Condition(), 2.5)(X, 0.7))
    away = composed(ALIKE, [(Condition(label=torch.zeros(6, dtype=torch.long)), -1.0)], Condition())(X, 0.7)
    assert (away.mean(0) < composed(ALIKE, [], Condition())(X, 0.7).mean(0))[0]  # away from the mean 1.0


@pytest.mark.parametrize("p", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_is_numpys_quantile_of_each_sample(p: float) -> None:
    D = randn(5, 3, 4, 7, seed=5) * torch.tensor([0.1, 0.5, 1.0, 3.0, 10.0]).double().view(-1, 1, 1, 1)
    found = thresholded(lambda x, s: D, p)(D, 1.0)
    for one, out in zip(D.numpy(), found.numpy(), strict=True):
        a = max(np.quantile(np.abs(one), p), 1.0)
        np.testing.assert_allclose(out, np.clip(one, -a, a) / a, rtol=1e-6)
    assert torch.equal(found[0], D[0])  # what lies in [-1, 1] stays
    assert found.abs().max() <= 1
    with pytest.raises(UserError, match="threshold 0"):
        thresholded(lambda x, s: D, 0.0)


def test_null_keeps_images_and_drops_the_rest() -> None:
    cond = Condition(label=torch.tensor([1]), text=("a",), source=torch.zeros(1, 1, 2, 2), mask=torch.ones(1, 1, 2, 2))
    assert null_of(cond).given() == {"source", "mask"}
    seen: list[Condition] = []

    def model(x: Tensor, s: Tensor, c: Condition) -> Tensor:
        seen.append(c)
        return x

    classifier_free(model, cond, null_of(cond), 2.0)(torch.zeros(1, 1, 2, 2), 1.0)
    assert seen[0].source is not None
    assert seen[0].source.shape == (2, 1, 2, 2)
    assert seen[0].label is not None
    assert seen[0].label.tolist() == [1, -1]
    conditioned(model, cond)(torch.zeros(1, 1, 2, 2), 1.0)
    assert seen[1] is cond


def test_scipy_agrees_that_the_mixture_is_one() -> None:
    """The oracle itself: Tweedie, by a finite difference of the log-density."""
    s, h, x = 0.6, 1e-5, X[:, :1].numpy()[:, 0]

    def log_density(v: np.ndarray) -> np.ndarray:
        return np.log(sum(w * norm(m, math.sqrt(VAR + s**2)).pdf(v) * norm(m, math.sqrt(VAR + s**2)).pdf(X[:, 1].numpy())
                          for w, m in zip(SHARE.tolist(), MEANS.tolist(), strict=True)))

    score = (log_density(x + h) - log_density(x - h)) / (2 * h)
    np.testing.assert_allclose(mixture(X, s)[:, 0].numpy(), x + s**2 * score, rtol=1e-6)
