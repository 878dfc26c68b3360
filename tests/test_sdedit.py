"""SDEdit over a Gaussian "model" whose denoiser is exact, so that what comes out is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelkiln.core.protocols import Denoiser, Method
from pixelkiln.core.types import Ability, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.edit.sdedit import SDEdit, SDEditConfig, levels_below, sdedit
from pixelkiln.processes import cosine_path, linear_path
from pixelkiln.solvers import SOLVERS, solver, spaced
from pixelkiln.solvers.diffusion import Sampling

INFO = DataInfo(ImageShape(1, 2, 3), ("low", "high"))
MU, VAR = 0.2, 0.01  # data: every pixel N(MU, VAR), shifted by 0.3 for the class "high" and by -0.3 for "low"


class Gaussian(Method, Denoiser):
    """The exact denoiser of N(mu(label), VAR) along a path."""

    abilities = frozenset({Ability.LABEL, Ability.STEPS, Ability.SOLVER, Ability.ETA, Ability.GUIDANCE, Ability.TRUNCATION})

    def __init__(self, path=cosine_path(), abilities: frozenset[Ability] = abilities) -> None:
        super().__init__(INFO)
        self.path, self.abilities = path, abilities
        self.sigma_range = (path.s_min, path.s_max)
        self.seen: list[float] = []

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        assert x.shape[1:] == (1, 2, 3)
        assert sigma.shape == x.shape[:1]
        assert cond.given() <= {"label"}
        self.seen.append(float(sigma[0]))
        label = cond.label if cond.label is not None else torch.full((len(x),), -1)
        mu = MU + 0.3 * torch.tensor([-1.0, 1.0, 0.0])[label].view(-1, 1, 1, 1)
        s = sigma.view(-1, 1, 1, 1) ** 2
        return mu + VAR / (VAR + s) * (x - mu)

    def sigmas(self, steps: int, solver_name: str, spacing: str | None = None, levels: tuple[float, float] | None = None) -> Tensor:
        return spaced(self.path, steps, spacing or solver(solver_name).spacing, levels)

    def draw(self, request: Request) -> Tensor:
        raise NotImplementedError


def sources(n: int) -> Tensor:
    return torch.linspace(-1, 1, n * 6).view(n, 1, 2, 3)


def edited(request: Request, base: Method | None = None, config: SDEditConfig = SDEditConfig()) -> Tensor:
    return SDEdit(INFO, config, {"base": base or Gaussian()}).sample(request)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_strength_towards_0_returns_the_source_and_1_forgets_it(name: str):
    seeds, order = tuple(range(8)), {"solver": name, "steps": 30}
    a = Request(seeds, Condition(source=sources(8)), strength=1e-4, **order)
    if not name.startswith("pc"):  # a corrector's step is sized by a score that falls as 1 / s, which that of this smooth density does not
        assert torch.allclose(edited(a), sources(8), atol=5e-3)
    b = replace(a, strength=1.0)
    same = edited(b)
    other = edited(replace(b, cond=Condition(source=-sources(8))))
    assert (same - other).abs().max() < 0.01  # only the seed matters
    assert (same - sources(8)).abs().max() > 0.5


@pytest.mark.parametrize("path", [linear_path(), cosine_path()], ids=lambda p: p.name)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_start_is_chosen_by_noise_level(path, name: str):
    """t = strength t_max on the parent's time axis, whatever the solver, its spacing and the number of steps; then all the steps."""
    base = Gaussian(path)
    for strength in (0.001, 0.3456, 0.95, 1.0):
        want = path.ratio(torch.tensor(strength * path.t_max, dtype=torch.float64)).item()
        for n in (1, 7, 1000):
            s = levels_below(base, strength, Sampling(name, n))
            assert s.shape == (n + 1,)
            assert s.dtype == torch.float64
            assert s[-1] == 0
            assert s.diff().max() < 0
            assert s[0].item() == pytest.approx(want, rel=2e-3)


def test_step_index_would_be_another_level():
    """The trap: on levels that are not uniform in time, the step n * strength has another level than the time t * strength."""
    s = Gaussian().sigmas(40, "heun")
    assert abs(math.log(s[20] / levels_below(Gaussian(), 0.5, Sampling("heun", 40))[0])) > 0.1


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "ddpm"])
def test_levels_below_keep_the_parents_spacing(name: str):
    """At full strength they are (nearly) the parent's own; below, they stay uniform in what the spacing is uniform in."""
    base = Gaussian()
    full, fine = levels_below(base, 1.0, Sampling(name, 1000)), base.sigmas(1000, name)
    assert torch.allclose(full, fine, rtol=1e-9)
    part = levels_below(base, 0.5, Sampling(name, 20))[:-1]
    to = {"karras": lambda s: s ** (1 / 7), "loglinear": lambda s: s.log(), "time": base.path.t_of_ratio}[solver(name).spacing]
    gaps = to(part).diff()
    assert torch.allclose(gaps, gaps.mean().expand_as(gaps), rtol=0.01)


