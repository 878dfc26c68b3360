"""Solvers against Gaussian data, whose exact denoiser and probability flow are closed forms, and against the papers' own formulas.

N(mu, S): D(x, s) = mu + S (S + s^2)^-1 (x - mu), and along the flow (x - mu)_k / sqrt(S_k + s^2) stays constant (S diagonal).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.processes import cosine_path, linear_path, to_x0
from pixelkiln.solvers import SOLVERS, ddim, ddpm, dpmpp_2m, euler, heun, karras, log_linear, spaced

MU = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64)
VAR = torch.tensor([0.04, 0.5, 2.0], dtype=torch.float64)
NAMES = sorted(SOLVERS)


def denoise(x: Tensor, s: float) -> Tensor:
    return (MU + VAR / (VAR + s**2) * (x.double() - MU)).to(x.dtype)


def flow(x: Tensor, s: float, r: float) -> Tensor:
    """The probability flow of the Gaussian from level s to level r, exactly."""
    return MU + ((VAR + r**2) / (VAR + s**2)).sqrt() * (x - MU)


def drawn(seed: int, like: Tensor) -> Callable[[], Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=gen, dtype=like.dtype)


def start(n: int = 1, s: float = 80.0, seed: int = 0) -> Tensor:
    """Draws of the data with noise of level s, (n, 3) float64."""
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MU + (VAR + s**2).sqrt() * z


@pytest.mark.parametrize(("run", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
@pytest.mark.parametrize("spacing", [karras, log_linear], ids=["karras", "loglinear"])
def test_order_of_convergence(run: Callable[..., Tensor], order: int, spacing: Callable[..., Tensor]):
    """The slope of log error over log n on a fixed interval [s_min, s_max]; the last step, to 0, is one exact map: x -> D(x, s_min)."""
    x, s_min, s_max, counts = start(s=20), 0.05, 20.0, [64, 128, 256, 512]
    exact = denoise(flow(x, s_max, s_min), s_min)
    errors = [(run(denoise, x, spacing(n + 1, s_min, s_max)) - exact).abs().max().item() for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize(("run", "tol"), [(euler, 6e-2), (heun, 1e-3), (dpmpp_2m, 1e-3)])
def test_the_flow_is_solved_down_to_zero(run: Callable[..., Tensor], tol: float):
    x = start(64, s=20)
    assert (run(denoise, x, karras(200, 1e-3, 20)) - flow(x, 20, 0)).abs().max().item() < tol


def moments(run: Callable[..., Tensor], sigmas: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Mean and variances (3,) of what a solver makes of pure noise, exactly: its output is affine in the start and in every draw.

    Row 0 is all zeros, row 1 has a unit start, row k + 2 a unit k-th draw.
    """
    n = len(sigmas) - 1
    unit = torch.eye(n + 2, dtype=torch.float64)[..., None].expand(-1, -1, 3)  # (rows, which, 3)
    draws = iter(range(2, n + 2))
    out = run(denoise, sigmas[0] * unit[:, 1], sigmas, noise=lambda: unit[:, next(draws)], **options)
    return out[0], (out[1:] - out[0]).square().sum(0)


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (ddpm, {}),
        (ddpm, {"variance": "large"}),
        (ddim, {"eta": 1.0}),
        (ddim, {"eta": 0.5}),
        (ddim, {"eta": 0.0}),
        (heun, {}),
        (dpmpp_2m, {}),
    ],
)
def test_final_mean_and_covariance(run: Callable[..., Tensor], options: dict[str, object]):
    """Noise becomes N(mu, S) with many steps; twice as many leave half of a first-order solver's error."""
    path = cosine_path()
    error = {}
    for n in (200, 400):
        mean, var = moments(run, spaced(path, n, "loglinear"), **options)
        assert torch.allclose(mean, MU, atol=5e-3)  # the flow from a finite s_max keeps sd / s_max of it
        error[n] = (var / VAR - 1).abs()
    if run in (heun, dpmpp_2m):
        assert (error[400] < 1e-3).all()
    else:
        assert (error[400] < 0.03).all()
        assert (error[400] < 0.55 * error[200]).all()


