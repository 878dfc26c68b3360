"""Conditions to tensors: one drop for all parts of a sample, the null row, maps of an image and a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Condition, UserError
from pixelkiln.nets.conditioning import Conditioned, Conditioner, split

N = 20_000


def parts(drop: float, seen: str = "inpaint", training: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each of N samples lost its label, its image and its mask."""
    torch.manual_seed(0)
    net = Conditioner(3, 4, drop, seen, channels=1).train(training)  # type: ignore[arg-type]
    cond = Condition(label=torch.arange(N) % 3, source=torch.ones(N, 1, 1, 1), mask=torch.zeros(N, 1, 1, 1))
    vec, map = net(cond, N)
    no_label = (vec == net.table.weight[-1]).all(1) if drop else torch.zeros(N, dtype=torch.bool)
    assert map is not None
    return no_label, map[:, 0, 0, 0] == 0, map[:, -1, 0, 0] == 1


@pytest.mark.parametrize("drop", [0.1, 0.5])
def test_the_parts_of_a_sample_are_lost_together_at_the_stated_rate(drop: float) -> None:
    label, image, mask = parts(drop)
    assert torch.equal(label, image)  # k draws would lose all of them with probability drop^k
    assert torch.equal(label, mask)
    assert float(label.float().mean()) == pytest.approx(drop, abs=4 * (drop * (1 - drop) / N) ** 0.5)
    near = label[1:] & label[:-1]  # of each sample for itself
    assert float(near.float().mean()) == pytest.approx(drop**2, abs=0.01)


def test_nothing_is_lost_in_evaluation_or_without_drop() -> None:
    for label, image, mask in (parts(0.5, training=False), parts(0.0)):
        assert not label.any()
        assert not image.any()
        assert not mask.any()


def test_the_null_row_exists_only_where_something_can_be_lost() -> None:
    assert len(Conditioner(5, 2, 0.1).table.weight) == 6
    assert len(Conditioner(5, 2, 0.0).table.weight) == 5
    assert len(Conditioner(0, 2, 0.0).table.weight) == 1  # without classes it is all there is
    net = Conditioner(5, 2, 0.0).eval()
    for cond in (Condition(), Condition(label=torch.tensor([1, -1]))):
        with pytest.raises(UserError, match="never lost a label"):
            net(cond, 2)
    assert torch.equal(net(Condition(label=torch.tensor([4, 0])), 2).vec, net.table.weight[[4, 0]])


def test_no_label_and_minus_one_are_null() -> None:
    net = Conditioner(3, 4, 0.1).eval()
    null = net.table.weight[3].expand(2, 4)
    assert torch.equal(net(Condition(), 2).vec, null)
    assert torch.equal(net(Condition(label=torch.tensor([-1, -1])), 2).vec, null)
    assert net(Condition(), 2).map is None
    alone = Conditioner(0, 4).train()
    assert torch.equal(alone(Condition(label=torch.tensor([0, 0])), 2).vec, alone.table.weight.expand(2, 4))


def test_the_map_of_inpainting_hides_what_is_to_be_painted() -> None:
    net = Conditioner(0, 4, 0.1, "inpaint", channels=3).eval()
    source, mask = torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    map = net(Condition(source=source, mask=mask), 2).map
    assert net.map_channels == 4 == map.shape[1]
    assert not map[:, :3, :2].any()
    assert torch.equal(map[:, :3, 2:], source[:, :, 2:])
    assert torch.equal(map[:, 3:], mask)
    for cond, words in ((Condition(), "an image and a mask"), (Condition(source=source), "--mask")):
        with pytest.raises(UserError, match=words):
            net(cond, 2)


def test_the_map_goes_behind_the_image() -> None:
    x, map, vec = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    both, out = split(x, Conditioned(vec, map))
    assert torch.equal(both, torch.cat([x, map], 1))
    assert out is vec
    assert split(x, vec)[0] is x
    assert split(x, Conditioned(vec))[0] is x