def test_evaluations_start_at_the_chosen_level_and_are_as_many_as_asked():
    base = Gaussian()
    edited(Request((1,), Condition(source=sources(1)), strength=0.4, steps=9, solver="heun"), base)
    assert len(base.seen) == 17
    assert base.seen[0] == pytest.approx(base.path.ratio(torch.tensor(0.4 * base.path.t_max)).item(), rel=2e-3)


def test_closed_form_for_one_deterministic_edit():
    """The flow maps x = source + s_0 z to mu + sqrt(VAR / (VAR + s_0^2)) (x - mu): mean over many seeds, and spread."""
    n, strength = 2000, 0.1
    source = torch.full((n, 1, 2, 3), 0.5)
    out = edited(Request(tuple(range(n)), Condition(source=source), strength=strength, steps=60, solver="heun"))
    s_0 = levels_below(Gaussian(), strength, Sampling("heun", 1))[0].item()
    shrink = math.sqrt(VAR / (VAR + s_0**2))
    assert out.mean().item() == pytest.approx(MU + shrink * (0.5 - MU), abs=2e-3)
    assert out.std().item() == pytest.approx(shrink * s_0, rel=0.02)


@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim", 1.0), ("ddim", None), ("heun", None)])
def test_samples_depend_on_their_own_seed_and_row_alone(name: str, eta: float | None):
    cond = Condition(label=torch.tensor([0, 1, -1, 1, 0]), source=sources(5))
    whole = Request((5, 6, 7, 8, 9), cond, solver=name, eta=eta, steps=6, strength=0.6, guidance=2.0)
    parts = torch.cat([edited(whole.take(slice(a, b))) for a, b in ((0, 2), (2, 3), (3, 5))])
    assert torch.allclose(edited(whole), parts, atol=1e-6)
    assert torch.equal(edited(whole), edited(whole))
    assert not torch.allclose(edited(whole), edited(replace(whole, seeds=(1, 2, 3, 4, 0))), atol=1e-3)


def test_label_and_guidance_reach_the_parent():
    """Guidance w moves the Gaussian's mean to MU + w (mu(label) - MU), up to what is left of the start."""
    seeds, source = tuple(range(64)), torch.zeros(64, 1, 2, 3)
    for label, w in ((0, None), (1, None), (1, 2.0), (1, 0.0)):
        cond = Condition(label=torch.full((64,), label), source=source)
        out = edited(Request(seeds, cond, strength=1.0, guidance=w, steps=50))
        assert out.mean().item() == pytest.approx(MU + (1.0 if w is None else w) * 0.3 * (2 * label - 1), abs=0.02)


def test_refusals_name_the_remedy():
    ok = Request((1, 2), Condition(source=sources(2)), steps=2)
    cases = [
        (Request((1,)), "--source"),
        (replace(ok, cond=Condition(source=sources(1))), "one for each"),
        (replace(ok, cond=Condition(source=torch.zeros(2, 3, 2, 3))), "one for each"),
        (replace(ok, strength=0.0), "strength"),
        (replace(ok, strength=1.01), "strength"),
        (replace(ok, strength=math.nan), "strength"),
        (replace(ok, steps=0), "1 or more"),
        (replace(ok, solver="dpmpp-2n"), "dpmpp-2m"),
        (replace(ok, eta=0.5), "ddim"),
        (replace(ok, eta=2.0, solver="ddim"), "eta"),
        (replace(ok, truncation=0.5), "truncation"),
    ]
    for request, words in cases:
        with pytest.raises(UserError, match=words) as e:
            edited(request)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="--parent base=RUN"):
        SDEdit(INFO, SDEditConfig())


def test_abilities_are_the_parents_that_apply():
    made = SDEdit(INFO, SDEditConfig(), {"base": Gaussian()})
    assert made.abilities == Gaussian.abilities - {Ability.TRUNCATION} | {Ability.SOURCE, Ability.STRENGTH}
    plain = SDEdit(INFO, SDEditConfig(), {"base": Gaussian(abilities=frozenset({Ability.STEPS}))})
    assert plain.abilities == {Ability.SOURCE, Ability.STRENGTH, Ability.STEPS}
    with pytest.raises(UserError, match="guidance"):
        plain.sample(Request((1,), Condition(source=sources(1)), guidance=2.0))
    assert list(made.updates()) == []
    assert list(made.parameters()) == []
    assert made.state_dict() == {}


def test_callback_counts_the_steps():
    seen: list[tuple[int, int]] = []
    edited(Request((1,), Condition(source=sources(1)), steps=5, callback=lambda i, n, x0: seen.append((i, n))))
    assert seen == [(i, 5) for i in range(5)]


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipe(size: str):
    recipe = sdedit(size)
    assert recipe.family == "editing"
    assert "2108.01073" in recipe.paper
    assert recipe.last.method is SDEdit
    assert dict(recipe.last.parents) == {"base": ""}
    out = SDEdit(INFO, recipe.last.model, {"base": Gaussian()}).sample(Request((3,), Condition(source=sources(1))))
    assert out.shape == (1, 1, 2, 3)
    assert torch.isfinite(out).all()
