"""The beta-VAE against the closed form that it has for a linear model, and its capacity."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, UserError
from pixelkiln.methods.beta_vae import BetaVAE, BetaVAEConfig, beta_vae
from pixelkiln.objectives import variational as vi

SMALL = BetaVAEConfig(latent=3, net="mlp", width=12, depth=1)
START = Moment(0, 100, 0)


def built(config: BetaVAEConfig, side: int = 4) -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(DataInfo(ImageShape(1, side, side)), config)


def loss(method: BetaVAE, x: Tensor, moment: Moment = START, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(method.loss(Batch(x), moment))


def images(n: int, side: int = 4) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def told(**found: Tensor) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in found.items()}


def test_beta_weighs_the_sum_over_units() -> None:
    """In ELBO units, at any resolution; the log has the plain terms, and KL(q || N(0, I)) is torch's."""
    for side in (4, 8):
        method, x = built(replace(SMALL, likelihood="logistic"), side), images(16, side)
        terms = told(**loss(method, x))
        mean, log_var = method.posterior(x)
        kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_var / 2).exp()), torch.distributions.Normal(0.0, 1.0))
        assert terms["kl"] == pytest.approx(float(kl.detach().sum(1).mean()), rel=1e-4)
        assert terms["loss"] == pytest.approx(terms["rec"] + 4 * terms["kl"], rel=1e-6)
        each = kl.detach().mean(0)
        assert (terms["kl_min"], terms["kl_max"]) == pytest.approx((float(each.min()), float(each.max())), rel=1e-4)


def test_beta_is_warmed_up() -> None:
    terms = told(**loss(built(replace(SMALL, warmup=0.4)), images(8), Moment(10, 100, 0)))
    assert terms["loss"] == pytest.approx(terms["rec"] + 1.0 * terms["kl"], rel=1e-6)


def test_capacity_rises_in_a_straight_line_and_stays() -> None:
    method = built(replace(SMALL, gamma=100.0, capacity=20.0, rise=0.5))
    assert [method.allowed(Moment(k, 100, 0)) for k in (0, 25, 50, 99)] == [0.0, 10.0, 20.0, 20.0]
    assert built(replace(SMALL, gamma=1.0, capacity=7.0, rise=0.0)).allowed(START) == 7.0


def test_capacity_pulls_from_both_sides() -> None:
    """gamma |KL - C|: the same gradient as gamma KL while the KL is above C, and its opposite below."""
    x, slopes = images(16), {}
    for capacity in (0.0, 50.0):
        method = built(replace(SMALL, gamma=30.0, capacity=capacity, rise=0.0))
        terms = loss(method, x)
        plain = told(**terms)
        assert plain["loss"] == pytest.approx(plain["rec"] + 30 * abs(plain["kl"] - capacity), rel=1e-5) and plain["allowed"] == capacity
        rec = method.parts
        torch.manual_seed(0)
        slopes[capacity] = [torch.autograd.grad(part, list(method.encoder.parameters()), retain_graph=True) for part in (terms["loss"], rec(x).rec)]
    for up, down, rec in zip(slopes[0.0][0], slopes[50.0][0], slopes[0.0][1], strict=True):
        torch.testing.assert_close(up - rec, rec - down, rtol=1e-3, atol=1e-4)


DEVIATIONS = torch.tensor([0.8, 0.4, 0.2, 0.05])


def linear(**change: float) -> tuple[BetaVAE, Tensor, float]:
    """A linear encoder and decoder with fixed noise s, images whose four pixels are uncorrelated with these deviations, and s."""
    torch.manual_seed(0)
    method = BetaVAE(DataInfo(ImageShape(1, 2, 2)), replace(BetaVAEConfig(latent=4, net="mlp", depth=0, likelihood="gaussian"), **change))
    scale = method.decoder.raw_scale
    assert scale is not None
    with torch.no_grad():
        scale.fill_(math.log(0.1) / 10)
    scale.requires_grad_(False)
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    x = torch.linalg.qr(x - x.mean(0))[0] * math.sqrt(len(x)) * DEVIATIONS
    return method, x.view(-1, 1, 2, 2), float(method.decoder(torch.zeros(1, 4))[1].detach().exp())


def slope(method: BetaVAE, x: Tensor) -> tuple[float, dict[str, float]]:
    """Length of the mean loss's gradient, over a dozen draws for each image, and the terms of the last."""
    for seed in range(12):
        terms = loss(method, x, seed=seed)
        (terms["loss"] / 12).backward()
    found = [p.grad.norm() for p in method.parameters() if p.grad is not None]
    return float(torch.stack(found).norm()), told(**terms)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_linear_model_spends_what_rate_distortion_says(beta: float) -> None:
    """Where p(x|z) = N(W z, s^2) and x has variances l_i, the optimum is that of probabilistic PCA with noise beta s^2 (Tipping and Bishop 1999):
    directions with l_i > beta s^2 are used, with log(l_i / (beta s^2)) / 2 nats each, the reverse water-filling of rate-distortion theory, and the
    others are not. There the method's gradient vanishes, and nowhere else: not for another beta."""
    method, x, s = linear(beta=beta)
    variance, water = DEVIATIONS**2, beta * s**2
    w = (variance - water).clamp_min(0).sqrt()
    gain, log_var = torch.where(w > 0, w / variance, 0.0), torch.where(w > 0, water / variance, 1.0).log()
    enter, leave = method.encoder.net[0], method.decoder.net.net[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        enter.weight.copy_(torch.cat([2 * gain.diag(), torch.zeros(4, 4)]))  # the encoder sees (x + 1) / 2
        enter.bias.copy_(torch.cat([-gain, log_var]))
        leave.weight.copy_(w.diag())
        leave.bias.zero_()
    here, terms = slope(method, x)
    exact = sum(max(0.0, 0.5 * math.log(float(v) / water)) for v in variance)
    assert terms["kl"] == pytest.approx(exact, rel=1e-3)
    assert terms["active_units"] == (w > 0).sum() == 3
    other, _, _ = linear(beta=2 * beta)
    other.load_state_dict(method.state_dict())
    assert here < 0.1 * slope(other, x)[0]


def test_capacity_is_reached() -> None:
    """Trained with C rising to 1.5 nats, the KL ends there, where beta = 1 alone would take 4.1."""
    method, x, _ = linear(gamma=50.0, capacity=1.5, rise=0.5)
    opt = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 200)
    for k in range(200):
        opt.zero_grad()
        loss(method, x[128 * k % 19_000 :][:128], Moment(k, 200, 0), seed=k)["loss"].backward()
        opt.step()
        decay.step()
    with torch.no_grad():
        assert float(vi.kl_per_unit(*method.posterior(x)).sum(1).mean()) == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize("change", [{"beta": -1.0}, {"gamma": -1.0}, {"capacity": -1.0}, {"rise": -1.0}, {"latent": 0}, {"prior": "flow"}])
def test_mistakes_are_one_line(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"--model\.") as caught:
        built(replace(SMALL, **change))
    assert "\n" not in str(caught.value) and next(iter(change)) in str(caught.value)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipes(size: str) -> None:
    made = beta_vae(size)
    method = made.last.method(DataInfo(ImageShape(3, 32, 32)), made.last.model)
    assert made.family == "vae" and made.last.model.beta > 1 and {row.opt for row in method.updates()} == set(made.last.train.opts)
