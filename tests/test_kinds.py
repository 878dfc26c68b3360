"""What a network predicts: every pair of kinds on every path, against autograd, finite differences and the definition of EDM."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from pixelkiln.processes import PATHS, GaussianPath, Kind, convert, flow_path, linear_path, precondition, target, to_x0

KINDS: tuple[Kind, ...] = get_args(Kind)
ALL = {name: make() for name, make in PATHS.items()}
SD = 0.5


def drawn(n: int) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x0, eps


def times(path: GaussianPath, n: int) -> Tensor:
    ends = torch.logspace(-9, -2, n // 4, dtype=torch.float64)
    inner = torch.linspace(path.t_min, path.t_top, n - 2 * (n // 4), dtype=torch.float64)
    return torch.cat([path.t_min + ends, inner, path.t_top - ends]).clamp(path.t_min, path.t_top)


def worst(ours: Tensor, truth: Tensor) -> float:
    """The largest relative error of a sample."""
    return ((ours - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize(("kind", "to"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("name", list(ALL))
def test_every_pair_on_every_path_there_and_back(name: str, kind: Kind, to: Kind):
    path, n = ALL[name], 40
    x0, eps = drawn(n)
    t = times(path, n)
    a, s = path.alpha(t), path.sigma(t)
    xt = path.noised(x0, eps, t)
    known = {k: target(k, x0, eps, a, s, SD) for k in KINDS}
    there = convert(kind, to, known[kind], xt, a, s, SD)
    assert worst(there, known[to]) < 1e-10
    assert worst(convert(to, kind, there, xt, a, s, SD), known[kind]) < 1e-10


@pytest.mark.parametrize("name", ["flow", "linear-zero-snr"])
@pytest.mark.parametrize(("kind", "to"), list(itertools.product(["x0", "v", "velocity", "F"], KINDS)))
def test_at_pure_noise_all_but_eps_and_score_still_convert(name: str, kind: Kind, to: Kind):
    x0, eps = drawn(3)
    path, t = ALL[name], torch.ones(3, dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    out = convert(kind, to, target(kind, x0, eps, a, s, SD), eps, a, s, SD)
    assert worst(out, target(to, x0, eps, a, s, SD)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "flow", "subvp"])
@pytest.mark.parametrize(("kind", "to"), list(itertools.product(["eps", "v", "velocity", "F"], ["x0", "v", "velocity", "F"])))
def test_without_noise_all_but_x0_and_score_still_convert(name: str, kind: Kind, to: Kind):
    x0, eps = drawn(3)
    path, t = ALL[name], torch.zeros(3, dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    out = convert(kind, to, target(kind, x0, eps, a, s, SD), x0, a, s, SD)
    assert worst(out, target(to, x0, eps, a, s, SD)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "laplace", "linear-zero-snr"])
def test_with_unit_data_F_is_minus_v(name: str):
    x0, eps = drawn(40)
    t = times(ALL[name], 40)
    a, s = ALL[name].alpha(t), ALL[name].sigma(t)
    assert worst(target("F", x0, eps, a, s, 1.0), -target("v", x0, eps, a, s)) < 1e-12


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("sd", [0.5, 1.0, 3.0])
def test_F_is_what_the_preconditioned_network_must_output(name: str, sd: float):
    """D(x) = c_skip x + c_out F(c_in x, c_noise) = x0 in variance-exploding coordinates, Karras et al. 2022, eq. 7, written out."""
    path, (x0, eps) = ALL[name], drawn(40)
    t = times(path, 40)
    s, xt = path.ratio(t)[:, None, None, None], path.noised(x0, eps, t)
    skip, out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    F = target("F", x0, eps, path.alpha(t), path.sigma(t), sd)
    assert worst(skip * xt / path.alpha(t)[:, None, None, None] + out * F, x0) < 1e-10
    c = precondition(path.ratio(t), sd)
    assert torch.allclose(c.c_skip, skip.flatten(), rtol=1e-12)
    assert torch.allclose(c.c_out, out.flatten(), rtol=1e-12)
    assert torch.allclose(c.c_noise, path.ratio(t).log() / 4, rtol=1e-12)


@pytest.mark.parametrize("s", [0.002, 0.1, 0.5, 80.0])
def test_preconditioning_gives_input_and_target_unit_variance(s: float):
    x0, eps = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0, level = 0.5 * x0, torch.tensor(s, dtype=torch.float64)
    assert (precondition(level, 0.5).c_in * (x0 + s * eps)).std().item() == pytest.approx(1, abs=0.01)
    assert target("F", x0, eps, 1.0, level, 0.5).std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", list(ALL))
def test_score_is_the_gradient_of_the_log_density(name: str):
    path, (x0, eps) = ALL[name], drawn(1)
    for s in (path.s_min, 0.7, path.s_max):
        t = path.t_of_ratio(torch.tensor([s], dtype=torch.float64))
        a, sigma = path.alpha(t).item(), path.sigma(t).item()
        law = lambda xt, a=a, sigma=sigma: torch.distributions.Normal(a * x0, sigma).log_prob(xt).sum()
        xt = path.noised(x0, eps, t)
        assert worst(target("score", x0, eps, a, sigma), jacobian(law, xt)) < 1e-8


def test_velocity_is_the_time_derivative_of_the_straight_path_and_v_of_none_such():
    path, (x0, eps), h = flow_path(), drawn(1), 1e-6
    t = torch.tensor([0.3], dtype=torch.float64)
    slope = (path.noised(x0, eps, t + h) - path.noised(x0, eps, t - h)) / (2 * h)
    assert worst(target("velocity", x0, eps, path.alpha(t), path.sigma(t)), slope) < 1e-8
    assert worst(convert("v", "velocity", target("v", x0, eps, 0.7, 0.3), path.noised(x0, eps, t), 0.7, 0.3), slope) < 1e-8


def test_coefficients_may_be_numbers_scalars_or_one_a_sample():
    x0, eps = drawn(4)
    a, s = linear_path().alpha(torch.tensor(0.4)), linear_path().sigma(torch.tensor(0.4))
    xt = a * x0 + s * eps
    for kind in KINDS:
        for coefs in ((a, s), (a.item(), s.item()), (a.expand(4), s.expand(4))):
            assert worst(to_x0(kind, target(kind, x0, eps, *coefs), xt, *coefs), x0) < 1e-12


def test_only_the_result_is_rounded():
    """bfloat16 images, float64 coefficients: each result is the rounding of the exact one."""
    path, gen = linear_path(), torch.Generator().manual_seed(4)
    out, xt = torch.randn(2, 1, 10_000, generator=gen).bfloat16()
    for s in (0.0105, 0.3, 3.0):
        t = path.t_of_ratio(torch.tensor([s], dtype=torch.float64))
        a, sigma = path.alpha(t), path.sigma(t)
        for kind, to in itertools.permutations(KINDS, 2):
            exact = convert(kind, to, out.double(), xt.double(), a, sigma)
            got = convert(kind, to, out, xt, a, sigma)
            assert got.dtype == torch.bfloat16
            assert ((got - exact).abs() <= exact.abs() * 2**-8 + 1e-3 * exact.abs().max()).all()
            assert (got == exact.bfloat16()).double().mean() > 0.99
