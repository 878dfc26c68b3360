"""Spectral norm: against singular values, against torch's own, frozen, copied, averaged, saved, and where two passes share the vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pixelkiln.core.recipe import EmaConfig
from pixelkiln.engine.ema import Average
from pixelkiln.engine.loop import only
from pixelkiln.layers.spectral import SpectralNorm, spectral
from pixelkiln.layers.standing import with_standing_stats

KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(12, 7), torch.zeros(2, 12)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 4, 2, 1), torch.zeros(2, 6, 5, 5)),
    "embedding": (lambda: nn.Embedding(9, 5), torch.zeros(2, dtype=torch.long)),
}


def norm_of(layer: nn.Module) -> SpectralNorm:
    found = layer.parametrizations["weight"][0]
    assert isinstance(found, SpectralNorm)
    return found


def original(layer: nn.Module) -> Tensor:
    return layer.parametrizations["weight"].original


def largest(weight: Tensor, dim: int = 0) -> float:
    """The largest singular value of the weight as a matrix with the rows of `dim`."""
    return float(torch.linalg.svdvals(weight.detach().double().transpose(0, dim).flatten(1))[0])


def vectors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    n = norm_of(layer)
    return n.u.clone(), n.v.clone()


def made(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spectral(KINDS[kind][0]())


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_has_norm_one_after_iterations(kind: str) -> None:
    layer = made(kind).train()
    for _ in range(300):
        weight = layer.weight
    dim = 1 if kind == "transposed" else 0
    assert largest(weight, dim) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(weight * largest(original(layer), dim), original(layer), rtol=1e-4, atol=1e-6)  # divided, not otherwise changed


def test_a_transposed_convolutions_rows_are_its_outputs() -> None:
    """(in, out, k, k): rows of the matrix are dimension 1, whose largest singular value differs from that of dimension 0."""
    layer = made("transposed").train()
    for _ in range(300):
        weight = layer.weight
    assert len(norm_of(layer).u) == 4 and len(norm_of(layer).v) == 6 * 16
    assert abs(largest(weight, 0) - 1) > 0.01


def test_the_first_weights_have_a_good_estimate() -> None:
    """Without a warm start the first steps would divide by much too little."""
    for seed in range(10):
        layer = made("conv", seed).eval()
        assert 0.999 < largest(layer.weight) < 1.1


def beside_torchs(kind: str) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch's with the same weight and vectors, the weight moved a little since."""
    ours = made(kind)
    theirs = spectral_norm(KINDS[kind][0](), n_power_iterations=1)
    with torch.no_grad():
        theirs.parametrizations["weight"][0]._u.copy_(norm_of(ours).u)
        theirs.parametrizations["weight"][0]._v.copy_(norm_of(ours).v)
        moved = original(ours) + 0.1 * torch.randn(original(ours).shape, generator=torch.Generator().manual_seed(4))
        for layer in (ours, theirs):
            original(layer).copy_(moved)
    return ours, theirs


def agree(ours: nn.Module, theirs: nn.Module) -> None:
    """In value and gradient."""
    push = torch.randn(original(ours).shape, generator=torch.Generator().manual_seed(5))
    a, b = ours.weight, theirs.weight
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    (grad_a,), (grad_b,) = (torch.autograd.grad((w * push).sum(), original(layer)) for w, layer in ((a, ours), (b, theirs)))
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_torchs_own_with_the_same_vectors(kind: str) -> None:
    ours, theirs = beside_torchs(kind)
    agree(ours.eval(), theirs.eval())
    for _ in range(300):
        ours.train().weight, theirs.train().weight
    agree(ours, theirs)  # and in training, once both have found the largest value


