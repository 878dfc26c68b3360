"""The picture of docs/flow.md: a flow between a Gaussian and a spiral in the plane, its velocity field and points on their way. A minute, on any machine.

    python benchmarks/fields.py [--out docs/pictures/field.svg] [--steps 4000]

It also prints how far the points end from the data, as the energy distance, after 1 to 50 steps of two solvers.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, Request
from pixelkiln.methods.flow import Flow, FlowConfig
from pixelkiln.nets.mlp import MLPConfig
from pixelkiln.processes import Density
from pixelkiln.solvers.diffusion import Sampling

TIMES = (0.95, 0.6, 0.3, 0.02)  # of the panels
SIDE, REACH = 240, 1.8  # pixels of a panel, and where its edge lies


def spiral(n: int, gen: torch.Generator) -> Tensor:
    """Points (n, 1, 1, 2) of two arms, in [-1, 1]."""
    u, arm = torch.rand(n, generator=gen).sqrt(), torch.randint(2, (n,), generator=gen)
    angle = 2 * math.pi * u + math.pi * arm
    x = torch.stack([u * angle.cos(), u * angle.sin()], 1) + 0.02 * torch.randn(n, 2, generator=gen)
    return x.view(n, 1, 1, 2)


def trained(steps: int) -> Flow:
    """A perceptron of four blocks, Adam, 512 points a step."""
    config = FlowConfig(MLPConfig(width=256, depth=4), dim=128, density=Density("uniform"), drop=0.0, clip=False, sampling=Sampling("heun", 25))
    flow, gen = Flow(DataInfo(ImageShape(1, 1, 2)), config).train(), torch.Generator().manual_seed(1)
    opt = torch.optim.Adam(flow.parameters(), 2e-3)
    for k in range(steps):
        opt.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * k / steps)) / 2
        loss = flow.loss(Batch(spiral(512, gen)), Moment(k, steps, 512 * k))["loss"]
        opt.zero_grad()
        loss.backward()
        opt.step()
        if k % 1000 == 0:
            print(f"step {k:5}  loss {loss.item():.3f}", flush=True)
    return flow.eval()


def energy(a: Tensor, b: Tensor) -> float:
    """Energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of points (n, 2) (Szekely and Rizzo 2013); 0 for one distribution, but for n."""
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


@torch.no_grad()
def panel(flow: Flow, t: float, x: Tensor, left: int) -> str:
    """The field at a time as strokes, and the points there, x (n, 2)."""
    at = torch.linspace(-REACH, REACH, 17)[1:-1]
    grid = torch.cartesian_prod(at, at)
    u = flow.network(grid.view(-1, 1, 1, 2), torch.full((len(grid),), t, dtype=torch.float64), Condition()).view(-1, 2)

    def px(v: Tensor) -> list[list[float]]:
        return ((v / REACH + 1) * SIDE / 2).tolist()

    tips = grid - 0.14 * u / u.norm(dim=1, keepdim=True).clamp_min(1)  # time runs back, from noise to data
    parts = [f'<g transform="translate({left} 24)"><rect width="{SIDE}" height="{SIDE}" class="frame"/>']
    strokes = "".join(f"M{a:.0f} {b:.0f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in zip(px(grid), px(tips), strict=True))
    points = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in px(x[x.abs().amax(1) < REACH]))
    parts.append(f'<path d="{strokes}" class="field"/><path d="{points}" class="point"/>')
    return "".join([*parts, f'</g><text x="{left + SIDE / 2}" y="15" text-anchor="middle">t = {t:g}</text>'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/field.svg"))
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()
    torch.manual_seed(0)
    flow = trained(args.steps)
    gen = torch.Generator().manual_seed(2)
    x, h, panels = torch.randn(700, 1, 1, 2, generator=gen), 1 / 400, []
    with torch.no_grad():
        for k in range(400):  # Euler's method along the straight path itself, fine enough to be exact for the eye
            t = 1 - k * h
            if any(abs(t - shown) < h / 2 for shown in TIMES):
                panels.append(panel(flow, round(t, 3), x.view(-1, 2), 4 + len(panels) * (SIDE + 8)))
            x = x - h * flow.network(x, torch.full((len(x),), t, dtype=torch.float64), Condition())
    width = 4 + 4 * (SIDE + 8)
    style = ".frame{fill:none;stroke:#8888}.field{stroke:#88888899;stroke-width:1}.point{stroke:#d9480f;stroke-width:2.6;stroke-linecap:round}text{font:13px sans-serif;fill:#777}"
    args.out.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {SIDE + 28}" width="{width}"><style>{style}</style>{"".join(panels)}</svg>\n', encoding="utf-8")
    data, more = spiral(4000, gen).view(-1, 2), spiral(4000, gen).view(-1, 2)
    print(f"energy distance x 1000: data and other data {1000 * energy(data, more):.2f}")
    for solver in ("euler", "heun"):
        found = []
        for evaluations in (1, 3, 5, 9, 19, 49):
            steps = evaluations if solver == "euler" else (evaluations + 1) // 2
            request = Request(tuple(range(4000)), steps=steps, solver=solver, spacing="time", levels=(0.01, 80.0))
            found.append(f"{evaluations}: {1000 * energy(flow.sample(request).view(-1, 2), data):.2f}")
        print(f"{solver:6}", "   ".join(found))


if __name__ == "__main__":
    main()
