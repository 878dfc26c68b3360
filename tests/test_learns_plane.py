"""Every diffusion recipe learns: two shapes in the plane by a perceptron, small pictures by each network, and pictures from what is left of them.

In the plane the bar is the Gaussian that has the class's own mean and covariance: a model that has learned no more than those fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelkiln.core.protocols import Method, Update
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, Request
from pixelkiln.methods.ddpm import DDPM, DDPMConfig
from pixelkiln.methods.edm import EDM, EDMConfig
from pixelkiln.methods.flow import Flow, FlowConfig
from pixelkiln.methods.iddpm import IDDPM, IDDPMConfig
from pixelkiln.methods.palette import Palette, PaletteConfig
from pixelkiln.methods.sde import SDE, SDEConfig
from pixelkiln.nets.dit import DiTConfig
from pixelkiln.nets.mlp import MLPConfig
from pixelkiln.nets.mpunet import MPUNetConfig
from pixelkiln.nets.unet import UNetConfig
from pixelkiln.processes import Density

pytestmark = pytest.mark.learns
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]  # n, generator -> x (n, C, H, W), labels (n,)
WIDE = Density("log-normal", mean=-1.0, std=1.8)  # of ln s, as the small recipes have it
PERCEPTRON = MLPConfig(width=128, depth=3)


@pytest.fixture(autouse=True)
def begun_alike() -> None:
    """The weights that a network begins with do not depend on the tests before."""
    torch.manual_seed(0)


def plane(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (n, 1, 1, 2): of class 0 two spots, of class 1 an arc below them."""
    label = torch.randint(2, (n,), generator=gen)
    spots = torch.stack([0.6 * (2.0 * torch.randint(2, (n,), generator=gen) - 1), torch.full((n,), 0.5)], 1)
    angle = math.pi * torch.rand(n, generator=gen)
    arc = torch.stack([0.8 * angle.cos(), -0.7 * angle.sin()], 1)
    x = torch.where(label[:, None] == 0, spots, arc) + 0.06 * torch.randn(n, 2, generator=gen)
    return x.view(n, 1, 1, 2), label


def energy(a: Tensor, b: Tensor) -> float:
    """Energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of points (n, d) (Szekely and Rizzo 2013)."""
    within = torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) + torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


def trained(method: Method, draw: Draw, steps: int, batch: int, lr: float = 4e-3) -> Method:
    """The method after so many steps of Adam, whose rate falls to nothing, by its own updates."""
    torch.manual_seed(0)
    (row,) = [row for row in method.updates() if isinstance(row, Update)]
    gen, opt = torch.Generator().manual_seed(1), torch.optim.Adam([p for net in row.nets for p in getattr(method, net).parameters()], lr, (0.9, 0.99))
    method.train()
    for k in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * k / steps)) / 2
        x, label = draw(batch, gen)
        opt.zero_grad()
        row.loss(Batch(x, Condition(label)), Moment(k, steps, batch * k))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], 1.0)
        opt.step()
    return method.eval()


def planar() -> Iterator[Any]:
    """A method and its config for each recipe that draws from noise alone, and other predictions, schedules and objectives."""
    common = {"net": PERCEPTRON, "dim": 64}
    yield pytest.param(DDPM, DDPMConfig(**common), id="ddpm")
    yield pytest.param(DDPM, DDPMConfig(**common, predict="x0", weighting="min-snr"), id="ddpm-x0-min-snr")
    yield pytest.param(DDPM, DDPMConfig(**common, schedule="linear-zero-snr", balance=True), id="ddpm-zero-snr-balanced")
    yield pytest.param(IDDPM, IDDPMConfig(**common, resample=True), id="iddpm")
    yield pytest.param(SDE, SDEConfig("vp", **common), id="vp-sde")
    yield pytest.param(SDE, SDEConfig("subvp", **common), id="subvp-sde")
    yield pytest.param(SDE, SDEConfig("ve", **common), id="ve-sde")
    yield pytest.param(EDM, EDMConfig(**common, density=WIDE), id="edm")
    yield pytest.param(EDM, EDMConfig(**common, density=WIDE, uncertainty=True), id="edm2")
    yield pytest.param(Flow, FlowConfig(**common), id="flow")


