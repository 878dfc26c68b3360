"""The IWAE against quadrature and a linear Gaussian model, of which log p(x) is known, and against the VAE."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, UserError
from pixelkiln.methods.iwae import IWAE, IWAEConfig, iwae
from pixelkiln.methods.vae import VAE, VAEConfig
from pixelkiln.objectives import variational as vi

SMALL = IWAEConfig(latent=3, width=12, depth=1, samples=4, flow_width=8, flow_layers=3)
START = Moment(0, 100, 0)
W, S, X = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64), 0.6, torch.tensor([0.9, 0.2, 1.1], dtype=torch.float64)  # x = W z + S noise


def images(n: int, side: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(0, 2, (n, 1, side, side), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1  # binary already


def built(config: IWAEConfig, side: int = 4, seed: int = 0) -> IWAE:
    torch.manual_seed(seed)
    return IWAE(DataInfo(ImageShape(1, side, side)), config)


def loss(method: IWAE | VAE, x: Tensor, moment: Moment = START, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(method.loss(Batch(x), moment))


def log_w(z: Tensor, mean: Tensor, log_var: Tensor, scale: Tensor, weight: float = 1.0) -> Tensor:
    """log p(x|z) + weight (log p(z) - log q(z|x)) of the toy, by torch's distributions; z (...,), the decoder is scale * W."""
    normal = torch.distributions.Normal
    log_p = normal(z[..., None] * scale * W, S).log_prob(X).sum(-1)
    return log_p + weight * (normal(torch.zeros_like(z), 1.0).log_prob(z) - normal(mean, (log_var / 2).exp()).log_prob(z))


def parameters() -> list[Tensor]:
    """mean and log-variance of a wrong q, and the decoder's scale."""
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -1.0, 1.0)]


def by_quadrature(weight: float) -> tuple[float, list[float]]:
    """L_2 of the toy and its gradient, as the double integral over both draws (Gauss-Hermite, 60 x 60)."""
    mean, log_var, scale = params = parameters()
    node, mass = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    each = log_w(vi.reparameterize(mean, log_var, node), mean, log_var, scale, weight)  # (60,)
    both = torch.logaddexp(each[:, None], each[None]) - math.log(2)
    bound = (both * mass[:, None] * mass[None]).sum() / mass.sum() ** 2
    return float(bound.detach()), [float(g) for g in torch.autograd.grad(bound, params)]


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_both_gradients_are_those_of_the_integral(gradient: str, weight: float) -> None:
    mean, log_var, scale = params = parameters()
    n = 400_000
    z = vi.reparameterize(mean, log_var, torch.randn(2, n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    if gradient == "dreg":
        bound = vi.doubly_reparameterized(log_w(z[..., 0], mean.detach(), log_var.detach(), scale, weight), z, weight)
    else:
        bound = vi.importance_bound(log_w(z[..., 0], mean, log_var, scale, weight))
    found = [float(g) for g in torch.autograd.grad(bound.mean(), params)]
    exact, expected = by_quadrature(weight)
    assert float(bound.detach().mean()) == pytest.approx(exact, abs=0.01)
    assert found == pytest.approx(expected, abs=0.012)
    assert min(abs(g) for g in expected) > 0.05  # so that a missing part would show


def test_doubly_reparameterized_gradient_vanishes_at_the_true_posterior() -> None:
    """There all weights are log p(x), whatever z: no noise is left for the encoder. The plain gradient keeps the score's noise."""
    var = 1 / (1 + float(W @ W) / S**2)
    mean, log_var = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (var * float(W @ X) / S**2, math.log(var)))
    one, eps = torch.ones((), dtype=torch.float64), torch.randn(5, 1, 1, dtype=torch.float64)
    z = vi.reparameterize(mean, log_var, eps)
    weights = log_w(z[..., 0], mean.detach(), log_var.detach(), one)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.outer(W, W) + S**2 * torch.eye(3, dtype=torch.float64)).log_prob(X)
    torch.testing.assert_close(weights.detach(), exact.expand(5, 1))
    quiet = torch.autograd.grad(vi.doubly_reparameterized(weights, z).sum(), [mean, log_var])
    z = vi.reparameterize(mean, log_var, eps)
    noisy = torch.autograd.grad(vi.importance_bound(log_w(z[..., 0], mean, log_var, one)).sum(), [mean, log_var])
    assert max(abs(float(g)) for g in quiet) < 1e-10 < 0.01 < min(abs(float(g)) for g in noisy)


def test_gradient_weighs_samples_by_their_normalized_weights() -> None:
    """Eq. 14. Of losses 100, 101, 105, 110 the first counts most; the published mistake gives the last one 99.3 % and a higher loss than the mean."""
    losses = torch.tensor([100.0, 101.0, 105.0, 110.0], requires_grad=True)
    bound = vi.importance_bound(-losses.view(4, 1)).sum()
    (share,) = torch.autograd.grad(-bound, losses)
    assert float(-bound.detach()) == pytest.approx(101.07, abs=0.01)
    torch.testing.assert_close(share, torch.tensor([0.7275, 0.2676, 0.0049, 0.0000]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "gaussian", "logistic"])
