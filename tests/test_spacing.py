"""Noise levels for every number of steps, the names of solvers, and guidance."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from pixelkiln.core.types import Condition, Request, UserError
from pixelkiln.processes import PATHS, GaussianPath, cosine_path, flow_path, linear_path, to_x0
from pixelkiln.solvers import (
    SOLVERS,
    classifier_free,
    euler,
    few,
    heun,
    karras,
    leading_time,
    linspace_time,
    log_linear,
    solver,
    spaced,
    uniform_time,
)
from pixelkiln.solvers.diffusion import Sampling
from pixelkiln.solvers.few import cost
from pixelkiln.solvers.guidance import joined
from pixelkiln.solvers.spacing import Spacing


@pytest.mark.parametrize("path", [make() for make in PATHS.values()], ids=lambda p: p.name)
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_levels_for_every_number_of_steps(path: GaussianPath, spacing: str):
    s_max, s_min = path.s_max, path.s_min
    for n in (*range(1, 65), *range(65, 1001, 17)):
        s = spaced(path, n, spacing)
        assert s.shape == (n + 1,)
        assert s.dtype == torch.float64
        assert s[-1] == 0
        assert s.diff().max() < 0
        assert abs(s[0] / s_max - 1) < 1e-7 or (spacing == "leading" and s[0] < s_max)  # trailing: the highest noise is always there
        assert s[-2] > s_min * (1 - 1e-7)


def test_karras_levels_are_equation_5():
    n, lo, hi = 18, 0.002, 80.0
    want = [(hi ** (1 / 7) + i / (n - 1) * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7 for i in range(n)] + [0]
    assert karras(n, lo, hi).tolist() == pytest.approx(want, rel=1e-9)


def test_log_linear_and_uniform_time():
    s = log_linear(5, 0.01, 100.0)
    assert s[:-1].tolist() == pytest.approx([100, 10, 1, 0.1, 0.01], rel=1e-12)
    assert uniform_time(4, lambda t: 10 * t, 0.8).tolist() == pytest.approx([8, 6, 4, 2, 0])
    for make in (lambda: karras(0, 0.1, 1), lambda: log_linear(-1, 0.1, 1), lambda: uniform_time(0, lambda t: t)):
        with pytest.raises(UserError, match="1 or more"):
            make()


def test_leading_and_linspace_are_the_tables_of_steps():
    """Of 1000 steps: leading arange(N) (T // N), linspace both ends, trailing without the end at 0; t = (step + 1) / T."""
    leading = leading_time(50, lambda t: t, 1 / 1000, 1 + 1 / 1000)
    assert leading[:-1].tolist() == pytest.approx([(k * 20 + 1) / 1000 for k in range(49, -1, -1)])
    linspace = linspace_time(5, lambda t: t, 1 / 1000, 1.0)
    assert linspace[:-1].tolist() == pytest.approx([(k + 1) / 1000 for k in np.linspace(999, 0, 5)])


def total(levels: Tensor) -> float:
    return float(cost(levels[:-1], levels[1:]).sum())


def test_few_levels_are_a_shortest_path():
    """All pairs of two levels in between, at the resolution of the grid; and real-valued ones found by SciPy are hardly better."""
    s_min, s_max = cosine_path().s_min, cosine_path().s_max
    grid = torch.exp(torch.linspace(math.log(s_max), math.log(s_min), 400, dtype=torch.float64)).clamp(s_min, s_max)
    zero = torch.zeros(1, dtype=torch.float64)
    pairs = cost(grid[:1], grid)[:, None] + cost(grid[:, None], grid[None]) + cost(grid, zero)[None]
    pairs = pairs + torch.full_like(pairs, math.inf).tril().nan_to_num(0.0, posinf=math.inf)
    a, b = divmod(int(pairs.argmin()), 400)
    assert few(3, s_min, s_max).tolist() == pytest.approx([s_max, float(grid[a]), float(grid[b]), 0])
    ours = few(6, s_min, s_max)

    def free(logs: np.ndarray) -> float:
        return total(torch.cat([ours[:1], torch.from_numpy(np.sort(np.exp(logs))[::-1].copy()), zero]))

    best = scipy.optimize.minimize(free, np.log(ours[1:-1].numpy()), method="Nelder-Mead", options={"maxiter": 600})
    assert best.fun > 0.999 * total(ours)


@pytest.mark.parametrize("n", [2, 5, 10, 20, 21, 60])
def test_few_levels_cost_least_and_the_cost_is_eulers(n: int):
    """The loss of standard deviation that Euler's method shows on Gaussian data, averaged over octaves, is the sum of costs."""
    path = linear_path()
    costs = {spacing: total(spaced(path, n, spacing)) for spacing in get_args(Spacing) if spacing != "leading"}
    assert min(costs, key=lambda k: costs[k]) == "few"
    s = spaced(path, n, "few")
    c = torch.exp(torch.linspace(math.log(0.05), math.log(10), 32, dtype=torch.float64))
    out = euler(lambda x, v: c**2 / (c**2 + v**2) * x, (c**2 + s[0] ** 2).sqrt()[None], s)
    assert float((c / out[0]).log().mean()) == pytest.approx(costs["few"], rel=1e-9)


def test_names():
    assert solver("heun").solve is heun
    assert solver("heun").evaluations(10) == 19
    assert {n for n in SOLVERS if not SOLVERS[n].stochastic} == {
        *("deis", "dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "dpmpp-3s", "euler", "ipndm", "lms", "rk45", "unipc", "unipc-1", "unipc-2"),
    }
    assert [n for n in SOLVERS if SOLVERS[n].eta] == ["ddim"]
    assert [n for n in SOLVERS if SOLVERS[n].churn] == ["heun"]
    with pytest.raises(UserError, match="dpmpp-2m"):
        solver("dpm++2m")
    with pytest.raises(UserError, match="euler"):
        solver("eular")


def by_label(x: Tensor, s: Tensor, cond: Condition) -> Tensor:
    """A denoiser that pulls towards the label, and towards 0 where there is none."""
    label = torch.full((x.shape[0],), -1) if cond.label is None else cond.label
    assert s.shape == (x.shape[0],)
    assert label.shape == s.shape
    return torch.where(label < 0, 0, label)[:, None].to(x.dtype) + x / (1 + s[:, None] ** 2)


def test_classifier_free_guidance_in_one_forward():
    sizes: list[int] = []

    def counted(x: Tensor, s: Tensor, cond: Condition) -> Tensor:
        sizes.append(x.shape[0])
        return by_label(x, s, cond)

    x, cond = torch.linspace(-1, 1, 9).view(3, 3), Condition(label=torch.tensor([1, 2, -1]))
    c, u = (by_label(x, torch.full((3,), 2.0), k) for k in (cond, Condition()))
    assert torch.equal(classifier_free(counted, cond, Condition(), 1.0)(x, 2.0), c)
    assert sizes == [3]
    for w in (0.0, 0.5, 3.0):
        assert torch.allclose(classifier_free(counted, cond, Condition(), w)(x, 2.0), u + w * (c - u))
    assert sizes == [3, 6, 6, 6]
    assert torch.equal(classifier_free(counted, Condition(), Condition(), 3.0)(x, 2.0), u)
    assert sizes[-1] == 3


def test_guidance_through_x0_is_guidance_through_eps():
    path, t, w = cosine_path(), torch.tensor(0.4, dtype=torch.float64), 2.5
    a, s = path.alpha(t), path.sigma(t)
    xt, e_c, e_u = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    x_c, x_u = to_x0("eps", e_c, xt, a, s), to_x0("eps", e_u, xt, a, s)
    assert torch.allclose(to_x0("eps", e_u + w * (e_c - e_u), xt, a, s), x_u + w * (x_c - x_u))


def test_joined_conditions():
    one = Condition(label=torch.tensor([3, 4]), text=("a", "b"), layout=torch.zeros(2, 1, 5), source=torch.ones(2, 1, 2, 2))
    both = joined((one, Condition(source=torch.zeros(2, 1, 2, 2))), 2)
    assert both.label is not None
    assert both.label.tolist() == [3, 4, -1, -1]
    assert both.text == ("a", "b", "", "")
    assert both.layout is not None
    assert both.layout[2:].eq(-1).all()
    assert both.source is not None
    assert both.source.shape == (4, 1, 2, 2)
    assert joined((Condition(), Condition()), 2).given() == frozenset()
    with pytest.raises(ValueError, match="source"):
        joined((one, Condition()), 2)


@pytest.mark.parametrize("n", [8, 50, 250])
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_levels_asked_for_bound_every_spacing_within_the_path(spacing: Spacing, n: int) -> None:
    path = flow_path()  # it ends in pure noise, 1e4
    s = spaced(path, n, spacing, (0.05, 80.0))
    assert s[-1] == 0 and len(s) == n + 1 and bool((s.diff() < 0).all())
    assert float(s[0]) <= 80.0 * (1 + 1e-9)
    assert float(s[-2]) >= 0.05 * (1 - 1e-9)
    if spacing != "leading":
        assert float(s[0]) == pytest.approx(80.0)
    if spacing in ("karras", "loglinear", "linspace"):
        assert float(s[-2]) == pytest.approx(0.05)
    assert torch.equal(spaced(path, n, spacing, (1e-9, 1e9)), spaced(path, n, spacing, (path.s_min, path.s_max)))  # no wider than the path
    with pytest.raises(UserError, match="lie outside"):
        spaced(path, 8, spacing, (2e4, 3e4))


def test_a_range_of_levels_that_means_nothing_is_refused() -> None:
    for levels in ((0.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1.0)):
        with pytest.raises(UserError, match="not a range of noise"):
            Sampling().asked(Request((0,), levels=levels))
    assert Sampling(levels=(0.1, 1.0)).asked(Request((0,))).levels == (0.1, 1.0)
    assert Sampling(levels=(0.1, 1.0)).asked(Request((0,), levels=(0.2, 3.0))).levels == (0.2, 3.0)
