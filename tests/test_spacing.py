"""Noise levels for every number of steps, the names of solvers, and guidance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Condition, UserError
from pixelkiln.processes import GaussianPath, cosine_path, linear_path, to_x0
from pixelkiln.solvers import SOLVERS, classifier_free, heun, karras, log_linear, solver, spaced, uniform_time
from pixelkiln.solvers.guidance import joined


@pytest.mark.parametrize("path", [linear_path(), cosine_path()], ids=lambda p: p.name)
@pytest.mark.parametrize("spacing", ["karras", "time", "loglinear"])
def test_levels_for_every_number_of_steps(path: GaussianPath, spacing: str):
    s_max, s_min = path.s_max, path.s_min
    for n in (*range(1, 65), *range(65, 1001, 17)):
        s = spaced(path, n, spacing)
        assert s.shape == (n + 1,)
        assert s.dtype == torch.float64
        assert s[-1] == 0
        assert s.diff().max() < 0
        assert abs(s[0] / s_max - 1) < 1e-12  # trailing: the highest noise is always there
        assert s[-2] > s_min * (1 - 1e-9)


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


def test_names():
    assert set(SOLVERS) == {"ddpm", "ddim", "euler", "heun", "dpmpp-2m"}
    assert solver("heun").run is heun
    assert solver("heun").evaluations(10) == 19
    assert {n for n in SOLVERS if SOLVERS[n].stochastic} == {"ddpm", "ddim"}
    assert [n for n in SOLVERS if SOLVERS[n].eta] == ["ddim"]
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
