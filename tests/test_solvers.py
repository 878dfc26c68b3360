"""Solvers against Gaussian data, whose exact denoiser and probability flow are closed forms, and against the papers' own formulas.

N(mu, S): D(x, s) = mu + S (S + s^2)^-1 (x - mu), and along the flow (x - mu)_k / sqrt(S_k + s^2) stays constant (S diagonal).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.core.errors import UserError
from pixelkiln.processes import cosine_path, linear_path, to_x0
from pixelkiln.solvers import (
    SOLVERS,
    ddim,
    ddpm,
    ddpm_large,
    dpmpp_2m,
    euler,
    heun,
    karras,
    log_linear,
    pc_ve,
    restart,
    rk45,
    solver,
    spaced,
)
from pixelkiln.solvers.spacing import Spacing

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


def graded(n: int, s_min: float, s_max: float) -> Tensor:
    """Uniform in sqrt(log s): the first steps are short, so that a multistep solver's first steps, of lower order, do not show."""
    share = torch.linspace(0, 1, n, dtype=torch.float64) ** 2
    return torch.cat([torch.exp(np.log(s_max) + share * np.log(s_min / s_max)), share.new_zeros(1)])


ORDERS = [
    ("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp-2s", 2), ("dpmpp-3s", 3), ("dpmpp-2m", 2), ("dpmpp-3m", 3), ("unipc-1", 2), ("unipc-2", 3),
    ("unipc", 4), ("deis", 4), ("lms", 4), ("ipndm", 2), ("rk45", 5),
]  # fmt: skip


