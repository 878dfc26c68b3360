"""The smallest game (Mescheder et al. 2018, arXiv 1801.04406, section 2): which objectives and rules find the data, by our own losses and penalties.

The paper writes L(theta, psi) = f(psi theta) + f(0). f'(0) is 1/2 for the cross-entropy and 1 for Wasserstein's f(t) = t; f''(0) is -1/4 and 0.
"""

from __future__ import annotations

import cmath
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pixelkiln.objectives.adversarial import OBJECTIVES

NAMES = list(OBJECTIVES)
SLOPE = {name: 1.0 if name in ("wasserstein", "hinge") else 0.5 for name in NAMES}  # f'(0); inside its margins the hinge is Wasserstein's
CURVE = {name: -0.25 for name in NAMES} | {"wasserstein": 0.0, "hinge": 0.0, "least-squares": -1.0}  # f''(0)


def load() -> ModuleType:
    """benchmarks/dirac.py, which also makes the page's picture."""
    spec = importlib.util.spec_from_file_location("dirac_benchmark", Path(__file__).resolve().parents[1] / "benchmarks" / "dirac.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dirac = load()


def close(found: Tensor, *expected: complex) -> None:
    """Eigenvalues, in any order."""
    key = lambda z: (round(z.imag, 6), round(z.real, 6))
    assert sorted(found.tolist(), key=key) == pytest.approx(sorted(expected, key=key), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rule_eigenvalues_are_imaginary(name: str) -> None:
    """Section 2: +-f'(0) i. Nothing pulls towards the equilibrium, whatever the step."""
    close(dirac.eigenvalues(name, "none"), 1j * SLOPE[name], -1j * SLOPE[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", ["R1", "R2"])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
def test_gradient_penalties_pull_inwards(name: str, rule: str, gamma: float) -> None:
    """Section 3: -gamma / 2 +- sqrt(gamma^2 / 4 - f'(0)^2), of negative real part for every gamma."""
    root = cmath.sqrt(gamma**2 / 4 - SLOPE[name] ** 2)
    found = dirac.eigenvalues(name, rule, gamma=gamma)
    close(found, -gamma / 2 + root, -gamma / 2 - root)
    assert bool((found.real < 0).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_noise_pulls_inwards_where_the_objective_curves(name: str, sigma: float) -> None:
    """f''(0) sigma^2 +- sqrt(f''(0)^2 sigma^4 - f'(0)^2): helps the cross-entropy, and neither Wasserstein's objective nor the hinge."""
    middle = CURVE[name] * sigma**2
    root = cmath.sqrt(middle**2 - SLOPE[name] ** 2)
    found = dirac.eigenvalues(name, "noise", sigma=sigma)
    close(found, middle + root, middle - root)
    assert bool((found.real < -1e-6).all()) == (CURVE[name] != 0)


@pytest.mark.parametrize("name", NAMES)
def test_finite_steps_together_leave_and_in_turns_go_round(name: str) -> None:
    """Section 2: of simultaneous steps the eigenvalues have modulus sqrt(1 + h^2 f'(0)^2) > 1; of alternating ones modulus 1 while h f'(0) <= 2."""
    velocity, at = dirac.field(name, "none"), dirac.equilibrium(name)

    def moduli(h: float, together: bool) -> list[float]:
        jacobian = torch.autograd.functional.jacobian(lambda s: dirac.step(velocity, s, h, together), at)
        return sorted(torch.linalg.eigvals(jacobian[:2, :2]).abs().tolist())

    for share in (0.1, 1.0, 1.9):
        h = share / SLOPE[name]
        assert moduli(h, True) == pytest.approx([math.sqrt(1 + share**2)] * 2)
        assert moduli(h, False) == pytest.approx([1, 1])
    assert moduli(2.2 / SLOPE[name], False)[1] > 1.1, "too large a step leaves in turns, too"


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("rule", ["R1", "R2"])
@pytest.mark.parametrize("name", NAMES)
def test_r1_and_r2_arrive(name: str, rule: str, together: bool) -> None:
    way = dirac.walk(name, rule, h=0.2, steps=150, together=together)
    assert float(way[0].norm()) == pytest.approx(math.sqrt(2)) and float(way[-20:].norm(dim=1).max()) < 1e-2


@pytest.mark.parametrize("name", [n for n in NAMES if CURVE[n]])
def test_noise_arrives(name: str) -> None:
    for together in (True, False):
        assert float(dirac.walk(name, "noise", h=0.2, steps=250, together=together)[-20:].norm(dim=1).max()) < 1e-2


@pytest.mark.parametrize("name", [n for n in NAMES if not CURVE[n]])
def test_noise_does_not_help_an_objective_without_curvature(name: str) -> None:
    assert float(dirac.walk(name, "noise", h=0.1, steps=300)[-100:].norm(dim=1).min()) > 0.3


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_wasserstein_penalty_does_not_arrive(name: str, together: bool) -> None:
    """D's slope is pulled to 1, at the equilibrium too: theta passes the data at full speed, again and again (section 3)."""
    way = dirac.walk(name, "gradient penalty", h=0.1, steps=500, together=together)
    early, late = way[100:300], way[-200:]
    assert float(late.norm(dim=1).min()) > 0.2 and float(late[:, 0].abs().max()) > 0.8 * float(early[:, 0].abs().max()) > 0.05


@pytest.mark.parametrize("name", ["minimax", "hinge", "wasserstein"])
def test_clipping_goes_round_at_the_radius_of_the_box(name: str) -> None:
    late = dirac.walk(name, "clipping", h=0.05, steps=400)[-200:]
    assert late.norm(dim=1).tolist() == pytest.approx([dirac.CLIP] * 200, rel=0.05)
    assert float(late[:, 1].abs().max()) <= dirac.CLIP


@pytest.mark.parametrize("name", NAMES)
def test_clipping_is_idle_near_the_equilibrium(name: str) -> None:
    """So it has the eigenvalues of no rule at all."""
    ways = [dirac.walk(name, rule, h=0.1, steps=100, start=(0.2, 0.2)) for rule in ("none", "clipping")]
    torch.testing.assert_close(*ways)


@pytest.mark.parametrize("name", ["minimax", "wasserstein"])
def test_the_flow_of_a_zero_sum_game_keeps_its_distance(name: str) -> None:
    """d/dt (theta^2 + psi^2) = 0 (section 2, where both players have one loss); finite simultaneous steps gain h^2 |v|^2 each."""
    velocity, state = dirac.field(name, "none"), torch.tensor([0.7, -1.1, 0.0], dtype=torch.float64)
    assert float(velocity(state).detach() @ state) == pytest.approx(0, abs=1e-12)
    way = dirac.walk("wasserstein", "none", h=0.1, steps=100, together=True)
    assert float(way[-1].norm() / way[0].norm()) == pytest.approx(1.01**50)


@pytest.mark.parametrize("name", ["non-saturating", "relativistic"])
def test_the_flow_of_the_non_saturating_game_falls_inwards_ever_more_slowly(name: str) -> None:
    """d/dt (theta^2 + psi^2) = -2 psi theta tanh(psi theta / 2), about -r^4 / 8 over a turn: 1 / r^2 grows by t / 8. No exponential rate."""
    velocity, state, h, steps = dirac.field(name, "none"), torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64), 0.5, 400
    for _ in range(steps):  # the classical Runge-Kutta method
        a = velocity(state).detach()
        b = velocity(state + h / 2 * a).detach()
        c = velocity(state + h / 2 * b).detach()
        state = state + h / 6 * (a + 2 * b + 2 * c + velocity(state + h * c).detach())
    assert float(1 / state.square().sum()) == pytest.approx(1 / 0.25 + steps * h / 8, rel=0.02)


@pytest.mark.parametrize(("name", "start"), [("non-saturating", 0.35), ("non-saturating", 0.6), ("relativistic", 0.6)])
def test_simultaneous_steps_of_the_non_saturating_game_end_on_a_circle(name: str, start: float) -> None:
    """What a step gains, h r^2 / 4 by unit of time, meets what the flow loses, r^4 / 8, at r^2 = 2 h: from inside and from outside."""
    way = dirac.walk(name, "none", h=0.1, steps=1600, together=True, start=(start, 0.0))
    assert float(way[-130:].square().sum(1).mean()) == pytest.approx(0.2, rel=0.1)
    assert abs(start**2 - 0.2) > 0.07
