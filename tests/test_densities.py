"""Times of training against SciPy's laws: a stratified sample follows a distribution function to within 1 / n, by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pixelkiln.objectives.denoising import loss_weight
from pixelkiln.processes import PATHS, Density, GaussianPath, draw_times, edm_path, flow_path, linear_path, quantile, strata

N = 4000
ALL = {name: make() for name, make in PATHS.items()}
DENSITIES = [Density(), Density("log-normal", -1.2, 1.2), Density("log-normal", -0.4, 1.0), Density("logit-normal", 0.0, 1.0), Density("logit-normal", 0.5, 0.6)]


def within(law: stats.rv_continuous, x: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov-Smirnov distance to a law cut off outside [low, high]."""
    a, b = law.cdf(low), law.cdf(high)
    return stats.kstest(x, lambda v: (law.cdf(v) - a) / (b - a)).statistic


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: f"{d.name} {d.mean} {d.std}")
@pytest.mark.parametrize("name", list(ALL))
def test_times_follow_the_density_on_every_path(name: str, density: Density):
    path = ALL[name]
    torch.manual_seed(0)
    t = draw_times(N, path, density)
    assert t.dtype == torch.float64
    assert t.shape == (N,)
    assert ((t >= path.t_min) & (t <= path.t_max)).all()
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    if density.name == "uniform":
        distance = stats.kstest(t.numpy(), stats.uniform(path.t_min, path.t_max - path.t_min).cdf).statistic
    elif density.name == "log-normal":
        low, high = path.ratio(ends).tolist()
        distance = within(stats.lognorm(s=density.std, scale=math.exp(density.mean)), path.ratio(t).numpy(), low, high)
    else:
        low, high = torch.logit(ends).tolist()
        distance = within(stats.norm(density.mean, density.std), torch.logit(t).numpy(), low, high)
    assert distance < 1.01 / N  # of independent draws it would be about 0.9 / sqrt(N), fifty times as much


def test_edm_times_are_the_papers_log_normal_levels():
    """Its range holds all but 2e-5 of the mass, so being cut off does not show."""
    torch.manual_seed(0)
    s = edm_path().ratio(draw_times(N, edm_path(), Density("log-normal", -1.2, 1.2))).log()
    assert stats.kstest(s.numpy(), stats.norm(-1.2, 1.2).cdf).statistic < 1.1 / N
    assert s.mean().item() == pytest.approx(-1.2, abs=0.003)
    assert s.std().item() == pytest.approx(1.2, abs=0.005)


def test_a_density_is_in_random_order_with_jitter_and_each_draw_alone_has_it():
    torch.manual_seed(0)
    draws = torch.stack([draw_times(8, flow_path(), Density("logit-normal", 0.3, 0.8)) for _ in range(1500)])  # (1500, 8)
    for column in (0, 5):
        assert stats.kstest(torch.logit(draws[:, column]).numpy(), stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.25  # strata exclude each other: -1 / 7
    cell = (strata(1000) * 1000).long()
    assert cell.sort().values.tolist() == list(range(1000))
    assert cell.tolist() != list(range(1000))


def test_strata_lower_the_variance_of_a_mean():
    torch.manual_seed(1)
    path, density = edm_path(), Density("log-normal", -1.2, 1.2)
    loss = lambda t: path.ratio(t) ** 2 / (1 + path.ratio(t) ** 2)
    drawn = torch.stack([loss(draw_times(64, path, density)).mean() for _ in range(300)])
    alone = torch.stack([loss(quantile(torch.rand(64, dtype=torch.float64), path, density)).mean() for _ in range(300)])
    assert drawn.mean().item() == pytest.approx(alone.mean().item(), abs=0.02)
    assert drawn.var() < alone.var() / 100


def test_the_global_generator_decides():
    a, b, c = ((torch.manual_seed(k), draw_times(16, flow_path()))[1] for k in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("path", [linear_path(), edm_path(), flow_path()], ids=lambda p: p.name)
def test_weight_and_density_multiply(path: GaussianPath):
    """E_{t ~ p}[w L] is the integral of p w L, with p from SciPy: of both, the product is the objective, and neither alone."""
    density, error = Density("log-normal", -0.4, 1.0), lambda s: s**2 / (s**2 + 0.25)
    law, low, high = stats.norm(-0.4, 1.0), math.log(path.s_min), math.log(float(path.ratio(torch.tensor(path.t_max))))
    share = law.cdf(high) - law.cdf(low)
    weight = lambda s: loss_weight("x0", "edm", torch.as_tensor(s, dtype=torch.float64) ** -2)
    torch.manual_seed(0)
    s = path.ratio(draw_times(20_000, path, density))
    ours = (weight(s) * error(s)).mean().item()
    both = integrate.quad(lambda v: law.pdf(v) / share * float(weight(math.exp(v))) * error(math.exp(v)), max(low, -9), min(high, 9))[0]
    alone = integrate.quad(lambda v: law.pdf(v) / share * error(math.exp(v)), max(low, -9), min(high, 9))[0]
    assert ours == pytest.approx(both, rel=1e-3)
    assert ours > 3 * alone
