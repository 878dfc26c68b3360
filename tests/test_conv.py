"""The strided convolutions against torch.nn's: values, gradients, second gradients, in float64 and under autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pixelkiln.layers.conv import Conv2d, ConvTranspose2d, Window, columns, fold

CASES = [
    (Conv2d, nn.Conv2d, (128, 24, 4, 2, 1), (3, 128, 8, 6)),
    (Conv2d, nn.Conv2d, (240, 8, 3, 3, 0), (2, 240, 9, 12)),
    (Conv2d, nn.Conv2d, (128, 8, 4, 1, 2), (2, 128, 2, 2)),
    (ConvTranspose2d, nn.ConvTranspose2d, (24, 128, 4, 2, 1), (3, 24, 4, 3)),
    (ConvTranspose2d, nn.ConvTranspose2d, (8, 240, 3, 3, 0), (2, 8, 3, 4)),
]


def twins(own: type, theirs: type, args: tuple[int, ...], bias: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    a = theirs(*args, bias=bias).double()
    b = own(*args, bias=bias).double()
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    return a, b


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("own", "theirs", "args", "shape"), CASES)
def test_values_gradients_and_second_gradients(own: type, theirs: type, args: tuple[int, ...], shape: tuple[int, ...], bias: bool) -> None:
    found = []
    for net in twins(own, theirs, args, bias):
        x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).sin().view(shape).requires_grad_(True)
        y = net(x)
        first = torch.autograd.grad(y.square().sum(), [x, *net.parameters()], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(penalty, [x, *net.parameters()])
        found.append([y, *first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_products_run_where_they_pay() -> None:
    """The cases above would prove nothing if the library's own convolution were called; elsewhere it is."""
    for own, _, args, shape in CASES:
        assert type(own(*args, bias=False)(torch.zeros(shape)).grad_fn).__name__.startswith("_Conv")
    for net, shape in ((Conv2d(128, 8, 4, 2, 1), (1, 128, 16, 16)), (Conv2d(16, 8, 4, 2, 1), (1, 16, 8, 8)), (Conv2d(128, 8, 4, 2, 1), (1, 128, 7, 7))):
        assert "ConvolutionBackward" in type(net(torch.zeros(shape)).grad_fn).__name__


@pytest.mark.parametrize(("own", "theirs", "args", "shape"), CASES)
def test_autocast_gives_what_the_library_gives(own: type, theirs: type, args: tuple[int, ...], shape: tuple[int, ...]) -> None:
    found = []
    for net in (n.float() for n in twins(own, theirs, args, True)):
        x = torch.linspace(-1, 1, torch.Size(shape).numel()).sin().view(shape).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert net.weight.grad.dtype == torch.float32
        found.append([y.float(), x.grad, net.weight.grad, net.bias.grad])
    for a, b in zip(*found, strict=True):
        assert float((a - b).detach().abs().max()) <= 0.02 * float(a.detach().abs().max())


def test_columns_by_brute_force() -> None:
    x = torch.arange(2 * 3 * 6 * 8, dtype=torch.float64).view(2, 3, 6, 8)
    rows = columns(x, Window(4, 2, 1)).view(2, 3, 4, 4, 4, 3)  # (B, h, w, k, k, C)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        torch.testing.assert_close(rows[b, i, j].permute(2, 0, 1), padded[b, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4])


def test_fold_is_the_transpose_of_columns() -> None:
    """<columns(x), r> = <x, fold(r)>."""
    gen, win = torch.Generator().manual_seed(0), Window(6, 2, 2)
    x = torch.randn(2, 3, 8, 10, generator=gen, dtype=torch.float64)
    r = torch.randn(columns(x, win).shape, generator=gen, dtype=torch.float64)
    folded = fold(r, win.small(8), win.small(10), win)
    assert folded.shape == x.shape
    torch.testing.assert_close((columns(x, win) * r).sum(), (x * folded).sum())
