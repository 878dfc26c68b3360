"""Every path against its paper's formula in fifty digits, its inverse, its ends; tables of betas against plain products and Bayes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.processes import (
    PATHS,
    GaussianPath,
    beta,
    beta_tilde,
    betas,
    cosine_path,
    flow_path,
    laplace_path,
    linear_path,
    sigmoid_path,
    zero_snr,
)
from pixelkiln.solvers import spaced

mp.mp.dps = 50
ALL = {name: make() for name, make in PATHS.items()} | {"flow shift 3": flow_path(3.0), "sigmoid 0.5": sigmoid_path(-3, 3, 0.5)}
paths = pytest.mark.parametrize("name", list(ALL))
KEEP = ["linear", "cosine", "sigmoid", "laplace", "linear-zero-snr"]  # alpha^2 + sigma^2 = 1


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(path: GaussianPath, n: int = 41) -> Tensor:
    """Times over the whole path, dense at both ends."""
    ends = torch.logspace(-9, -2, 15, dtype=torch.float64)
    inner = torch.linspace(path.t_min, path.t_top, n, dtype=torch.float64)
    return torch.cat([path.t_min + ends * 0.1, inner, path.t_top - ends * 0.1]).clamp(path.t_min, path.t_top).sort().values


def of_variance(abar: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    return lambda t: (mp.sqrt(abar(t)), mp.sqrt(1 - abar(t)))


def integral(t: Any) -> Any:
    return mp.mpf("0.1") * t + mp.mpf("19.9") * t**2 / 2


def cosine(t: Any) -> Any:
    f = lambda u: mp.cos((u + mp.mpf("0.008")) / mp.mpf("1.008") * mp.pi / 2) ** 2
    return f(t) / f(mp.mpf(0))


def sigmoid(tau: str) -> Callable[[Any], Any]:
    g = lambda z: 1 / (1 + mp.exp(-z / mp.mpf(tau)))
    return lambda t: (g(3) - g(6 * t - 3)) / (g(3) - g(-3))


def laplace(t: Any) -> Any:
    snr = mp.exp(-mp.mpf("0.5") * mp.sign(mp.mpf("0.5") - t) * mp.log(1 - 2 * abs(t - mp.mpf("0.5"))))
    return snr / (1 + snr)


def zeroed(t: Any) -> Any:
    last = mp.exp(-integral(mp.mpf(1)) / 2)
    return ((mp.exp(-integral(t) / 2) - last) / (1 - last)) ** 2


def geometric(low: float, high: float) -> Callable[[Any], tuple[Any, Any]]:
    return lambda t: (mp.mpf(1), mp.mpf(low) * (mp.mpf(high) / mp.mpf(low)) ** t)


def flow(shift: int) -> Callable[[Any], tuple[Any, Any]]:
    return lambda t: (1 - shift * t / (1 + (shift - 1) * t), shift * t / (1 + (shift - 1) * t))


PAPERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "linear": of_variance(lambda t: mp.exp(-integral(t))),
    "cosine": of_variance(cosine),
    "sigmoid": of_variance(sigmoid("1")),
    "sigmoid 0.5": of_variance(sigmoid("0.5")),
    "laplace": of_variance(laplace),
    "linear-zero-snr": of_variance(zeroed),
    "subvp": lambda t: (mp.exp(-integral(t) / 2), 1 - mp.exp(-integral(t))),
    "ve": geometric(0.02, 100.0),
    "edm": geometric(0.002, 80.0),
    "flow": flow(1),
    "flow shift 3": flow(3),
}


@paths
def test_alpha_and_sigma_are_the_papers_to_ten_digits_up_to_the_ends(name: str):
    path = ALL[name]
    t = grid(path)
    t = t[t > 0]
    truth = [PAPERS[name](mp.mpf(v)) for v in t.tolist()]
    for ours, k in ((path.alpha(t), 0), (path.sigma(t), 1)):
        assert ours.dtype == torch.float64
        wrong = max(abs(mp.mpf(a) / b[k] - 1) for a, b in zip(ours.tolist(), truth, strict=True))
        assert wrong < 1e-10, float(wrong)
    level = [b[1] / b[0] for b in truth]
    assert max(abs(mp.mpf(a) / b - 1) for a, b in zip(path.ratio(t).tolist(), level, strict=True)) < 1e-10


@paths
def test_ratio_and_time_are_inverse_to_each_other(name: str):
    path = ALL[name]
    t = grid(path)
    assert torch.allclose(path.t_of_ratio(path.ratio(t)), t, rtol=1e-12, atol=1e-15)
    s = torch.logspace(math.log10(path.s_min), math.log10(path.s_max), 300, dtype=torch.float64)
    limit = 1e-7 if name == "laplace" else 1e-10  # its last times are 7e-10 from 1: float64 itself has steps of 1e-16 there
    assert torch.allclose(path.ratio(path.t_of_ratio(s)), s, rtol=limit, atol=0)
    assert (path.ratio(t.unique()).diff() > 0).all()


@paths
def test_every_path_has_finite_ends_to_sample_between(name: str):
    path = ALL[name]
    assert 0 < path.s_min < path.s_max <= 1e4
    assert path.ratio(f64(path.t_top)).item() == pytest.approx(path.s_max, rel=1e-9)
    assert path.s_max > 79.9
    for spacing in ("time", "karras", "loglinear"):
        for n in (1, 7, 60, 1000):
            s = spaced(path, n, spacing)
            assert s.isfinite().all()
            assert s.diff().max() < 0
            assert s[0].item() == pytest.approx(path.s_max, rel=1e-9)


@pytest.mark.parametrize("name", ["flow", "flow shift 3", "linear-zero-snr"])
def test_pure_noise_at_the_end_is_exact(name: str):
    path, end = ALL[name], f64(1.0)
    assert path.alpha(end).item() == 0
    assert path.sigma(end).item() == 1
    assert path.snr(end).item() == 0
    assert path.log_snr(end).item() == -math.inf
    x0, eps = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(path.noised(x0, eps, end), eps)
    assert path.s_max == 1e4
    assert path.t_top < 1


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("ve", "edm")])
def test_clean_data_at_the_start_is_exact(name: str):
    assert ALL[name].alpha(f64(0.0)).item() == 1
    assert ALL[name].sigma(f64(0.0)).item() == 0


def test_names():
    assert all(PATHS[name]().name == name for name in PATHS)
    assert zero_snr(cosine_path()).name == "cosine-zero-snr"


@pytest.mark.parametrize("base", [linear_path(), cosine_path(), sigmoid_path()], ids=lambda p: p.name)
def test_zero_snr_is_the_papers_algorithm_on_a_fine_table(base: GaussianPath):
    """Lin et al.'s steps, with their constant, on the table at t_i = i t_max / T: it keeps the first value where we keep alpha(0) = 1."""
    T, path = 100_000, zero_snr(base)
    t = base.t_max * torch.arange(1, T + 1, dtype=torch.float64) / T
    root = base.alpha(t)
    lin = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert path.alpha(t)[-1].item() == 0
    assert torch.allclose(path.alpha(t), lin, rtol=1e-6, atol=1e-15)


