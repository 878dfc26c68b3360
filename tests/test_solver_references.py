"""Solvers against the papers' algorithms, written once more, slowly, in the papers' own coordinates; SciPy integrates what they integrate.

The reference works with alpha, sigma and lambda = log(alpha / sigma) of a variance-preserving path and a nonlinear "network" of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from scipy.interpolate import lagrange
from torch import Tensor

from pixelkiln.processes import cosine_path
from pixelkiln.solvers import (
    SOLVERS,
    Brownian,
    ddpm,
    ddpm_learned,
    euler,
    invert,
    invert_exactly,
    karras,
    log_linear,
    pc_ve,
    pc_vp,
    rk45,
    spaced,
)
from pixelkiln.solvers import adaptive as rk
from pixelkiln.solvers.stochastic import variances

PATH = cosine_path()
COUNTS = [1, 2, 3, 4, 7, 14, 15, 20]
XT = torch.randn(6, generator=torch.Generator().manual_seed(13), dtype=torch.float64)


def data(x: Tensor, s: float) -> Tensor:
    """A network that predicts the data from variance-preserving x."""
    return torch.sin(1.3 * x + 0.2 * math.log(s))


class Way:
    """alpha, sigma, lambda at the levels of n steps, the last of which, to 0, every reference takes as x <- D."""

    def __init__(self, n: int, spacing: Callable[..., Tensor] = log_linear) -> None:
        self.levels = spacing(n, 0.02, PATH.s_max)
        self.s = self.levels.tolist()[:-1]
        self.alpha = [(1 + v * v) ** -0.5 for v in self.s]
        self.sigma = [v * (1 + v * v) ** -0.5 for v in self.s]
        self.lam = [-math.log(v) for v in self.s]

    def ours(self, name: str) -> Tensor:
        def denoise(x: Tensor, s: float) -> Tensor:
            return data(x * (1 + s * s) ** -0.5, s)

        return SOLVERS[name].run(denoise, XT[None] / self.alpha[0], self.levels)[0]


def through(points: list[float], values: list[Tensor], low: float, high: float, weight: Callable[[float], float]) -> Tensor:
    """int weight(u) p(u) du of the polynomial p through the points, by SciPy, value by value."""
    total = torch.zeros_like(values[0])
    for j, value in enumerate(values):
        unit = np.zeros(len(points))
        unit[j] = 1
        basis = lagrange(np.array(points) - points[0], unit)
        total = total + value * scipy.integrate.quad(lambda u, b=basis: weight(u) * b(u - points[0]), low, high, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
    return total


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_algorithms(n: int, order: int):
    """Zhao et al. 2023, algorithms 5 to 8, B_2: the linear systems R rho = b of eq. 10 for predictor and corrector."""
    way, x, past = Way(n), XT, []
    a, g, lam = way.alpha, way.sigma, way.lam

    def system(rks: list[float], hh: float) -> tuple[np.ndarray, np.ndarray]:
        rows, b, phi, fact = [], [], math.expm1(hh) / hh - 1, 1
        for i in range(1, len(rks) + 1):
            rows.append([r ** (i - 1) for r in rks])
            b.append(phi * fact / math.expm1(hh))
            fact *= i + 1
            phi = phi / hh - 1 / fact
        return np.array(rows), np.array(b)

    for i in range(n - 1):
        if i == 0:
            past = [data(x, way.s[0])]
        p = min(order, i + 1, n - i if n < 15 else order)
        h = lam[i + 1] - lam[i]
        rks = [(lam[i - k] - lam[i]) / h for k in range(1, p)] + [1.0]
        D1 = [(past[-1 - k] - past[-1]) / rks[k - 1] for k in range(1, p)]
        R, b = system(rks, -h)
        base = g[i + 1] / g[i] * x - a[i + 1] * math.expm1(-h) * past[-1]
        rho = [0.5] if p == 2 else list(np.linalg.solve(R[:-1, :-1], b[:-1])) if p > 2 else []
        guess = base - a[i + 1] * math.expm1(-h) * sum((r * d for r, d in zip(rho, D1, strict=True)), torch.zeros_like(x))
        new = data(guess, way.s[i + 1])
        rho = [0.5] if p == 1 else list(np.linalg.solve(R, b))
        x = base - a[i + 1] * math.expm1(-h) * sum((r * d for r, d in zip(rho, [*D1, new - past[-1]], strict=True)), torch.zeros_like(x))
        past.append(new)
    want = past[-1] if past else data(x, way.s[0])
    assert torch.allclose(way.ours("unipc" if order == 3 else f"unipc-{order}"), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("n", COUNTS)
def test_dpmpp_3m_integrates_the_parabola(n: int):
    """Lu et al. 2022b, eq. 7: x_t = sigma_t / sigma_s x + sigma_t int e^lambda D(lambda) dlambda, D the parabola of the last three."""
    way, x, past = Way(n), XT, []
    for i in range(n - 1):
        past.append(data(x, way.s[i]))
        p = min(3, i + 1, n - i if n < 15 else 3)
        points, values = way.lam[i::-1][:p], past[::-1][:p]
        top = way.lam[i + 1]
        if p == 2:  # algorithm 2 takes the value in the middle
            q = (way.lam[i] - way.lam[i - 1]) / (top - way.lam[i])
            points, values = points[:1], [values[0] + (values[0] - values[1]) / (2 * q)]
        x = way.sigma[i + 1] / way.sigma[i] * x + way.alpha[i + 1] * through(points, values, way.lam[i], top, lambda u, top=top: math.exp(u - top))
    assert torch.allclose(way.ours("dpmpp-3m"), data(x, way.s[-1]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("stages", [2, 3])
def test_single_step_dpmpp_is_its_algorithm(n: int, stages: int):
    """Lu et al. 2022b, algorithm 1 (r = 1/2), and DPM-Solver-3 in data prediction (r_1 = 1/3, r_2 = 2/3), with alpha and sigma."""
    way, x = Way(n), XT

    def at(lam: float) -> tuple[float, float, float]:
        s = math.exp(-lam)
        return (1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5, s

    for i in range(n - 1):
        h, D = way.lam[i + 1] - way.lam[i], data(x, way.s[i])
        a, g, g_s = way.alpha[i + 1], way.sigma[i + 1], way.sigma[i]
        if stages == 2:
            a1, g1, s1 = at(way.lam[i] + h / 2)
            D1 = data(g1 / g_s * x - a1 * math.expm1(-h / 2) * D, s1)
            x = g / g_s * x - a * math.expm1(-h) * D1
        else:
            (a1, g1, s1), (a2, g2, s2) = at(way.lam[i] + h / 3), at(way.lam[i] + 2 * h / 3)
            D1 = data(g1 / g_s * x - a1 * math.expm1(-h / 3) * D, s1)
            x2 = g2 / g_s * x - a2 * math.expm1(-2 * h / 3) * D + 2 * a2 * (math.expm1(-2 * h / 3) / (2 * h / 3) + 1) * (D1 - D)
            x = g / g_s * x - a * math.expm1(-h) * D + 1.5 * a * (math.expm1(-h) / h + 1) * (data(x2, s2) - D)
    assert torch.allclose(way.ours(f"dpmpp-{stages}s"), data(x, way.s[-1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("name", ["deis", "lms", "ipndm"])
def test_adams_bashforth_in_eps(name: str, n: int):
    """DEIS eq. 14 and 15 with eps: x_t / alpha_t = x_s / alpha_s + sum_j C_j eps_j, C_j = int d(sigma / alpha)/dt L_j(t) dt by quadrature.

    deis: in the time of the linear schedule; lms: in sigma / alpha; ipndm: weights of equal steps (PNDM eq. 12) in DDIM's transfer.
    """
    way, x, past = Way(n, karras), XT, []
    b0, b1 = 0.1, 20.0  # of Song et al. 2021, eq. 33: B(t) = b0 t + (b1 - b0) t^2 / 2, alpha^2 = e^-B
    times = [scipy.optimize.brentq(lambda t, s=s: b0 * t + (b1 - b0) / 2 * t * t - math.log1p(s * s), 0, 5, xtol=1e-15) for s in way.s]
    known = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def speed(t: float) -> float:
        grown = math.exp(b0 * t + (b1 - b0) / 2 * t * t)
        return (b0 + (b1 - b0) * t) * grown / (2 * math.sqrt(grown - 1))

    for i in range(n - 1):
        past.append((x - way.alpha[i] * data(x, way.s[i])) / way.sigma[i])
        values = past[::-1][:4]
        if name == "ipndm":
            eps = sum(w * e for w, e in zip(known[len(values) - 1], values, strict=True))
            ahead = way.alpha[i + 1] / way.alpha[i]
            x = ahead * x + (way.sigma[i + 1] - ahead * way.sigma[i]) * eps
        else:
            clock, weight = (times, speed) if name == "deis" else (way.s, lambda u: 1.0)
            change = through(clock[i::-1][:4], values, clock[i], clock[i + 1], weight)
            x = way.alpha[i + 1] * (x / way.alpha[i] + change)
    assert torch.allclose(way.ours(name), data(x, way.s[-1]), rtol=1e-7, atol=1e-8)


MU, C = torch.tensor([0.3, -0.7]), torch.tensor([0.2, 1.0])


def wide(x: Tensor, s: float) -> Tensor:
    """The denoiser of 128 independent pixels N(mu_k, c_k^2), half of them of each kind."""
    mu, c2 = MU.repeat(64).double(), C.repeat(64).double() ** 2
    return (mu + c2 / (c2 + s * s) * (x.double() - mu)).to(x.dtype)


@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_predictor_and_corrector_are_song_s(kind: str):
    """Song et al. 2021, algorithms 2 to 5, for one image: with the score and the tables that they have for each SDE."""
    levels = log_linear(12, 0.02, 30.0)
    s, draws = levels.tolist(), torch.randn(40, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, at = 30 * draws[-1], iter(range(40))
    abar = [1 / (1 + v * v) for v in s]
    x = first * (abar[0] ** 0.5 if kind == "vp" else 1.0)
    for i in range(11):
        if kind == "ve":
            score = (wide(x, s[i]) - x) / s[i] ** 2
            x = x + (s[i] ** 2 - s[i + 1] ** 2) * score + (s[i] ** 2 - s[i + 1] ** 2) ** 0.5 * draws[next(at)]
            score, a = (wide(x, s[i + 1]) - x) / s[i + 1] ** 2, 1.0
        else:
            beta = 1 - abar[i] / abar[i + 1]
            score = (abar[i] ** 0.5 * wide(x / abar[i] ** 0.5, s[i]) - x) / (1 - abar[i])
            x = (2 - (1 - beta) ** 0.5) * x + beta * score + beta**0.5 * draws[next(at)]
            b = abar[i + 1]
            score, a = (b**0.5 * wide(x / b**0.5, s[i + 1]) - x) / (1 - b), abar[i + 1] / abar[i + 2]
        z = draws[next(at)]
        eps = 2 * a * (0.16 * z.norm() / score.norm()) ** 2
        x = x + eps * score + (2 * eps) ** 0.5 * z
    want = wide(x / (abar[11] ** 0.5 if kind == "vp" else 1.0), s[11])
    ours = iter(range(40))
    got = (pc_ve if kind == "ve" else pc_vp)(wide, first[None], levels, noise=lambda: draws[next(ours)][None])
    assert torch.allclose(got[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("run", [pc_ve, pc_vp], ids=["ve", "vp"])
def test_predictor_corrector_s_spread(run: Callable[..., Tensor]):
    gen = torch.Generator().manual_seed(2)
    levels = log_linear(150, 0.01, 30.0)
    out = run(wide, 30 * torch.randn(64, 128, generator=gen), levels, noise=lambda: torch.randn(64, 128, generator=gen)).view(-1, 2)
    assert torch.allclose(out.std(0), C, rtol=0.06)
    assert torch.allclose(out.mean(0), MU, atol=0.06)


def test_learned_variance_interpolates_the_logarithms():
    """Nichol and Dhariwal 2021, eq. 15, in variance-preserving coordinates, with the betas of the respaced list."""
    levels = spaced(PATH, 9, "time")
    gen = torch.Generator().manual_seed(3)
    x0, f = torch.randn(2, 2, 5, generator=gen, dtype=torch.float64)
    f = f.sigmoid()
    z = torch.randn(9, 2, 5, generator=gen, dtype=torch.float64)
    first = float(levels[0]) * torch.randn(2, 5, generator=gen, dtype=torch.float64)
    states: list[Tensor] = []
    count = iter(range(9))
    ddpm_learned(lambda x, s: (states.append(x), (x0, f))[1], first, levels, noise=lambda: z[next(count)])
    abar = 1 / (1 + levels**2)
    for i in range(8):
        beta = 1 - abar[i] / abar[i + 1]
        tilde = beta * (1 - abar[i + 1]) / (1 - abar[i])
        mean = abar[i + 1].sqrt() * beta / (1 - abar[i]) * x0 + (1 - beta).sqrt() * (1 - abar[i + 1]) / (1 - abar[i]) * abar[i].sqrt() * states[i]
        std = torch.exp((f * beta.log() + (1 - f) * tilde.log()) / 2)
        assert torch.allclose(states[i + 1] * abar[i + 1].sqrt(), mean + std * z[i], rtol=1e-9, atol=1e-9)
    for variance, share in (("small", 0.0), ("large", 1.0)):
        one = ddpm(lambda x, s: x0, first, levels, noise=lambda: z[0], variance=variance)
        assert torch.allclose(one, ddpm_learned(lambda x, s, k=share: (x0, torch.tensor(k)), first, levels, noise=lambda: z[0]))
    assert variances(2.0, 1.0) == pytest.approx((3 / 4, 3 * 2 / 5))


def bimodal(x: Tensor, s: float) -> Tensor:
    """Each pixel from {-1, 1} with spread 0.3: nonlinear, pixel by pixel."""
    v = 0.09 + s * s
    m = torch.tanh(x / v)
    return m + 0.09 / v * (x - m)


def test_rk45_is_dormand_and_prince_s():
    """The tableau is SciPy's; a solution by SciPy's DOP853 is met within the tolerance; more steps only where they are needed."""
    ref = scipy.integrate.RK45
    assert np.allclose([*rk.NODES[:5]], ref.C[1:])
    assert all(np.allclose(ours, theirs[: len(ours)]) for ours, theirs in zip(rk.STAGES[:5], ref.A[1:], strict=True))
    assert np.allclose(rk.STAGES[5], ref.B)
    assert np.allclose(rk.ERROR, -ref.E) or np.allclose(rk.ERROR, ref.E)
    x = 20 * torch.randn(3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    levels = log_linear(4, 0.05, 20.0)

    def slopes(u: float, y: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(y) - bimodal(torch.from_numpy(y), math.exp(u))).numpy()

    way = scipy.integrate.solve_ivp(slopes, (math.log(20), math.log(0.05)), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    want = bimodal(torch.from_numpy(way.y[:, -1]), 0.05).view_as(x)
    calls: dict[float, int] = {}
    for tolerance, near in ((1e-3, 0.1), (1e-4, 5e-3), (1e-7, 1e-5)):
        seen: list[float] = []
        out = rk45(lambda x, s, seen=seen: (seen.append(s), bimodal(x, s))[1], x, levels, tolerance=tolerance)
        assert (out - want).abs().max() < near
        calls[tolerance] = len(seen)
    assert calls[1e-3] < calls[1e-4] < calls[1e-7]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_sample_does_not_depend_on_its_batch(name: str):
    levels, shape = karras(7, 0.05, 20.0), (6,)

    def run(seeds: list[int]) -> Tensor:
        path = Brownian(seeds, shape)
        return SOLVERS[name].run(bimodal, 20 * path().double(), levels, noise=path, eta=0.5, churn=5.0)

    together = run([1, 2, 3, 4])
    assert torch.allclose(together, torch.cat([run([1]), run([2, 3]), run([4])]), rtol=1e-9, atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_brownian_noise_has_its_law_and_is_a_function_of_the_levels():
    many = Brownian(range(400), (8,))
    ways = [(80.0, 10.0), (10.0, 9.99), (9.99, 0.3), (0.3, 0.002)]
    z = torch.stack([many.between(a, b) for a, b in ways]).view(4, -1).double()
    assert torch.allclose(torch.cov(z), torch.eye(4, dtype=torch.float64), atol=0.08)
    assert z.mean(1).abs().max() < 0.06
    other = Brownian([5, 3], (8,))
    assert torch.equal(other.between(0.3, 0.002), many.between(0.3, 0.002)[[5, 3]])  # in another order, another batch
    first, second, whole = (many.between(*w) for w in ((10.0, 1.0), (1.0, 0.5), (10.0, 0.5)))
    sizes = [(r**-2 - s**-2) ** 0.5 for s, r in ((10.0, 1.0), (1.0, 0.5), (10.0, 0.5))]
    assert torch.allclose(sizes[0] * first + sizes[1] * second, sizes[2] * whole, atol=1e-5)
    assert not torch.equal(many(), many())
    with pytest.raises(ValueError, match="fall"):
        many.between(1.0, 2.0)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral", "dpmpp-2m-sde", "dpmpp-sde"])
def test_more_steps_on_the_same_brownian_path_come_to_the_same_image(name: str):
    """With D at rest the levels do not matter at all; otherwise the way down to a level converges, where other noise would go elsewhere."""
    run, seeds = SOLVERS[name].run, [1, 2]
    still = torch.tensor([0.2, -0.4], dtype=torch.float64).expand(2, 2)
    x = 20 * torch.randn(2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def last(denoise: Callable[[Tensor, float], Tensor], n: int) -> Tensor:
        """The state at the level 0.05, before the last step."""
        seen: list[Tensor] = []

        def kept(x: Tensor, s: float) -> Tensor:
            if s == levels[-2]:
                seen.append(x)
            return denoise(x, s)

        levels = karras(n, 0.05, 20.0)
        run(kept, x, levels, noise=Brownian(seeds, (2,)))
        return seen[-1]

    assert torch.allclose(last(lambda x, s: still, 3), last(lambda x, s: still, 30), atol=1e-5)
    gaps = [(last(bimodal, n) - last(bimodal, 8 * n)).abs().max().item() for n in (16, 64)]
    assert gaps[1] < 0.5 * gaps[0] < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_inversion_comes_back_and_ddim_s_nearly(dtype: torch.dtype):
    """Down from what was found by Euler's method: the picture, to the tolerance; sample by sample, and the other way round too."""
    levels = karras(12, 0.02, 40.0)
    x = 40 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    picture = euler(bimodal, x, levels).to(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-8
    z = invert_exactly(bimodal, picture, levels, tolerance=tolerance, most=2000)
    assert z.dtype == dtype
    assert (euler(bimodal, z, levels) - picture).abs().max() < tolerance
    assert torch.allclose(z, torch.cat([invert_exactly(bimodal, p[None], levels, tolerance=tolerance, most=2000) for p in picture]), rtol=1e-6, atol=1e-6)
    gaps = [(euler(bimodal, invert(bimodal, picture, k), k) - picture).abs().max().item() for k in (karras(25, 0.02, 40.0), karras(200, 0.02, 40.0))]
    assert gaps[1] < 0.3 * gaps[0]


def test_an_image_that_no_noise_gives_is_refused():
    with pytest.raises(ValueError, match="larger tolerance"):
        invert_exactly(lambda x, s: x * 0, torch.ones(1, 2), karras(4, 0.02, 40.0))
