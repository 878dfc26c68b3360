"""The picture of docs/gan.md: every objective and every rule in the smallest game there is, the Dirac-GAN (Mescheder et al. 2018, arXiv 1801.04406,
section 2): all data at 0, a generator that is one number theta, a discriminator D(x) = psi x. A minute, on any machine.

    python benchmarks/dirac.py [--out docs/pictures/dirac.svg]

Losses, penalties and their derivatives are the package's own. Least squares aims at two levels of D, so that there D(x) = psi x + b. It also prints the
eigenvalues of the gradient field at the equilibrium and how far from it each game ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from pixelkiln.objectives.adversarial import OBJECTIVES
from pixelkiln.objectives.penalties import gradient_penalty, squared_gradient

RULES = ("none", "clipping", "gradient penalty", "noise", "R1", "R2")
CLIP, LAMBDA, SIGMA, GAMMA = 1.0, 0.25, 1.0, 1.0  # |psi| <= CLIP; weight of WGAN-GP's penalty; deviation of the noise; of R1 and R2
SIDE, REACH = 118, 2.1  # pixels of a panel, and where its edge lies


def normal(n: int = 12) -> Tensor:
    """Points (n,) that stand for N(0, 1): its quantiles, of variance 1."""
    e = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return e / e.square().mean().sqrt()


def losses(objective: str, rule: str, state: Tensor, gamma: float = GAMMA, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    """L_D and L_G of the state (theta, psi, b)."""
    theta, psi, b = state
    game, e = OBJECTIVES[objective], sigma * normal() if rule == "noise" else torch.zeros(1, dtype=torch.float64)
    real = e.repeat_interleave(len(e)).view(-1, 1, 1, 1)  # every pair of noises, so that paired objectives have their mean, too
    fake = (theta + e.repeat(len(e))).view(-1, 1, 1, 1)

    def critic(x: Tensor) -> Tensor:
        return psi * x.flatten(1).sum(1) + b

    d, g = game.d(critic(real), critic(fake)), game.g(critic(real), critic(fake))
    if rule == "gradient penalty":
        d = d + LAMBDA * gradient_penalty(critic, real, fake)
    if rule in ("R1", "R2"):
        d = d + gamma / 2 * squared_gradient(critic, real if rule == "R1" else fake)
    return d, g


def field(objective: str, rule: str, **strength: float) -> Callable[[Tensor], Tensor]:
    """State (3,) -> its velocity (-dL_G/dtheta, -dL_D/dpsi, -dL_D/db), which can be differentiated again."""

    def velocity(state: Tensor) -> Tensor:
        again = state.requires_grad
        state = state if again else state.detach().requires_grad_()
        d, g = losses(objective, rule, state, **strength)
        (of_d,), (of_g,) = (torch.autograd.grad(loss, state, retain_graph=True, create_graph=again) for loss in (d, g))
        free = objective == "least-squares"  # the others need no b, and have no place for it at 0
        return torch.stack([-of_g[0], -of_d[1], -of_d[2] if free else 0 * of_d[2]])

    return velocity


def equilibrium(objective: str) -> Tensor:
    """Generated images are the real ones, and D says the same of all."""
    return torch.tensor([0.0, 0.0, 0.5 if objective == "least-squares" else 0.0], dtype=torch.float64)


def eigenvalues(objective: str, rule: str, **strength: float) -> Tensor:
    """Of the velocity's Jacobian at the equilibrium, in theta and psi, complex (2,); b is on its own there."""
    jacobian = torch.autograd.functional.jacobian(field(objective, rule, **strength), equilibrium(objective))
    assert isinstance(jacobian, Tensor)
    return torch.linalg.eigvals(jacobian[:2, :2])


def step(velocity: Callable[[Tensor], Tensor], state: Tensor, h: float, together: bool) -> Tensor:
    """One step of D and one of G; at once, or G against the new D."""
    v = velocity(state)
    moved = torch.cat([state[:1], state[1:] + h * v[1:]])
    return moved + torch.cat([h * (v if together else velocity(moved))[:1], torch.zeros_like(v[1:])])


