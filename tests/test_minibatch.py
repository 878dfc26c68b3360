"""The deviation over a group as a feature, and the weight norm: against loops, with first and second gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment
from pixelkiln.layers.minibatch import MinibatchDeviation
from pixelkiln.layers.weightnorm import weight_normed
from pixelkiln.methods.dcgan import DCGAN, DCGANConfig
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.objectives.rules import Rules


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(h: Tensor, group: int) -> Tensor:
    """Image i stands with those whose number differs from its own by multiples of n / group."""
    n, c, height, width = h.shape
    rows = []
    for i in range(n):
        mates = [h[j] for j in range(n) if j % (n // group) == i % (n // group)]
        assert len(mates) == group
        mean = sum(mates) / group
        var = sum((m - mean) ** 2 for m in mates) / group
        s = sum((var[a, b, d] + 1e-8).sqrt() for a in range(c) for b in range(height) for d in range(width)) / (c * height * width)
        rows.append(torch.cat([h[i], s.expand(1, height, width)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("n", "group", "used"), [(6, 3, 3), (6, 4, 3), (6, 6, 6), (6, 100, 6), (5, 2, 1)])
def test_the_deviation_of_a_group_against_loops(n: int, group: int, used: int) -> None:
    h = rand(n, 2, 2, 3).requires_grad_()
    fast, slow, push = MinibatchDeviation(group)(h), by_loops(h, used), rand(n, 3, 2, 3, seed=9)
    torch.testing.assert_close(fast, slow)
    a, b = (torch.autograd.grad((y * push).square().sum(), h, create_graph=True)[0] for y in (fast, slow))
    torch.testing.assert_close(a, b)
    for x, y in zip(*(torch.autograd.grad(g.square().sum(), h) for g in (a, b)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_equal_images_show_and_low_precision_does_not_hide_small_differences() -> None:
    same = torch.ones(4, 3, 2, 2)
    assert torch.allclose(MinibatchDeviation(4)(same)[:, 3], torch.full((4, 2, 2), 1e-4))
    near = 100 + rand(4, 3, 2, 2).float()
    exact, low = MinibatchDeviation(4)(near), MinibatchDeviation(4)(near.bfloat16())
    assert low.dtype == torch.bfloat16
    expected = MinibatchDeviation(4)(near.bfloat16().float())[0, 3, 0, 0]
    assert float(low[0, 3, 0, 0]) == pytest.approx(float(expected), rel=0.01) and float(exact[0, 3, 0, 0]) > 0.5


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_the_weight_norm_is_eq_2_of_each_output(kind: str) -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"linear": nn.Linear(5, 3), "conv": nn.Conv2d(2, 3, 2), "transposed": nn.ConvTranspose2d(2, 3, 2)}
    layer = weight_normed(layers[kind].double())
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1  # type: ignore[union-attr]
    outs = 1 if kind == "transposed" else 0
    begun = layer.weight.detach().clone()
    assert float(begun.std()) == pytest.approx(0.02, rel=0.5) and not layer.bias.any()
    torch.testing.assert_close(begun, v.detach(), msg="it begins as v")
    with torch.no_grad():
        g.copy_(rand(*g.shape, seed=1))
        v.copy_(rand(*v.shape, seed=2))

    def slow(g: Tensor, v: Tensor) -> Tensor:
        rows = []
        for i in range(3):
            row = v.select(outs, i)
            rows.append(g.select(outs, i) * row / row.square().sum().sqrt())
        return torch.stack(rows, outs)

    torch.testing.assert_close(layer.weight, slow(g, v))
    push = rand(*v.shape, seed=3)
    first = [torch.autograd.grad((w * push).pow(2).sum(), (g, v), create_graph=True) for w in (layer.weight, slow(g, v))]
    second = [torch.autograd.grad(sum(x.square().sum() for x in grads), (g, v)) for grads in first]
    for a, b in zip((*first[0], *second[0]), (*first[1], *second[1]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("nets", [DCGANNets(4, 4, norm="weight"), DCGANNets(4, 4, norm="layer", minibatch=4)], ids=["weight", "minibatch"])
@pytest.mark.parametrize("rules", [Rules(), Rules(r1=1.0), Rules(gradient=10.0), Rules(r1=1.0, r_sigma=0.01), Rules(orthogonal_d=1e-4)], ids=["none", "r1", "gp", "differences", "orthogonal"])
def test_discriminators_learn_with_them_under_every_penalty(nets: DCGANNets, rules: Rules) -> None:
    torch.manual_seed(0)
    method = DCGAN(DataInfo(ImageShape(1, 16, 16)), DCGANConfig(nets=nets, rules=rules, latent=5))
    method.d_loss(Batch(torch.rand(8, 1, 16, 16) * 2 - 1), Moment(0, 10, 0))["loss"].backward()
    missing = [n for n, p in method.discriminator.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()]
    assert missing == []