def test_laplace_is_of_alpha_squared_and_uniform_times_are_laplace_in_log_snr():
    from scipy import stats

    assert laplace_path().alpha(f64(0.5)).item() ** 2 == pytest.approx(0.5, rel=1e-12)  # its root, 0.707, is the known mistake
    path = laplace_path(mu=1.0, b=0.7)
    t = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    assert stats.kstest(path.log_snr(t).numpy(), stats.laplace(1.0, 0.7).cdf).statistic < 1.1 / 5000


def test_a_float32_time_cannot_name_the_end_of_the_laplace_path():
    """Why times are float64: the last ones round to 1, where the level is infinite."""
    path = laplace_path()
    assert path.ratio(f64(path.t_max)).item() == pytest.approx(math.exp(5.1), rel=1e-6)
    assert path.ratio(f64(path.t_max).float()).item() == math.inf


def test_shift_of_the_flow_multiplies_the_noise_level():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(flow_path(3.0).ratio(t), 3 * flow_path().ratio(t), rtol=1e-14)


def test_sub_vp_is_the_linear_alpha_with_the_square_of_its_sigma():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    vp, sub = linear_path(), PATHS["subvp"]()
    assert torch.allclose(sub.alpha(t), vp.alpha(t), rtol=1e-12)
    assert torch.allclose(sub.sigma(t), vp.sigma(t) ** 2, rtol=1e-12)


