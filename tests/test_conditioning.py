"""Conditions to tensors: one drop for all parts of a sample, the null row, maps of an image and a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Condition, UserError
from pixelkiln.nets.conditioning import Conditioned, Conditioner, split

N = 20_000


def parts(drop: float, training: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each of N samples lost its label, its caption and its map."""
    torch.manual_seed(0)
    net = Conditioner(3, 4, drop, words=2, loses_map=True).train(training)
    seen = net(Condition(label=torch.arange(N) % 3, text=("two words",) * N), N, torch.ones(N, 2, 1, 1))
    assert net.reader is not None
    assert seen.words is not None
    assert seen.map is not None
    row = seen.vec - seen.words.tokens[:, 0]
    no_label = (row - net.table.weight[-1]).abs().amax(1) < 1e-5 if drop else torch.zeros(N, dtype=torch.bool)
    return no_label, ~seen.words.there[:, 1:].any(1), ~seen.map.flatten(1).any(1)


@pytest.mark.parametrize("drop", [0.1, 0.5])
def test_the_parts_of_a_sample_are_lost_together_at_the_stated_rate(drop: float) -> None:
    label, caption, map = parts(drop)
    assert torch.equal(label, caption)  # k draws would lose all of them with probability drop^k
    assert torch.equal(label, map)
    assert float(label.float().mean()) == pytest.approx(drop, abs=4 * (drop * (1 - drop) / N) ** 0.5)
    near = label[1:] & label[:-1]  # of each sample for itself
    assert float(near.float().mean()) == pytest.approx(drop**2, abs=0.01)


def test_nothing_is_lost_in_evaluation_or_without_drop() -> None:
    for lost in (*parts(0.5, training=False), *parts(0.0)):
        assert not lost.any()


def test_a_map_is_kept_where_it_is_not_a_part_that_is_lost() -> None:
    map = torch.randn(50, 2, 3, 3)
    assert torch.equal(Conditioner(3, 4, 0.5).train()(Condition(), 50, map).map, map)


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


def test_the_map_goes_behind_the_image() -> None:
    x, map, vec = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    both, out, words = split(x, Conditioned(vec, map))
    assert words is None
    assert torch.equal(both, torch.cat([x, map], 1))
    assert out is vec
    assert split(x, vec)[0] is x
    assert split(x, Conditioned(vec))[0] is x
