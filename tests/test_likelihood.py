"""Log-likelihood along the probability flow against closed forms: Gaussian data and a mixture, whose denoisers are exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.layers import attention
from pixelkiln.solvers.likelihood import ode_log_prob, signs

MEANS = torch.tensor([[-0.5, 0.2, 0.1], [0.6, -0.3, 0.4]], dtype=torch.float64)
LOW, HIGH = 0.01, 4000.0  # the end's mean m is not the prior's, which leaves an error of the order m / s_max


def mixture(x: Tensor, s: float, var: float) -> tuple[Tensor, Tensor]:
    """E[x0 | x] and log p_s(x) of a mixture of two Gaussians of variance var with equal weights, both (B, 3) and (B,)."""
    total = var + s**2
    apart = x[:, None] - MEANS  # (B, 2, 3)
    log_p = -0.5 * apart.square().sum(-1) / total - 1.5 * math.log(2 * math.pi * total) - math.log(2)
    weight = log_p.softmax(1)[..., None]
    return (weight * (MEANS + var / total * apart)).sum(1), log_p.logsumexp(1)


def exact(num: int) -> Tensor:
    """The three unit vectors times sqrt(3): with them Hutchinson's estimate is the trace."""
    return (3**0.5 * torch.eye(3, dtype=torch.float64))[:, None].expand(3, num, 3)


def points(num: int) -> Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gaussian_data_have_their_density():
    """N(m, V), whose prior at s_max is taken as N(0, V + s_max^2)."""
    mu, var, x = torch.tensor([0.3, -0.7, 0.1]).double(), 0.3, points(50)
    found = ode_log_prob(
        lambda x, s: mu + var / (var + s**2) * (x - mu), x, LOW, HIGH, std=math.sqrt(var + HIGH**2), steps=150, probes=exact(50)
    )
    at = var + LOW**2
    want = -0.5 * (x - mu).square().sum(1) / at - 1.5 * math.log(2 * math.pi * at)
    assert (found - want).abs().max() < 2e-3


@pytest.mark.parametrize(("steps", "tol"), [(25, 0.2), (200, 2e-3)])
def test_a_mixture_has_its_density(steps: int, tol: float):
    var, x = 0.05, 0.5 * points(50)
    found = ode_log_prob(lambda x, s: mixture(x, s, var)[0], x, LOW, HIGH, std=HIGH, steps=steps, probes=exact(50))
    assert (found - mixture(x, LOW, var)[1]).abs().max() < tol


def test_the_order_is_four():
    var, x = 0.05, 0.5 * points(20)
    run = lambda n: ode_log_prob(lambda x, s: mixture(x, s, var)[0], x, LOW, HIGH, std=HIGH, steps=n, probes=exact(20))
    fine = run(1280)
    a, b = ((run(n) - fine).abs().mean().item() for n in (80, 160))
    assert 3.3 < math.log2(a / b) < 4.7


def test_hutchinsons_estimate_is_unbiased():
    """The mean over all 2^3 sign vectors is the exact trace, and that over random ones falls to it as 1 / sqrt(K)."""
    var, x = 0.05, 0.5 * points(5)
    denoise = lambda x, s: mixture(x, s, var)[0]
    want = ode_log_prob(denoise, x, LOW, HIGH, std=HIGH, steps=20, probes=exact(5))
    every = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]).double()[:, None].expand(8, 5, 3)
    assert torch.allclose(ode_log_prob(denoise, x, LOW, HIGH, std=HIGH, steps=20, probes=every), want, atol=1e-9)
    many = signs(1, (4000, 3), torch.Generator().manual_seed(1))
    assert set(many.unique().tolist()) == {-1.0, 1.0}
    one = ode_log_prob(denoise, x[:1].expand(4000, 3), LOW, HIGH, std=HIGH, steps=20, probes=many)
    assert one.std() > 0.01
    assert abs(float(one.mean() - want[0])) < 4 * float(one.std()) / 4000**0.5


def test_gradients_are_taken_inside_and_reach_no_parameter(monkeypatch: pytest.MonkeyPatch):
    """Under no_grad, through attention of both kinds: plain products for short sequences, the fused kernel otherwise."""
    torch.manual_seed(0)
    net = attention.SelfAttention2d(4)
    nn.init.normal_(net.proj.weight)
    x, probes = torch.randn(2, 4, 5, 5), signs(2, (2, 4, 5, 5), torch.Generator().manual_seed(0))
    found = []
    for short in (256, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        with torch.no_grad():
            found.append(ode_log_prob(lambda x, s: net(x) / (1 + s), x, 0.1, 10.0, std=10.0, steps=3, probes=probes))
    assert torch.isfinite(found[0]).all()
    assert torch.allclose(*found, atol=1e-2)
    assert all(p.grad is None for p in net.parameters())