@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_one_sample_is_the_vae(likelihood: str, gradient: str) -> None:
    """Same nets, same randomness: with a flow for a prior, whose KL the VAE samples too, the loss is the same number, and so is the plain gradient."""
    method = built(replace(SMALL, samples=1, prior="flow", likelihood=likelihood, gradient=gradient))
    vae = VAE(method.info, VAEConfig(3, "mlp", 12, 1, prior="flow", flow_width=8, flow_layers=3, likelihood=likelihood))
    vae.load_state_dict(method.state_dict())
    ours, theirs = loss(method, images(16)), loss(vae, images(16))
    for name in ("loss", "rec", "kl"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    if gradient == "plain":
        a, b = (torch.autograd.grad(terms["loss"], list(m.parameters())) for terms, m in ((ours, method), (theirs, vae)))
        for g, h in zip(a, b, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
def test_one_sample_is_the_vae_in_the_mean_under_the_normal_prior(likelihood: str) -> None:
    """There the VAE's KL has a closed form, which the IWAE must not use: equal only in the mean over many draws."""
    method, x = built(replace(SMALL, samples=1, likelihood=likelihood)), images(4).repeat(2000, 1, 1, 1)
    vae = VAE(method.info, VAEConfig(3, "mlp", 12, 1, likelihood=likelihood))
    vae.load_state_dict(method.state_dict())
    assert float((loss(method, x)["loss"] - loss(vae, x)["loss"]).detach()) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_the_loss_is_the_bound_and_rises_with_samples_to_the_integral(gradient: str) -> None:
    """The logged loss is the bound itself, not a surrogate with the right gradient; log p(x) is a sum over a grid of two units."""
    x = images(3)
    method = built(replace(SMALL, latent=2, gradient=gradient))
    line = torch.linspace(-8, 8, 161)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        joint = torch.stack([method.log_likelihood(row.expand(len(grid), 1, 4, 4), grid) for row in x]) + method.log_prior(grid)
    exact = float((torch.logsumexp(joint, 1) + 2 * math.log(0.1)).mean())
    bounds = []
    for k in (1, 4, 64):
        more = built(replace(SMALL, latent=2, gradient=gradient, samples=k))
        more.load_state_dict(method.state_dict())
        bounds.append(-float(loss(more, x.repeat(1000, 1, 1, 1))["loss"].detach()))
    assert bounds == sorted(bounds) and bounds[0] < exact - 0.005
    assert bounds[-1] == pytest.approx(exact, abs=0.01)


def test_gradients_of_the_method_agree_in_the_mean() -> None:
    """Plain and doubly reparameterized, encoder and decoder, over the same many images; the decoder's is the same at every draw."""
    x, found = images(2).repeat(20_000, 1, 1, 1), {}
    for gradient in ("plain", "dreg"):
        method = built(replace(SMALL, gradient=gradient))
        with torch.no_grad():
            method.encoder.net[-1].bias.add_(0.5)  # type: ignore[union-attr, index, operator]  # a q that is wrong enough
        names = [name for name, _ in method.named_parameters()]
        found[gradient] = dict(zip(names, torch.autograd.grad(loss(method, x)["loss"], list(method.parameters())), strict=True))
    for name, plain in found["plain"].items():
        same = name.startswith("decoder")
        torch.testing.assert_close(found["dreg"][name], plain, atol=1e-5 if same else 0.02, rtol=1e-3 if same else 0)
    assert max(float(g.abs().max()) for n, g in found["plain"].items() if n.startswith("encoder")) > 0.2


def test_warmup_and_what_is_logged() -> None:
    method, x = built(replace(SMALL, warmup=0.2, samples=1)), images(64)
    half = loss(method, x, Moment(10, 100, 0))
    torch.testing.assert_close(half["loss"].detach(), half["rec"] + 0.5 * half["kl"])
    full = loss(built(SMALL), x)
    assert 1 <= float(full["ess"]) <= 4 and {"active_units", "kl_min", "kl_max"} <= full.keys()
    assert float(full["loss"].detach()) < float(full["rec"] + full["kl"])  # tighter than the VAE's bound at the same samples


@pytest.mark.parametrize("change", [{"samples": 0}, {"warmup": -1.0}, {"latent": 0}])
def test_mistakes_are_one_line(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(change))}") as caught:
        built(replace(SMALL, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipes(size: str) -> None:
    made = iwae(size)
    method = made.last.method(DataInfo(ImageShape(1, 28, 28)), made.last.model)
    assert made.family == "vae" and {row.opt for row in method.updates()} == set(made.last.train.opts)