@pytest.mark.parametrize("kind", KINDS)
def test_iterates_as_torchs_own(kind: str) -> None:
    """Torch takes u <- W v before v <- W^T u, algorithm 1 v before u: from our v it reaches our u, and the v that we have next."""
    ours, theirs = beside_torchs(kind)
    ours.train().weight  # noqa: B018
    theirs.parametrizations["weight"][0]._v.copy_(norm_of(ours).v)
    theirs.train().weight  # noqa: B018
    torch.testing.assert_close(theirs.parametrizations["weight"][0]._u, norm_of(ours).u)
    ours.weight  # noqa: B018
    torch.testing.assert_close(theirs.parametrizations["weight"][0]._v, norm_of(ours).v)


def test_gradient_against_differences() -> None:
    """W / (u^T W v) with u and v fixed, in float64: through sigma, too."""
    layer = made("conv").double().eval()
    norm = norm_of(layer)
    w = original(layer).detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(norm, (w,))
    push = torch.randn_like(w)
    u, v, matrix = norm.u, norm.v, w.detach().flatten(1)
    sigma = u @ matrix @ v
    by_hand = (push - (push * w.detach()).sum() / sigma * torch.outer(u, v).view_as(w)) / sigma  # Miyato et al. 2018, eq. 11 and 12
    torch.testing.assert_close(torch.autograd.grad((norm(w) * push).sum(), w)[0], by_hand)


def test_no_iteration_in_evaluation_and_one_a_pass_in_training() -> None:
    layer = made("linear")
    with torch.no_grad():
        original(layer).add_(torch.randn_like(original(layer)))
    u, v = vectors(layer)
    layer.eval()(KINDS["linear"][1])
    assert torch.equal(norm_of(layer).u, u) and torch.equal(norm_of(layer).v, v)
    layer.train()(KINDS["linear"][1])
    w = original(layer).detach()
    v = F.normalize(w.t() @ u, dim=0)
    torch.testing.assert_close(norm_of(layer).v, v)
    torch.testing.assert_close(norm_of(layer).u, F.normalize(w @ v, dim=0))


def test_two_passes_before_one_backward() -> None:
    """D(x) and D(G(z)) in one loss: the second pass moves the vectors, and the first one's gradient must still be that of its own."""
    layer, other = made("linear").double().train(), made("linear").double().train()
    for net in (layer, other):
        with torch.no_grad():
            original(net).add_(torch.arange(84, dtype=torch.float64).sin().view(7, 12))
    x, y = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    (layer(x).square().sum() - layer(y).sum()).backward()
    together = original(layer).grad
    other(x).square().sum().backward()
    (-other(y).sum()).backward()
    torch.testing.assert_close(together, original(other).grad)


def test_second_derivatives_through_it() -> None:
    """A penalty on D's gradient differentiates the divided weight twice."""
    net = nn.Sequential(spectral(nn.Linear(5, 6)), nn.Tanh(), spectral(nn.Linear(6, 1))).double().eval()

    def penalty(w: Tensor, x: Tensor) -> Tensor:
        y = F.linear(torch.tanh(F.linear(x, norm_of(net[0])(w), net[0].bias)), net[2].weight, net[2].bias)
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0].square().sum()

    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: penalty(w, x), (original(net[0]).detach().clone().requires_grad_(),))