def test_large_variance_is_larger():
    few = spaced(linear_path(), 20, "time")
    assert (moments(ddpm, few, variance="large")[1] > moments(ddpm, few)[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_mixture_of_two_gaussians(name: str):
    """1-D data 0.3 N(-2, 0.1^2) + 0.7 N(1, 0.2^2): weights, means and widths come back; nothing lands in between."""
    w, m, c = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-2.0, 1.0], [0.1, 0.2]))

    def best(x: Tensor, s: float) -> Tensor:  # x (B, 1)
        v = c**2 + s**2
        share = torch.softmax(w.log() - v.log() / 2 - (x - m) ** 2 / (2 * v), -1)  # (B, 2)
        return (share * (m + c**2 / v * (x - m))).sum(-1, keepdim=True)

    x = 20 * torch.randn(2500, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    out = SOLVERS[name].run(best, x, karras(80, 5e-3, 20), noise=drawn(7, x), eta=1.0)
    left = out < -0.5
    assert left.double().mean().item() == pytest.approx(0.3, abs=0.035)
    assert out[left].mean().item() == pytest.approx(-2, abs=0.02)
    assert out[~left].mean().item() == pytest.approx(1, abs=0.02)
    assert out[left].std().item() == pytest.approx(0.1, abs=0.015)
    assert out[~left].std().item() == pytest.approx(0.2, abs=0.02)
    assert ((out > -1.3) & (out < 0)).sum().item() < 5


@pytest.mark.parametrize(("name", "spacing"), list(itertools.product(NAMES, ["karras", "time", "loglinear"])))
def test_every_number_of_steps_is_finite_and_costs_what_it_says(name: str, spacing: str):
    chosen, path, x = SOLVERS[name], cosine_path(), start(4, s=164).float()
    calls: list[float] = []

    def counted(x: Tensor, s: float) -> Tensor:
        assert type(s) is float
        calls.append(s)
        return denoise(x, s)

    for n in range(1, 61):
        calls.clear()
        out = chosen.run(counted, x, spaced(path, n, spacing), noise=drawn(8, x), eta=0.7)
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all(), n
        assert out.abs().max() < 2 * x.abs().max(), n
        assert len(calls) == chosen.evaluations(n)
        assert min(calls) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_last_step_returns_the_estimate_exactly(name: str):
    """x0 whatever x is: no residual noise, no rounding. n = 1 needs no noise at all, and the callback sees every estimate."""
    answer = torch.tensor([[0.1, -1 / 3, 0.7]])
    seen: list[tuple[int, int, Tensor]] = []
    for n in (1, 2, 7):
        seen.clear()
        out = SOLVERS[name].run(
            lambda x, s: answer,
            start(s=152).float(),
            spaced(linear_path(), n, "time"),
            noise=drawn(9, answer),
            callback=lambda *a: seen.append(a),
        )
        assert torch.equal(out, answer)
        assert [a[:2] for a in seen] == [(i, n) for i in range(n)]
        assert torch.equal(seen[-1][2], answer)
    assert torch.equal(SOLVERS[name].run(lambda x, s: answer, start().float(), torch.tensor([80.0, 0.0])), answer)


def test_ddim_without_noise_is_euler_and_with_all_of_it_ddpm():
    x, sigmas = start(16), karras(25, 0.01, 80)
    assert torch.allclose(ddim(denoise, x, sigmas, eta=0.0), euler(denoise, x, sigmas), rtol=1e-12, atol=1e-12)
    full = ddim(denoise, x, sigmas, noise=drawn(10, x), eta=1.0)
    assert torch.allclose(full, ddpm(denoise, x, sigmas, noise=drawn(10, x)), rtol=1e-10, atol=1e-10)


def textbook(x0: Tensor, xt: Tensor, beta: Tensor, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean and variances of q(x_{i-1} | x_i, x0) as Ho et al. 2020 print them (eq. 6, 7; section 3.2), from a table of betas."""
    abar = torch.cumprod(1 - beta, 0)
    before = abar[i - 1]
    mean = before.sqrt() * beta[i] / (1 - abar[i]) * x0 + (1 - beta[i]).sqrt() * (1 - before) / (1 - abar[i]) * xt
    return mean, {"small": (1 - before) / (1 - abar[i]) * beta[i], "large": beta[i]}


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("i", [1, 7, 500, 999])
def test_ddpm_step_is_the_textbook_posterior(variance: str, i: int):
    """One step between neighbouring levels of Ho's table, in variance-preserving coordinates, for x0, xt and z chosen at random."""
    gen = torch.Generator().manual_seed(i)
    x0, xt, z = torch.randn(3, 5, generator=gen, dtype=torch.float64)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)
    s = ((1 - abar) / abar).sqrt()
    states: list[Tensor] = []

    def known(x: Tensor, s: float) -> Tensor:
        states.append(x)
        return x0

    sigmas = torch.stack([s[i], s[i - 1], torch.zeros_like(s[0])])
    ddpm(known, xt / abar[i].sqrt(), sigmas, noise=lambda: z, variance=variance)
    mean, var = textbook(x0, xt, beta, i)
    assert torch.allclose(states[1] * abar[i - 1].sqrt(), mean + var[variance].sqrt() * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 13, 30])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_papers_formula_on_any_list_of_steps(n: int, eta: float):
    """Song et al. 2021, eq. 12 and 16, in variance-preserving coordinates with an eps-network; "previous" is the next of the list."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])  # abar[0] = 1: no noise
    steps = [round(v) for v in np.linspace(1000, 0, n + 1)]

    def eps_net(x: Tensor, i: int) -> Tensor:
        return torch.tanh(x) * (1 - 0.3 * i / 1000)

    xT = torch.randn(6, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    draw, x = drawn(12, xT), xT
    for now, then in itertools.pairwise(steps):
        a, b = abar[now], abar[then]
        eps = eps_net(x, now)
        sd = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - sd**2).sqrt() * eps
        if then > 0 and eta > 0:
            x = x + sd * draw()
    levels = ((1 - abar) / abar).sqrt()[steps]
    index = {float(s): i for s, i in zip(levels, steps, strict=True)}

    def ve(y: Tensor, s: float) -> Tensor:
        a = abar[index[s]]
        return to_x0("eps", eps_net(y * a.sqrt(), index[s]), y * a.sqrt(), a.sqrt(), (1 - a).sqrt())

    ours = ddim(ve, xT / abar[1000].sqrt(), levels, noise=drawn(12, xT), eta=eta)
    assert torch.allclose(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spacing", [karras, log_linear], ids=["karras", "loglinear"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
def test_dpmpp_2m_is_the_papers_algorithm(n: int, spacing: Callable[..., Tensor]):
    """Lu et al. 2022b, algorithm 2 in (alpha, sigma, lambda), data prediction nonlinear; the last step, to 0, of first order."""
    path = cosine_path()
    s = spacing(n, 0.02, path.s_max)
    t = path.t_of_ratio(s)  # (n + 1,), the last 0
    alpha, sigma, lam = path.alpha(t), path.sigma(t), path.log_snr(t) / 2

    def data(x: Tensor, i: int) -> Tensor:
        return torch.sin(x + 0.1 * i)

    xT = torch.randn(6, generator=torch.Generator().manual_seed(13), dtype=torch.float64)
    x, past = xT, []
    for i in range(1, n + 1):
        past.append(data(x, i - 1))
        D, h = past[-1], lam[i] - lam[i - 1]
        if 1 < i < n:
            r = (lam[i - 1] - lam[i - 2]) / h
            D = (1 + 1 / (2 * r)) * past[-1] - 1 / (2 * r) * past[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (torch.exp(-h) - 1) * D
    index = {float(v): i for i, v in enumerate(s)}
    ours = dpmpp_2m(lambda y, v: data(y * alpha[index[v]], index[v]), xT / alpha[0], s)
    assert torch.allclose(ours, x, rtol=1e-9, atol=1e-9)


def test_heun_is_algorithm_1():
    """Karras et al. 2022, algorithm 1, line by line."""
    x, s = start(8), karras(9, 0.002, 80).tolist()
    y = x
    for i in range(9):
        d = (y - denoise(y, s[i])) / s[i]
        z = y + (s[i + 1] - s[i]) * d
        if s[i + 1] != 0:
            z = y + (s[i + 1] - s[i]) * (d / 2 + (z - denoise(z, s[i + 1])) / s[i + 1] / 2)
        y = z
    assert torch.allclose(heun(denoise, x, torch.tensor(s, dtype=torch.float64)), y, rtol=1e-10, atol=1e-10)


def test_a_clipped_estimate_is_used_for_the_direction_too():
    """Clipping x0 must recompute eps: a solver gets (x - D) / s from the clipped D."""
    x = torch.tensor([[30.0, 1.0]], dtype=torch.float64)
    out = euler(lambda x, s: x.clamp(-1, 1) if s > 5 else x * 0, x, torch.tensor([10.0, 5.0, 0.0]), callback=None)
    seen: list[Tensor] = []
    euler(lambda y, s: seen.append(y) or y.clamp(-1, 1), x, torch.tensor([10.0, 5.0, 0.0]))
    assert torch.allclose(seen[1], torch.tensor([[1 + 0.5 * 29, 1.0]], dtype=torch.float64))
    assert torch.equal(out, x * 0)


def test_stochastic_solvers_ask_for_noise_and_all_for_falling_levels():
    x = start()
    for run, eta in ((ddpm, 0.0), (ddim, 0.5)):
        with pytest.raises(ValueError, match="noise"):
            run(denoise, x, karras(3, 0.1, 10), eta=eta)
    with pytest.raises(ValueError, match="eta"):
        ddim(denoise, x, karras(3, 0.1, 10), eta=1.5)
    for bad in ([1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="fall"):
            euler(denoise, x, torch.tensor(bad))