def walk(objective: str, rule: str, *, h: float, steps: int, together: bool = False, start: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The way (steps + 1, 2) of theta and psi from the start."""
    velocity, state = field(objective, rule), equilibrium(objective)
    state[:2] = torch.tensor(start)
    seen = [state]
    for _ in range(steps):
        state = step(velocity, state, h, together).detach()
        if rule == "clipping":
            state = torch.cat([state[:1], state[1:].clamp(-CLIP, CLIP)])
        seen.append(state)
    return torch.stack(seen)[:, :2].detach()


def line(points: Iterable[tuple[int, int]]) -> str:
    """A path through points in tenths of a pixel, written by differences."""
    points = list(points)
    away = [f"l{c - a} {d - b}".replace(" -", "-") for (a, b), (c, d) in zip(points, points[1:], strict=False)]
    return f"M{points[0][0]} {points[0][1]}" + "".join(away)


def panel(objective: str, rule: str, left: int, top: int) -> str:
    """theta to the right, psi upwards; both ways of taking turns, and a dot where the alternating one ends."""
    at = lambda w: [(round((5 + 5 * float(t) / REACH) * SIDE), round((5 - 5 * float(p) / REACH) * SIDE)) for t, p in w]
    parts = []
    for together in (True, False):
        way = walk(objective, rule, h=0.1, steps=400, together=together)
        far = float(way[-100:].norm(dim=1).max())
        kind = "pale" if together else "still" if far < 0.1 else "on"
        parts.append(f'<path d="{line(at(way[::2]))}" class="{kind}"/>')
        print(f"{objective:16} {rule:17} {'together' if together else 'in turns'}: at most {far:.3f} from the equilibrium in the last 100 of 400 steps")
    (x, y), mid = at(way[-1:])[0], 5 * SIDE
    parts.append(f'<path d="M{mid - 30} {mid}h60M{mid} {mid - 30}v60" class="cross"/><circle cx="{x}" cy="{y}" r="25" class="{kind} dot"/>')
    frame = f'<rect x="5" y="5" width="{10 * SIDE - 10}" height="{10 * SIDE - 10}" class="frame"/>'
    return f'<svg x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" viewBox="0 0 {10 * SIDE} {10 * SIDE}">{frame}{"".join(parts)}</svg>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/dirac.svg"))
    args = parser.parse_args()
    gap, left, top = 6, 108, 24
    width, height = left + len(RULES) * (SIDE + gap), top + len(OBJECTIVES) * (SIDE + gap)
    parts = []
    for j, rule in enumerate(RULES):
        parts.append(f'<text x="{left + j * (SIDE + gap) + SIDE / 2}" y="16" text-anchor="middle">{rule}</text>')
    for i, objective in enumerate(OBJECTIVES):
        y = top + i * (SIDE + gap)
        parts.append(f'<text x="{left - 8}" y="{y + SIDE / 2 + 4}" text-anchor="end">{objective}</text>')
        parts += [panel(objective, rule, left + j * (SIDE + gap), y) for j, rule in enumerate(RULES)]
        for rule in RULES:
            if rule != "gradient penalty":  # has none at the equilibrium: its root is not smooth there
                print(f"{objective:16} {rule:17} eigenvalues {', '.join(f'{z:.3f}' for z in eigenvalues(objective, rule).tolist())}")
    style = (
        "path{fill:none;stroke-width:13;stroke-linejoin:round}.frame{fill:none;stroke:#8888;stroke-width:8}.pale{stroke:#88888888;stroke-width:8}.on{stroke:#d9480f}"
        ".still{stroke:#2b8a3e}.on.dot{fill:#d9480f}.still.dot{fill:#2b8a3e}.cross{stroke:#777;stroke-width:8}text{font:13px sans-serif;fill:#777}"
    )
    args.out.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"><style>{style}</style>{"".join(parts)}</svg>\n', encoding="utf-8")


if __name__ == "__main__":
    main()