@pytest.mark.parametrize(("kind", "config"), list(planar()))
def test_recipes_learn_shapes_in_the_plane_by_class(kind: type[Method], config: Any) -> None:
    method = trained(kind(DataInfo(ImageShape(1, 1, 2), ("spots", "arc")), config), plane, 350, 128)
    x, label = plane(3000, torch.Generator().manual_seed(2))
    asked = torch.arange(800) % 2
    found = method.sample(Request(tuple(range(800)), Condition(asked), guidance=1.0, solver="dpmpp-2m", steps=20, levels=(0.02, 80.0))).view(-1, 2)
    for k in range(2):
        real = x[label == k].view(-1, 2)
        blur = torch.distributions.MultivariateNormal(real.mean(0), real.T.cov())
        assert energy(found[asked == k], real) < 0.35 * energy(blur.sample((600,)), real), f"class {k}"


def bars(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 8, 8) of one bright bar two pixels thick, of class 0 a row and of class 1 a column, at one of four places."""
    label, at = torch.randint(2, (n,), generator=gen), torch.randint(4, (n,), generator=gen)
    rows = (torch.arange(8)[:, None] // 2 == at[:, None, None]).float().expand(n, 8, 8)
    x = torch.where(label[:, None, None] == 0, rows, rows.mT)
    return (1.6 * x - 0.8)[:, None], label


@pytest.mark.parametrize(
    ("kind", "config", "steps", "batch", "lr"),
    [
        pytest.param(Flow, FlowConfig(UNetConfig(width=16, mults=(1,), blocks=1, attention=(0,)), dim=32), 120, 32, 4e-3, id="unet"),
        pytest.param(Flow, FlowConfig(DiTConfig(width=48, depth=2, heads=2), dim=48), 600, 32, 4e-3, id="dit"),
        pytest.param(EDM, EDMConfig(MPUNetConfig(width=16, mults=(1,), blocks=1, attention=(0,)), dim=32, density=WIDE, uncertainty=True), 200, 32, 4e-2, id="mpunet"),
    ],
)
def test_networks_learn_where_things_lie_and_the_class_that_they_are_asked_for(kind: type[Method], config: Any, steps: int, batch: int, lr: float) -> None:
    method = trained(kind(DataInfo(ImageShape(1, 8, 8), ("row", "column")), config), bars, steps, batch, lr)
    asked = torch.arange(64) % 2
    found = method.sample(Request(tuple(range(64)), Condition(asked), solver="dpmpp-2m", steps=12, levels=(0.05, 80.0)))
    every, label = bars(64, torch.Generator().manual_seed(2))
    distance = (found.flatten(1)[:, None] - every.flatten(1)[None]).pow(2).mean(2)  # (64, 64)
    off, nearest = distance.min(1)
    assert (label[nearest] == asked).float().mean() > 0.85, "the class that was asked for"
    assert off.mean() < 0.25, "true to pixels: a bar at the wrong place is off by 1.28, a broken one by some 0.5"
    assert len({(int(label[k]), float(every[k].argmax())) for k in nearest}) >= 6, "places of 8"


def tinted(n: int, gen: torch.Generator) -> tuple[Tensor, None]:
    """Pictures (n, 3, 4, 4): a grey value, checks of fixed contrast on it, and a tint, red where it is bright and blue where it is dark."""
    grey = (0.2 + 0.3 * torch.rand(n, 1, 1, 1, generator=gen)) * (2.0 * torch.randint(2, (n, 1, 1, 1), generator=gen) - 1)
    check = 0.2 * (1 - 2.0 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2))
    return grey + check + 0.3 * torch.sign(grey) * torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1), None


@pytest.mark.parametrize("task", ["upscale", "colorize", "inpaint"])
def test_pictures_are_made_whole_from_what_is_left_of_them(task: Any) -> None:
    """What the rest of a picture decides is put right: the checks within a block, the tint, and all of what is hidden."""
    method = trained(Palette(DataInfo(ImageShape(3, 4, 4)), PaletteConfig(task, factor=2, net=PERCEPTRON, dim=32)), tinted, 300, 64)
    x, _ = tinted(32, torch.Generator().manual_seed(2))
    mask = torch.zeros(32, 1, 4, 4)
    mask[:, :, 1:3, 1:3] = 1
    cond = Condition(source=x, mask=mask if task == "inpaint" else None)
    made = method.sample(Request(tuple(range(32)), cond, solver="dpmpp-2m", steps=12, levels=(0.05, 80.0)))
    given = x * (1 - mask) if task == "inpaint" else method.map_of(cond, 32, x.device).expand_as(x)  # type: ignore[operator]
    hidden = mask.bool().expand_as(x) if task == "inpaint" else torch.ones_like(x).bool()
    ours, theirs = (((y - x) ** 2)[hidden].mean() for y in (made, given))
    assert ours < 0.3 * theirs, (float(ours), float(theirs))
