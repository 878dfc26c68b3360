"""The denoising loss: its weights against the papers' forms and against each other, its values against plain loops."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from pixelkiln.objectives.denoising import Weighting, denoising_loss, loss_weight
from pixelkiln.processes import PATHS, Kind, convert, cosine_path, linear_path, target, to_eps, to_v

KINDS = ["eps", "x0", "v"]
WEIGHTINGS = ["uniform", "snr", "min-snr", "soft-min-snr"]
SNR = torch.logspace(-5, 5, 41, dtype=torch.float64)


def test_min_snr_has_the_papers_three_forms():
    g = 5.0
    for snr in SNR.tolist():
        expect = {"x0": min(snr, g), "eps": min(snr, g) / snr, "v": min(snr, g) / (snr + 1)}
        for kind in KINDS:
            assert loss_weight(kind, "min-snr", torch.tensor([snr], dtype=torch.float64), g).item() == pytest.approx(
                expect[kind], rel=1e-12
            )


def test_min_snr_caps_from_above():
    """The clamp was the wrong way round in a well-known repository for three years."""
    w = loss_weight("x0", "min-snr", torch.tensor([0.01, 1.0, 1e4]))
    assert torch.allclose(w, torch.tensor([0.01, 1.0, 5.0]))
    assert loss_weight("v", "min-snr", torch.tensor([1e4])).item() == pytest.approx(5 / 10001, rel=1e-5)  # not 5 / 5


def test_soft_min_snr_is_the_edm_form():
    sigma, sd = SNR.rsqrt(), 0.5
    assert torch.allclose(loss_weight("x0", "soft-min-snr", SNR, gamma=1 / sd**2), 1 / (sigma**2 + sd**2), rtol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_one_weighting_is_the_same_loss_in_every_parameterization(weighting: str):
    """|eps error|^2 = SNR |x0 error|^2 and |v error|^2 = (SNR + 1) |x0 error|^2 for one and the same prediction."""
    path, gen = cosine_path(), torch.Generator().manual_seed(1)
    x0, eps, guess = torch.randn(3, 32, 1, 4, 4, dtype=torch.float64, generator=gen)
    t = torch.linspace(0.02, 0.98, 32, dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    as_kind = {"x0": lambda xt: guess, "eps": lambda xt: to_eps("x0", guess, xt, a, s), "v": lambda xt: to_v("x0", guess, xt, a, s)}
    losses = [denoising_loss(lambda xt, t, f=as_kind[k]: f(xt), x0, eps, t, path, k, weighting) for k in KINDS]
    assert losses[0].shape == (32,)
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    assert torch.allclose(losses[0], losses[2], rtol=1e-4)


@pytest.mark.parametrize(("kind", "weighting"), list(itertools.product(KINDS, WEIGHTINGS)))
def test_zero_and_infinite_snr(kind: str, weighting: str):
    zero, inf = loss_weight(kind, weighting, torch.tensor([0.0, torch.inf])).tolist()
    assert zero == 1  # never 0 / 0, never 0: the first sampling step starts there
    assert inf >= 0
    assert inf < torch.inf or (kind, weighting) == ("x0", "snr")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_over_the_image_and_nothing_over_the_batch(kind: str):
    path, gen = linear_path(), torch.Generator().manual_seed(2)
    x0, eps, out = torch.randn(3, 4, 3, 2, 5, generator=gen)
    t = torch.tensor([0.01, 0.2, 0.5, 1.0])
    seen: list[Tensor] = []

    def predict(xt: Tensor, at: Tensor) -> Tensor:
        seen.extend([xt, at])
        return out

    loss = denoising_loss(predict, x0, eps, t, path, kind, "min-snr", gamma=3.0)
    assert loss.dtype == torch.float32
    assert torch.equal(seen[1], t)
    for i in range(4):
        a, s = path.alpha(t[i]).item(), path.sigma(t[i]).item()
        assert torch.allclose(seen[0][i], a * x0[i] + s * eps[i], atol=1e-6)
        snr = a**2 / s**2
        w = min(snr, 3.0) / {"x0": 1, "eps": snr, "v": snr + 1}[kind]
        want = {"x0": x0[i], "eps": eps[i], "v": a * eps[i] - s * x0[i]}[kind]
        assert loss[i].item() == pytest.approx(w * ((out[i] - want) ** 2).sum().item() / 30, rel=1e-4)


def test_the_best_prediction_for_gaussian_data_is_the_posterior_mean():
    """Minimise over one scalar k in x0_hat = k xt, data N(0, 1): the optimum is alpha, and the loss there 1 - alpha^2 = sigma^2."""
    path, gen = cosine_path(), torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 20000, 1, 1, 1, generator=gen)
    t = torch.full((20000,), 0.4)
    a, s = path.alpha(t[:1]).item(), path.sigma(t[:1]).item()
    loss = {k: denoising_loss(lambda xt, t, k=k: k * xt, x0, eps, t, path, "x0").mean().item() for k in (a - 0.1, a, a + 0.1)}
    assert loss[a] == pytest.approx(s**2, rel=0.03)
    assert loss[a] < min(loss[a - 0.1], loss[a + 0.1])


def test_low_precision_output_gives_a_float32_loss_with_gradient():
    path = linear_path()
    w = torch.zeros(1, requires_grad=True)
    x0, eps, t = torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.tensor([0.1, 0.9])
    loss = denoising_loss(lambda xt, t: (w * xt).bfloat16(), x0, eps, t, path, "v")
    assert loss.dtype == torch.float32
    v = target("v", x0, eps, path.alpha(t), path.sigma(t))
    assert torch.allclose(loss, v.square().mean((1, 2, 3)), rtol=1e-5)
    loss.mean().backward()
    assert w.grad is not None
    assert w.grad.abs().item() > 0


ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
ALL_WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@pytest.mark.parametrize("weighting", [w for w in ALL_WEIGHTINGS if w != "uniform"])
@pytest.mark.parametrize("name", list(PATHS))
def test_one_weighting_is_the_same_loss_for_every_kind_on_every_path(name: str, weighting: Weighting):
    """One guess of x0, told as each of the six kinds, costs the same; on every path, in float32 losses."""
    path, gen = PATHS[name](), torch.Generator().manual_seed(5)
    x0, eps, guess = torch.randn(3, 24, 1, 4, 4, dtype=torch.float64, generator=gen)
    t = path.t_of_ratio(torch.logspace(-1.5, 1.5, 24, dtype=torch.float64))
    a, s = path.alpha(t), path.sigma(t)
    losses = [
        denoising_loss(lambda xt, t, k=k: convert("x0", k, guess, xt, a, s, 0.7), x0, eps, t, path, k, weighting, sigma_data=0.7)
        for k in ALL_KINDS
    ]
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0], rtol=2e-3)


def test_p2_divides_l_simple():
    for k in (0.5, 1.0):
        assert torch.allclose(loss_weight("eps", "p2", SNR, k), (1 + SNR) ** -k, rtol=1e-12)
        assert torch.allclose(loss_weight("x0", "p2", SNR, k), SNR * (1 + SNR) ** -k, rtol=1e-12)
    assert torch.equal(loss_weight("eps", "p2", SNR), loss_weight("eps", "p2", SNR, 1.0))


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_edm_is_weight_one_on_F(sd: float):
    s = SNR.rsqrt()
    assert torch.allclose(loss_weight("F", "edm", SNR, sigma_data=sd), torch.ones_like(SNR), rtol=1e-12)
    assert torch.allclose(loss_weight("x0", "edm", SNR, sigma_data=sd), (s**2 + sd**2) / (s * sd) ** 2, rtol=1e-12)
    if sd == 1:
        assert torch.allclose(loss_weight("v", "edm", SNR, sigma_data=sd), torch.ones_like(SNR), rtol=1e-12)


def test_soft_min_snr_on_F_is_the_known_form():
    """(s sd)^2 / (s^2 + sd^2)^2 on the error of F is 1 / (s^2 + sd^2) on that of x0."""
    s, sd = SNR.rsqrt(), 0.5
    ours = loss_weight("F", "soft-min-snr", SNR, gamma=sd**-2, sigma_data=sd)
    assert torch.allclose(ours, (s * sd) ** 2 / (s**2 + sd**2) ** 2, rtol=1e-12)


def test_gamma_is_the_weightings_own_unless_given():
    for weighting, gamma in (("min-snr", 5.0), ("soft-min-snr", 5.0), ("p2", 1.0)):
        assert torch.equal(loss_weight("v", weighting, SNR), loss_weight("v", weighting, SNR, gamma))
        assert not torch.equal(loss_weight("v", weighting, SNR), loss_weight("v", weighting, SNR, 2 * gamma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "weighting"), list(itertools.product(ALL_KINDS, ALL_WEIGHTINGS)))
def test_no_weight_is_nan_or_infinite_anywhere_and_none_is_lost_at_pure_noise(kind: Kind, weighting: Weighting, dtype: torch.dtype):
    weight = loss_weight(kind, weighting, torch.tensor([0.0, 1e-30, 1e-8, 1e-3, 1.0, 1e8, 1e30, torch.inf], dtype=dtype))
    assert weight.dtype == dtype
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert 1 <= weight[0] <= 4  # 4 where the limit is 1 / sd^2


@pytest.mark.parametrize("name", ["flow", "linear-zero-snr"])
@pytest.mark.parametrize(("kind", "weighting"), list(itertools.product(["x0", "v", "velocity", "F", "eps"], ALL_WEIGHTINGS)))
def test_pure_noise_is_trained(name: str, kind: Kind, weighting: Weighting):
    """At t = 1 the network sees eps itself, and its loss has a gradient."""
    path, gen = PATHS[name](), torch.Generator().manual_seed(6)
    x0, eps = torch.randn(2, 2, 1, 4, 4, generator=gen)
    w = torch.zeros(1, requires_grad=True)

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        assert torch.equal(xt, eps)
        return w * xt + 1

    loss = denoising_loss(predict, x0, eps, torch.ones(2, dtype=torch.float64), path, kind, weighting).mean()
    loss.backward()
    assert loss.isfinite()
    assert w.grad is not None
    assert w.grad.isfinite().all()
    assert w.grad.abs().item() > 1e-3
