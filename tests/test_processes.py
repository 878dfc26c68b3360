"""Gaussian paths and conversions against quadrature, the papers' tables and algebra; every round trip is in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pixelkiln.processes import GaussianPath, cosine_path, linear_path, target, times, to_eps, to_v, to_x0

PATHS = [linear_path(), cosine_path()]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_linear_path_is_the_integral_of_beta():
    for t in (1e-3, 0.02, 0.3, 1.0):
        integral = quad(lambda u: 0.1 + 19.9 * u, 0, t)[0]
        assert linear_path().alpha(f64(t)).item() == pytest.approx(math.exp(-integral / 2), rel=1e-12)
        assert linear_path().sigma(f64(t)).item() == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-10)


@pytest.mark.parametrize("num_steps", [100, 1000, 4000])
def test_linear_path_is_the_limit_of_the_table_rescaled_by_1000_over_T(num_steps: int):
    beta = np.linspace(1e-4, 0.02, num_steps) * 1000 / num_steps
    table = np.cumsum(np.log1p(-beta))  # log alpha_bar
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    ours = 2 * linear_path().alpha(t).log()
    late = slice(num_steps // 5, None)
    assert np.abs(ours.numpy()[late] / table[late] - 1).max() < 0.12 * math.sqrt(100 / num_steps) + 0.02
    assert 2e-6 < math.exp(table[-1]) < 1e-4  # an unscaled table ends at 0.36 for T = 100 and at 1e-18 for T = 4000


def test_cosine_path_is_equation_17():
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1e-3, 0.1, 0.5, 0.9, cosine_path().t_max):
        assert cosine_path().alpha(f64(t)).item() ** 2 == pytest.approx(f(t) / f(0), rel=1e-10)


@paths
def test_alpha_and_sigma_keep_the_variance_and_agree_with_ratio_and_snr(path: GaussianPath):
    t = torch.linspace(path.t_min, path.t_max, 999, dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    assert torch.allclose(a**2 + s**2, torch.ones_like(a), rtol=1e-14, atol=0)
    assert torch.allclose(s / a, path.ratio(t), rtol=1e-14, atol=0)
    assert torch.allclose(path.log_snr(t), (a**2 / s**2).log(), rtol=1e-13, atol=1e-13)
    assert torch.allclose(path.snr(t), a**2 / s**2, rtol=1e-13, atol=0)
    assert (path.ratio(t).diff() > 0).all()
    assert path.sigma(f64(0.0)).item() == 0
    assert path.alpha(f64(0.0)).item() == 1


@paths
def test_time_of_level_is_the_exact_inverse(path: GaussianPath):
    t = torch.cat([torch.logspace(-6, -2, 50, dtype=torch.float64), torch.linspace(0.01, path.t_max, 500, dtype=torch.float64)])
    assert torch.allclose(path.t_of_ratio(path.ratio(t)), t, rtol=1e-10, atol=0)
    s = torch.logspace(-3, 2, 100, dtype=torch.float64)
    assert torch.allclose(path.ratio(path.t_of_ratio(s)), s, rtol=1e-10, atol=0)


@paths
def test_small_times_do_not_cancel(path: GaussianPath):
    """s^2 near 0 against its derivative: 1 - alpha^2, taken naively, has lost eight digits there."""
    t = 1e-9
    slope = 0.1 if path.name == "linear" else math.pi / 1.008 * math.tan(math.pi / 2 * 0.008 / 1.008)  # d(s^2)/dt at 0
    assert path.ratio(f64(t)).item() ** 2 == pytest.approx(slope * t, rel=1e-5)


def test_ends_of_the_paths():
    assert -math.log(cosine_path().s_max) == pytest.approx(-5.1, abs=1e-9)
    assert cosine_path().t_max < 1
    assert cosine_path().s_min < 1 / 127.5  # the offset's purpose: less than one 8-bit step (Nichol and Dhariwal, section 3.2)
    assert linear_path().s_max == pytest.approx(math.sqrt(math.exp(10.05) - 1), rel=1e-12)
    assert linear_path().s_min == pytest.approx(0.01, rel=0.06)  # Ho's beta_1 = 1e-4
    assert linear_path() == linear_path()


@pytest.mark.parametrize(("kind", "other"), list(itertools.product(["eps", "x0", "v"], repeat=2)))
@paths
def test_conversions_round_trip(path: GaussianPath, kind: str, other: str):
    gen = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 3, 2, 2, dtype=torch.float64, generator=gen)
    t = torch.linspace(path.t_min, path.t_max, 64, dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    xt = path.noised(x0, eps, t)
    to = {"eps": to_eps, "x0": to_x0, "v": to_v}
    truth = {"eps": eps, "x0": x0, "v": target("v", x0, eps, a, s)}
    there = to[other](kind, truth[kind], xt, a, s)
    assert torch.allclose(there, truth[other], atol=1e-9)
    assert torch.allclose(to[kind](other, there, xt, a, s), truth[kind], atol=1e-9)


def test_velocity_is_the_derivative_along_the_circle():
    """v = d xt / d phi with alpha = cos phi, sigma = sin phi (Salimans and Ho 2022, appendix D), by finite differences."""
    x0, eps, phi, h = f64(0.3), f64(-1.1), 0.7, 1e-6
    xt = [math.cos(p) * x0 + math.sin(p) * eps for p in (phi - h, phi + h)]
    assert target("v", x0, eps, math.cos(phi), math.sin(phi)).item() == pytest.approx(((xt[1] - xt[0]) / (2 * h)).item(), rel=1e-8)


def test_conversions_hold_for_paths_that_do_not_keep_the_variance():
    x0, eps = f64(0.5, 2.0), f64(1.0, -1.0)
    a, s = f64(0.75, 0.5), f64(0.25, 0.5)
    xt = a * x0 + s * eps
    v = a * eps - s * x0
    assert torch.allclose(to_x0("v", v, xt, a, s), x0)
    assert torch.allclose(to_eps("v", v, xt, a, s), eps)
    assert torch.allclose(to_v("eps", eps, xt, a, s), v)
    assert torch.allclose(to_v("x0", x0, xt, a, s), v)


@paths
def test_bfloat16_images_get_the_noise_of_float64(path: GaussianPath):
    """Coefficients cast before the square root give the first levels no noise at all."""
    gen = torch.Generator().manual_seed(0)
    eps = torch.randn(1, 1, 400, 400, generator=gen).bfloat16()
    for t in (path.t_min, 2 * path.t_min, 0.01, 0.1):
        noise = path.noised(torch.zeros_like(eps), eps, f64(t))
        assert noise.dtype == torch.bfloat16
        assert (noise.double().std() / eps.double().std() / path.sigma(f64(t))).item() == pytest.approx(1, abs=0.005)


def test_bfloat16_conversions_use_wide_coefficients():
    path, t = linear_path(), f64(0.005)
    out = torch.ones(1, 4, dtype=torch.bfloat16)
    x0 = to_x0("eps", out, torch.ones(1, 4), path.alpha(t), path.sigma(t))
    assert x0.dtype == torch.float32
    assert x0[0, 0].item() == pytest.approx(((1 - path.sigma(t)) / path.alpha(t)).item(), rel=1e-6)


def test_times_are_one_in_each_stratum_and_uniform():
    torch.manual_seed(0)
    t = times(1000, t_max=0.9, t_min=0.1)
    cell = ((t.double() - 0.1) / 0.8 * 1000).floor()
    assert cell.sort().values.tolist() == list(range(1000))
    assert cell.tolist() != list(range(1000))  # otherwise the first images of a batch would always get the least noise
    draws = torch.stack([times(4, 1.0, 0.0) for _ in range(2000)])[:, 0]
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.005)
    torch.manual_seed(3)
    a = times(8, 1.0)
    torch.manual_seed(3)
    assert torch.equal(a, times(8, 1.0))


@paths
def test_only_the_result_is_rounded_to_bfloat16(path: GaussianPath):
    gen = torch.Generator().manual_seed(4)
    x0, eps = torch.randn(2, 1, 10_000, generator=gen).bfloat16()
    for t in (0.01, 0.3, 0.8):
        a, s = path.alpha(f64(t)), path.sigma(f64(t))
        for coefs in ((a, s), (a[0], s[0]), (a.item(), s.item())):  # per sample, one for all, numbers
            got = target("v", x0, eps, *coefs)
            assert (got == (a * eps.double() - s * x0.double()).bfloat16()).double().mean() > 0.999
