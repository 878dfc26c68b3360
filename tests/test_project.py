"""Projection into the latent space of generators of which the answer is known: a linear map, a rotation, classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelkiln.core.protocols import Latent, Method
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import Ability, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.edit.project import Project, ProjectConfig, pyramid

INFO = DataInfo(ImageShape(1, 8, 8), ("a", "b", "c"))
D = 6


class Linear(Method, Latent):
    """x = A z + b(label), tanh if curved; (1, 8, 8) pixels."""

    def __init__(self, labeled: bool = False, curved: bool = False) -> None:
        super().__init__(INFO)
        gen = torch.Generator().manual_seed(2)
        self.register_buffer("matrix", torch.randn(D, 64, generator=gen) / 8)
        self.register_buffer("shift", torch.randn(3, 64, generator=gen))
        self.abilities = frozenset({Ability.LABEL}) if labeled else frozenset()
        self.labeled, self.curved = labeled, curved

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return noise(streams(seeds, "z"), (D,))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        x = z @ self.matrix
        if self.labeled:
            if request.cond.label is None:
                raise UserError("give a label")
            x = x + self.shift[request.cond.label]
        return (x.tanh() if self.curved else x).view(-1, 1, 8, 8)

    def draw(self, request: Request) -> Tensor:
        return self.from_latents(self.latents(request.seeds), request)


FREE = ProjectConfig(steps=400, starts=64, tries=2, prior=0.0)


def drawn(base: Linear, n: int, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
    z = noise(streams(range(100, 100 + n), "z"), (D,)) * 0.7
    return z, base.from_latents(z, Request(tuple(range(n)), Condition(label=label)))


def test_squared_distances_of_pyramids_are_mean_squared_errors_of_all_scales() -> None:
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 2, 16, 12, generator=gen).double(), torch.randn(3, 2, 16, 12, generator=gen).double()
    means = lambda a, k: a.view(3, 2, 16 // k, k, 12 // k, k).mean((3, 5))
    wanted = sum((means(x, k) - means(y, k)).square().mean((1, 2, 3)) for k in (1, 2))
    torch.testing.assert_close((pyramid(x, 3) - pyramid(y, 3)).square().sum(1), wanted)  # 12 / 4 = 3 is below 4 pixels


@pytest.mark.parametrize("curved", [False, True])
def test_what_was_drawn_is_found_again(curved: bool) -> None:
    base = Linear(curved=curved)
    z, x = drawn(base, 5)
    method = Project(INFO, FREE, {"base": base})
    found = method.encode(x)
    torch.testing.assert_close(found, z, atol=2e-3, rtol=0)
    torch.testing.assert_close(method.decode(found), x, atol=2e-3, rtol=0)


def test_a_picture_beside_the_manifold_goes_to_its_nearest_point() -> None:
    """A linear map: the least-squares solution of the stacked scales, with the gradient of the prior at it from autograd in float64."""
    base = Linear()
    y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    rows = torch.stack([pyramid(row.view(1, 1, 8, 8).double(), 3)[0] for row in base.matrix])  # (D, F)
    wanted = torch.linalg.lstsq(rows.T, pyramid(y.double(), 3).T).solution.T
    torch.testing.assert_close(Project(INFO, FREE, {"base": base}).encode(y).double(), wanted, atol=5e-3, rtol=0)
    config = replace(FREE, prior=0.3)
    z = Project(INFO, config, {"base": base}).encode(y).double().requires_grad_()
    cost = (z @ rows - pyramid(y.double(), 3)).square().sum(1) + 0.3 * (z.square().mean(1) - 1).square()
    (grad,) = torch.autograd.grad(cost.sum(), z)
    assert grad.abs().max() < 1e-3, "a minimum of the whole objective"
    assert bool(((z.square().mean(1) - 1).abs() < (wanted.square().mean(1) - 1).abs()).all()), "the prior draws |z|^2 towards d"


def test_a_label_is_kept_and_without_one_the_nearest_class_is_found() -> None:
    base = Linear(labeled=True)
    label = torch.tensor([2, 0, 1, 2])
    z, x = drawn(base, 4, label)
    method = Project(INFO, replace(FREE, starts=256, steps=1000), {"base": base})
    codes = method.encode(x)
    assert codes.shape == (4, D + 3)
    assert torch.equal(codes[:, D:].argmax(1), label)
    torch.testing.assert_close(codes[:, :D], z, atol=5e-3, rtol=0)
    torch.testing.assert_close(method.decode(codes), x, atol=5e-3, rtol=0)
    asked = method.sample(Request((1,), Condition(label=torch.tensor([1]), source=x[:1])))
    nearest = torch.linalg.lstsq(torch.stack([pyramid(r.view(1, 1, 8, 8), 3)[0] for r in base.matrix]).T,
                                 (pyramid(x[:1], 3) - pyramid(base.shift[1].view(1, 1, 8, 8), 3)).T).solution.T
    torch.testing.assert_close(asked, base.from_latents(nearest, Request((1,), Condition(label=torch.tensor([1])))).clamp(-1, 1), atol=5e-3, rtol=0)


def test_more_starts_and_tries_never_lose_and_escape_where_one_start_is_stuck() -> None:
    base = Linear(curved=True)
    with torch.no_grad():
        base.matrix *= 40  # tanh is flat nearly everywhere: where one begins is where one stays
    _, x = drawn(base, 8)
    error = []
    for starts, tries in ((1, 1), (64, 1), (4096, 8)):
        method = Project(INFO, replace(FREE, steps=100, starts=starts, tries=tries), {"base": base})
        error.append(float((method.decode(method.encode(x)) - x).square().mean()))
    assert error[2] < error[1] < error[0], error


def test_rows_depend_on_their_own_seed_source_and_label_alone() -> None:
    base = Linear(labeled=True, curved=True)
    method = Project(INFO, ProjectConfig(steps=7, starts=16, tries=3), {"base": base})
    gen = torch.Generator().manual_seed(1)
    source, label = torch.rand(5, 1, 8, 8, generator=gen) * 2 - 1, torch.tensor([0, 1, 1, 2, 0])
    for cond in (Condition(source=source, label=label), Condition(source=source)):
        full = Request((4, 5, 6, 7, 8), cond)
        whole = method.sample(full)
        split = torch.cat([method.sample(full.take(slice(i, j))) for i, j in ((0, 1), (1, 4), (4, 5))])
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)
        assert torch.equal(method.sample(full), whole)
    other = method.sample(Request((14, 15, 16, 17, 18), Condition(source=source, label=label)))
    assert not torch.equal(other, whole), "the noise on the way comes from the seed"


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="no more tries than starts"):
        Project(INFO, ProjectConfig(starts=2, tries=3), {"base": Linear()})
    method = Project(INFO, ProjectConfig(steps=1, starts=4), {"base": Linear()})
    with pytest.raises(UserError, match="--source"):
        method.sample(Request((1,)))
    with pytest.raises(UserError, match="does not take 'label'"):
        method.sample(Request((1,), Condition(label=torch.tensor([1]), source=torch.zeros(1, 1, 8, 8))))
    edits = Linear()
    edits.abilities = frozenset({Ability.SOURCE})
    with pytest.raises(UserError, match="works on pictures"):
        Project(INFO, ProjectConfig(), {"base": edits})


def test_the_base_gets_no_gradients_and_global_randomness_is_left_alone() -> None:
    base = Linear()
    _, x = drawn(base, 2)
    state = torch.get_rng_state()
    with torch.no_grad():
        Project(INFO, ProjectConfig(steps=3, starts=8), {"base": base}).encode(x)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