def test_edm_time_is_affine_in_c_noise():
    path = PATHS["edm"]()
    c_noise = path.ratio(torch.linspace(0, 1, 11, dtype=torch.float64)).log() / 4
    assert torch.allclose(c_noise.diff(), c_noise.diff()[:1].expand(10), rtol=1e-10)
    assert (path.s_min, path.s_max) == pytest.approx((0.002, 80.0), rel=1e-12)


@pytest.mark.parametrize("name", KEEP)
@pytest.mark.parametrize("T", [1, 2, 100, 1000])
def test_betas_rebuild_alpha_bar_and_are_bayes(name: str, T: int):
    path = ALL[name]
    chain = betas(path, T)
    assert torch.allclose((1 - chain.beta).cumprod(0)[:-1], path.alpha(chain.t)[:-1] ** 2, rtol=1e-7, atol=0)
    assert torch.allclose((1 - chain.beta).cumprod(0), chain.abar, rtol=1e-7, atol=1e-15)
    assert ((chain.beta > 0) & (chain.beta <= 1)).all()
    before = torch.cat([f64(1.0), chain.abar[:-1]])[1:]  # abar_{i-1} for i = 2..T
    precise = 1 / (1 / (1 - before) + (1 - chain.beta[1:]) / chain.beta[1:])  # N(x_r; ., 1 - abar_r) times N(x_s; sqrt(1 - beta) x_r, beta)
    assert torch.allclose(chain.beta_tilde[1:], precise, rtol=1e-7)
    assert chain.beta_tilde[0] == (chain.beta_tilde[1] if T > 1 else chain.beta[0])  # its logarithm is finite
    assert (chain.beta_tilde > 0).all()


def test_betas_of_the_linear_path_are_hos_and_those_of_the_cosine_nichols():
    table = np.linspace(1e-4, 0.02, 1000)
    assert np.abs(betas(linear_path(), 1000).beta.numpy() / table - 1)[1:].max() < 0.12  # the limit against the table
    assert np.abs(betas(linear_path(), 1000).beta.numpy() / table - 1)[100:].max() < 0.011
    path, T = cosine_path(), 4000
    abar = [float(cosine(mp.mpf(path.t_max) * i / T)) for i in range(T + 1)]
    nichol = np.array([min(1 - b / a, 0.999) for a, b in zip(abar, abar[1:], strict=False)])
    assert np.allclose(betas(path, T).beta.numpy(), nichol, rtol=1e-8)


def test_a_table_needs_rescaling_and_the_path_does_not():
    ends = {}
    for T in (100, 1000, 4000):
        plain = np.linspace(1e-4, 0.02, T)
        ends[T] = (np.prod(1 - plain), np.prod(1 - plain * 1000 / T), betas(linear_path(), T).abar[-1].item())
    assert ends[100][0] == pytest.approx(0.364, abs=5e-4)
    assert ends[4000][0] == pytest.approx(2.7e-18, rel=0.02)
    assert ends[100][1] == pytest.approx(2e-5, rel=0.1)
    assert [end for *_, end in ends.values()] == pytest.approx([math.exp(-10.05)] * 3, rel=1e-10)


def test_beta_of_any_two_levels_and_of_pure_noise():
    s, r = f64(2.0, math.inf, 0.3), f64(0.5, 3.0, 0.0)
    abar = lambda v: 1 / (1 + v**2)
    assert torch.allclose(beta(s, r), 1 - abar(s) / abar(r), rtol=1e-12)
    assert torch.allclose(beta_tilde(s, r), beta(s, r) * (1 - abar(r)) / (1 - abar(s)), rtol=1e-12)
    assert beta_tilde(s, r)[2] == 0


@paths
def test_bfloat16_images_get_the_noise_of_float64_at_the_first_level(name: str):
    """Coefficients in bfloat16 give the smallest levels no noise at all, or 4 % too little."""
    path = ALL[name]
    eps = torch.randn(1, 1, 400, 400, generator=torch.Generator().manual_seed(0)).bfloat16()
    for s in (path.s_min, 2 * path.s_min, 0.1, 3.0):
        t = path.t_of_ratio(f64(s))
        noise = path.noised(torch.zeros_like(eps), eps, t)
        assert noise.dtype == torch.bfloat16
        assert (noise.double().std() / eps.double().std() / path.sigma(t)).item() == pytest.approx(1, abs=0.005)