def slope(name: str, spacing: Callable[..., Tensor], counts: list[int]) -> float:
    """Of log error over log n on a fixed interval [s_min, s_max]; the last step, to 0, is one exact map: x -> D(x, s_min)."""
    x, s_min, s_max = start(s=20), 0.05, 20.0
    exact = denoise(flow(x, s_max, s_min), s_min)
    errors = [(SOLVERS[name].run(denoise, x, spacing(n + 1, s_min, s_max)) - exact).abs().max().item() for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(("name", "order"), ORDERS, ids=[n for n, _ in ORDERS])
def test_order_of_convergence(name: str, order: int):
    """UniPC of order p is p + 1 once corrected; iPNDM's weights are those of equal steps, so it is 2 where steps are unequal."""
    counts = [32, 64, 128] if name == "rk45" else [64, 128, 256]
    spacings = (graded,) if name in ("deis", "lms", "dpmpp-3m") else (karras, log_linear, graded)
    for spacing in spacings:
        assert slope(name, spacing, counts) == pytest.approx(order, abs=0.2), spacing.__name__


@pytest.mark.parametrize("name", ["deis", "dpmpp-3m"])
def test_a_start_of_first_order_ends_in_second_order(name: str):
    """Multistep solvers that begin with one Euler step of full length: its error, h^2, is what is left of theirs."""
    assert slope(name, log_linear, [128, 256, 512]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("run", "tol"), [(euler, 6e-2), (heun, 1e-3), (dpmpp_2m, 1e-3)])
def test_the_flow_is_solved_down_to_zero(run: Callable[..., Tensor], tol: float):
    x = start(64, s=20)
    assert (run(denoise, x, karras(200, 1e-3, 20)) - flow(x, 20, 0)).abs().max().item() < tol


def moments(run: Callable[..., Tensor], sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variances (3,) of what a solver makes of pure noise, exactly: its output is affine in the start and in every draw.

    Row 0 is all zeros, row 1 has a unit start, row k + 2 a unit k-th draw.
    """
    n = len(sigmas) - 1
    unit = torch.eye(2 * n + 2, dtype=torch.float64)[..., None].expand(-1, -1, 3)  # (rows, which, 3)
    draws = iter(range(2, 2 * n + 2))
    out = run(denoise, sigmas[0] * unit[:, 1], sigmas, noise=lambda: unit[:, next(draws)])
    return out[0], (out[1:] - out[0]).square().sum(0)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddpm", {}, 1),
        ("ddpm-large", {}, 1),
        ("euler-ancestral", {}, 1),
        ("ddim", {"eta": 1.0}, 1),
        ("ddim", {"eta": 0.5}, 1),
        ("ddim", {"eta": 0.0}, 1),
        ("heun", {"churn": 0.0}, 2),
        ("heun", {"churn": 40.0}, 2),
        ("restart", {"steps": 40}, 2),  # steps within its interval, whose error n does not lessen
        ("dpmpp-2m-sde", {}, 2),
        ("dpmpp-sde", {}, 2),
        ("unipc", {}, 2),
        ("ipndm", {}, 2),
    ],
)
def test_final_mean_and_covariance(name: str, options: dict[str, float], order: int):
    """Noise becomes N(mu, S) with many steps; twice as many leave half of a first-order solver's error."""
    path = cosine_path()
    error = {}
    for n in (100, 200):
        run = partial(restart, **options) if name == "restart" else partial(SOLVERS[name].run, **options)
        mean, var = moments(run, spaced(path, n, "loglinear"))
        assert torch.allclose(mean, MU, atol=0.011)  # the flow from a finite s_max keeps sd / s_max of it
        error[n] = (var / VAR - 1).abs()
    if order == 2:
        assert (error[200] < 6e-3).all()
        assert (error[200] < 0.35 * error[100] + 1.2e-3).all()  # s_min^2 / S = 1e-3 is lost in the step to 0
    else:
        assert (error[200] < 0.06).all()
        assert (error[200] < 0.55 * error[100]).all()


def test_large_variance_is_larger():
    few = spaced(linear_path(), 20, "time")
    assert (moments(ddpm_large, few)[1] > moments(ddpm, few)[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_mixture_of_two_gaussians(name: str):
    """1-D data 0.3 N(-2, 0.1^2) + 0.7 N(1, 0.2^2): weights, means and widths come back; nothing lands in between.

    The step of the Langevin corrector is a norm over a sample's pixels, so there the draws are the pixels of one sample.
    """
    w, m, c = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-2.0, 1.0], [0.1, 0.2]))

    def best(x: Tensor, s: float) -> Tensor:  # x (B, 1)
        v = c**2 + s**2
        share = torch.softmax(w.log() - v.log() / 2 - (x - m) ** 2 / (2 * v), -1)  # (B, 2)
        return (share * (m + c**2 / v * (x - m))).sum(-1, keepdim=True)

    count = 10_000 if name.startswith("pc") else 2500
    x = 20 * torch.randn(count, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x = x.view(1, -1) if name.startswith("pc") else x
    out = SOLVERS[name].run(lambda x, s: best(x.view(-1, 1), s).view_as(x), x, karras(80, 5e-3, 20), noise=drawn(7, x), eta=1.0).view(-1, 1)
    left = out < -0.5
    assert left.double().mean().item() == pytest.approx(0.3, abs=0.035)
    assert out[left].mean().item() == pytest.approx(-2, abs=0.02)
    assert out[~left].mean().item() == pytest.approx(1, abs=0.02)
    assert out[left].std().item() == pytest.approx(0.1, abs=0.015)
    assert out[~left].std().item() == pytest.approx(0.2, abs=0.02)
    assert ((out > -1.3) & (out < 0)).sum().item() < 5


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_steps_is_finite_and_costs_what_it_says(name: str):
    """1 to 60 steps on every spacing, in both precisions; levels are floats, and positive."""
    chosen, path = SOLVERS[name], cosine_path()
    calls: list[float] = []

    def counted(x: Tensor, s: float) -> Tensor:
        assert type(s) is float
        calls.append(s)
        return denoise(x, s)

    for dtype, spacing, n in itertools.product((torch.float32, torch.float64), get_args(Spacing), range(1, 61)):
        if dtype == torch.float64 and n not in (1, 2, 3, 15, 40):
            continue
        calls.clear()
        sigmas = spaced(path, n, spacing)
        x = start(4, s=float(sigmas[0])).to(dtype)
        out = chosen.run(counted, x, sigmas, noise=drawn(8, x), eta=0.7, churn=10.0)
        assert out.dtype == dtype
        assert torch.isfinite(out).all(), (spacing, n)
        assert out.abs().max() < 2 * x.abs().max() + 4, (spacing, n)
        assert len(calls) == chosen.evaluations(n) or (chosen.adaptive and len(calls) > chosen.evaluations(n) and len(calls) % 6 == 1)
        assert min(calls) > 0
        if chosen.evaluations(n) == n and name != "rk45":
            assert calls == sigmas[:-1].tolist()  # the levels of the list, never others that are near them


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


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_heun_is_algorithms_1_and_2(churn: float):
    """Karras et al. 2022, line by line: noise is added at levels in [S_min, S_max] = [0.05, 50] only."""
    x, now = start(8), karras(9, 0.002, 80).tolist()
    y, s, draw = x, list(now), drawn(17, x)
    for i in range(9):
        gamma = min(churn / 9, 2**0.5 - 1) if 0.05 <= s[i] <= 50 else 0.0
        if gamma:
            up = s[i] + gamma * s[i]
            y = y + (up**2 - s[i] ** 2) ** 0.5 * 1.003 * draw()
            s[i] = up
        d = (y - denoise(y, s[i])) / s[i]
        z = y + (s[i + 1] - s[i]) * d
        if s[i + 1] != 0:
            z = y + (s[i + 1] - s[i]) * (d / 2 + (z - denoise(z, s[i + 1])) / s[i + 1] / 2)
        y = z
    ours = heun(denoise, x, torch.tensor(now, dtype=torch.float64), noise=drawn(17, x), churn=churn, s_noise=1.003)
    assert torch.allclose(ours, y, rtol=1e-10, atol=1e-10)


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
    for run in (ddpm, partial(ddim, eta=0.5)):
        with pytest.raises(ValueError, match="noise"):
            run(denoise, x, karras(3, 0.1, 10))
    for name in NAMES:
        if SOLVERS[name].stochastic:
            with pytest.raises(ValueError, match="noise"):
                SOLVERS[name].run(denoise, x, karras(9, 0.1, 10), eta=0.5, churn=1.0)
    with pytest.raises(ValueError, match="eta"):
        ddim(denoise, x, karras(3, 0.1, 10), eta=1.5)
    for bad in ([1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="fall"):
            euler(denoise, x, torch.tensor(bad))


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.own])
def test_options_of_its_own_are_within_their_range_by_default(name: str) -> None:
    """Every declared option exists, and giving its default changes nothing."""
    found = SOLVERS[name]
    defaults = {option: inspect.signature(found.solve).parameters[option].default for option in found.own}
    assert all(least <= defaults[option] <= most for option, (least, most) in found.own.items())
    same = solver(":".join([name, *(f"{option}={value}" for option, value in defaults.items())]))
    x, levels = start(2), karras(6, 0.01, 80.0)
    outs = [each.run(denoise, x, levels, noise=drawn(3, x), churn=5.0) for each in (found, same)]
    assert torch.equal(*outs)
    assert same.evaluations(7) == found.evaluations(7)


def test_options_after_colons_reach_the_solver_and_its_number_of_evaluations() -> None:
    x, levels, calls = start(2), karras(6, 0.01, 80.0), 0

    def counted(x: Tensor, s: float) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, s)

    told = solver("restart:low=0.5:repeats=4:steps=5")
    assert torch.equal(told.run(counted, x, levels, noise=drawn(3, x)), restart(denoise, x, levels, noise=drawn(3, x), low=0.5, repeats=4, steps=5))
    assert calls == told.evaluations(6) == 2 * 6 - 1 + 2 * 4 * 5
    assert torch.equal(solver("pc-ve:snr=0.05").run(denoise, x, levels, noise=drawn(3, x)), pc_ve(denoise, x, levels, noise=drawn(3, x), snr=0.05))
    assert torch.equal(solver("heun:s_noise=1.003:s_min=0").run(denoise, x, levels, noise=drawn(3, x), churn=9.0), heun(denoise, x, levels, noise=drawn(3, x), churn=9.0, s_noise=1.003, s_min=0.0))
    assert torch.equal(solver("rk45:tolerance=1e-7").run(denoise, x, levels), rk45(denoise, x, levels, tolerance=1e-7))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("restart:repeat=4", "did you mean repeats"),
        ("euler:snr=1", "no option 'snr' of its own"),
        ("pc-ve:snr=2", "from 0 to 1"),
        ("pc-ve:snr=nan", "from 0 to 1"),
        ("heun:s_max=inf", "a number from 0"),
        ("restart:steps=1.5", "a whole number"),
        ("restart:steps", "write restart:steps=VALUE"),
        ("hein:snr=1", "unknown solver 'hein'"),
    ],
)
def test_options_that_there_are_not_and_values_out_of_range_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        solver(name)