class Pair(nn.Module):
    """Two nets as a method has them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(spectral(nn.Conv2d(2, 4, 3, padding=1)), nn.BatchNorm2d(4), nn.ReLU(), spectral(nn.Conv2d(4, 1, 3, padding=1)))
        self.discriminator = nn.Sequential(spectral(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), spectral(nn.Linear(4 * 36, 1)))


def test_a_net_that_the_loop_freezes_keeps_its_vectors() -> None:
    torch.manual_seed(0)
    pair, z = Pair().train(), torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        for p in pair.parameters():
            p.add_(0.1 * torch.randn_like(p))
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    with only(pair, ("generator",)):
        pair.discriminator(pair.generator(z)).sum().backward()
    moved = {k.split(".")[0] for k, v in pair.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"generator"}
    assert all(p.grad is None for p in pair.discriminator.parameters()) and all(p.grad is not None for p in pair.generator.parameters())
    pair.discriminator(torch.randn(3, 1, 8, 8))  # outside they move again
    assert not torch.equal(pair.discriminator[0].parametrizations["weight"][0].u, before["discriminator.0.parametrizations.weight.0.u"])


def test_deep_copies_are_equal_and_apart() -> None:
    layer = made("conv").train()
    twin = copy.deepcopy(layer)
    u = norm_of(twin).u.clone()
    with torch.no_grad():
        original(layer).mul_(2).add_(torch.randn_like(original(layer)))
    a = layer.weight
    assert torch.equal(norm_of(twin).u, u) and not torch.equal(norm_of(layer).u, u)
    assert not torch.allclose(a, twin.weight)


def test_state_survives_a_round_trip() -> None:
    layer, fresh = made("conv", 0).train(), made("conv", 1)
    with torch.no_grad():
        original(layer).add_(torch.randn_like(original(layer)))
    layer(torch.randn(2, 3, 5, 5))
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original", "parametrizations.weight.0.u", "parametrizations.weight.0.v"}
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(fresh.eval()(x), layer.eval()(x))
    assert torch.equal(fresh.train()(x), layer.train()(x)), "and goes on from the same vectors"


def test_sigma_fits_averaged_weights() -> None:
    """The average holds weights, never vectors; standing statistics take one step from the trained net's, which lie near, and leave these alone."""
    torch.manual_seed(0)
    pair = Pair().train()
    average = Average(pair, ("generator",), EmaConfig(half_life=200.0, ramp=10.0))
    opt = torch.optim.Adam(pair.generator.parameters(), 2e-3)
    for i in range(60):
        z = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(i))
        opt.zero_grad()
        pair.generator(z).square().mean().mul(-1).backward()
        opt.step()
        average.update(8, 8 * (i + 1))
    z, found, used = torch.randn(4, 2, 8, 8), [], []
    before = vectors(pair.generator[3])
    with average.applied():
        w = original(pair.generator[3])
        assert not torch.equal(w, average.live["generator.3.parametrizations.weight.original"].new_tensor(0)) and torch.equal(w, average.mean["generator.3.parametrizations.weight.original"])
        hook = pair.generator[3].parametrizations["weight"][0].register_forward_hook(lambda m, args, out: used.append((args[0].detach().clone(), out.detach().clone())))
        found = [with_standing_stats(pair.generator, (z,), (torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(1)),)) for _ in range(2)]
        hook.remove()
    assert torch.equal(found[0], found[1])
    for weight, out in used:
        assert torch.equal(weight, average.mean["generator.3.parametrizations.weight.original"])
        assert largest(out) == pytest.approx(1, rel=0.01)
    assert torch.equal(vectors(pair.generator[3])[0], before[0])


def test_averaged_vectors_would_not_do() -> None:
    """Why they are not averaged: the mean of unit vectors is shorter than one, and divides by too little."""
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(w)
    apart = F.normalize(u[:, 0] + 0.5 * u[:, 1], dim=0)
    mean = (u[:, 0] + apart) / 2
    norm = SpectralNorm(w)
    for vector, low in ((u[:, 0], False), (mean, True)):
        norm.u.copy_(vector)
        norm.v.copy_(v[0])
        assert (largest(norm.eval()(w)) > 1.02) == low


def test_full_precision_inside_autocast() -> None:
    """sigma is computed in fp32 there; the layer itself casts the divided weight, so that one rounding remains, that of the weight."""
    layer = made("linear").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight, y = layer.weight, layer(torch.randn(2, 12))
    assert weight.dtype == torch.float32 and y.dtype == torch.bfloat16
    again = copy.deepcopy(layer).eval()
    torch.testing.assert_close(again.weight, original(again) / largest(original(again)), rtol=1e-3, atol=0)
    y.float().sum().backward()
    assert original(layer).grad is not None and original(layer).grad.dtype == torch.float32
