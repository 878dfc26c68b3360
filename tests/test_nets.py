"""Networks of diffusion: magnitudes, forced weight norms, positions, attention against a slow float64 one, interfaces, and what must not leak."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from pixelkiln.core.types import ImageShape, UserError
from pixelkiln.layers.norm import pixel_norm, rms_norm
from pixelkiln.layers.positions import rope_2d, rotate, sincos_2d
from pixelkiln.layers.preserving import SILU, Fourier, MPConv, force, mp_cat, mp_silu, mp_sum
from pixelkiln.nets.backbone import DiTConfig, MLPConfig, MPUNetConfig, NetConfig, UNetConfig, backbone
from pixelkiln.nets.conditioning import Conditioned
from pixelkiln.nets.dit import Attention
from pixelkiln.nets.mpunet import Block as MPBlock
from pixelkiln.nets.mpunet import CosineAttention
from pixelkiln.nets.uncertainty import Uncertainty

CPU = torch.device("cpu")
D = 16
NETS: list[NetConfig] = [
    UNetConfig(width=8, mults=(1, 2), blocks=1),
    MPUNetConfig(width=8, mults=(1, 2), blocks=1),
    MPUNetConfig(width=8, mults=(1, 2, 3), blocks=2, attention=(1, 2), dropout=0.1),
    DiTConfig(width=24, depth=2, heads=2),
    DiTConfig(width=24, depth=2, heads=2, positions="sincos", norm="layer", qk_norm=False, mlp="gelu"),
    MLPConfig(width=32, depth=2),
]
IDS = ["unet", "mpunet", "mpunet-deep", "dit", "dit-paper", "mlp"]
every = pytest.mark.parametrize("config", NETS, ids=IDS)


def awake(config: NetConfig, shape: ImageShape = ImageShape(2, 8, 12), seed: int = 0, **more: int) -> nn.Module:
    """The network, its zeros moved so that every part acts."""
    torch.manual_seed(seed)
    net = backbone(shape, D, config, **more)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.3)
    return net


def inputs(num: int = 3, channels: int = 2, h: int = 8, w: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(1)
    return torch.randn(num, channels, h, w, generator=gen), torch.rand(num, generator=gen), torch.randn(num, D, generator=gen)


# layers


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first forward-mode derivative
def test_rms_norm_is_torchs_and_its_derivatives_are_exact() -> None:
    x = torch.randn(4, 5, 7, requires_grad=True)
    theirs = nn.RMSNorm(7, eps=1e-6, elementwise_affine=False)(x)
    torch.testing.assert_close(rms_norm(x), theirs)
    g = torch.randn_like(x)
    torch.testing.assert_close(torch.autograd.grad(rms_norm(x), x, g)[0], torch.autograd.grad(theirs, x, g)[0])
    y = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (y,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rms_norm, (y,))
    tangent = torch.randn_like(y)
    ours = torch.func.jvp(rms_norm, (y.detach(),), (tangent,))[1]
    torch.testing.assert_close(ours, torch.func.jvp(lambda v: v * (v.square().mean(-1, keepdim=True) + 1e-6).rsqrt(), (y.detach(),), (tangent,))[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixel_norm_is_over_channels(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 3, 5).to(memory_format=layout)
    torch.testing.assert_close(pixel_norm(x), x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt())
    assert pixel_norm(x).square().mean(1).sub(1).abs().max() < 1e-4


def test_the_constant_of_silu_is_its_standard_deviation() -> None:
    """By quadrature: E[silu(x)^2] for x ~ N(0, 1) is 0.596^2."""
    square = quad(lambda x: (x / (1 + math.exp(-x))) ** 2 * math.exp(-x * x / 2) / math.sqrt(2 * math.pi), -30, 30)[0]
    assert math.sqrt(square) == pytest.approx(1 / SILU, rel=1e-3)


def test_every_preserving_layer_keeps_the_variance() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 48, 16, 16), torch.randn(64, 24, 16, 16)

    def rms(z: Tensor) -> float:
        return float(z.detach().square().mean().sqrt())

    assert rms(mp_silu(x)) == pytest.approx(1, abs=0.01)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert rms(mp_sum(x, torch.randn_like(x), t)) == pytest.approx(1, abs=0.01)
    both = mp_cat(x, y)
    assert both.shape[1] == 72
    assert rms(both) == pytest.approx(1, abs=0.01)
    assert both[:, :48].square().sum() == pytest.approx(float(both[:, 48:].square().sum()), rel=0.01)  # each half of the square
    assert torch.equal(mp_cat(x, x), torch.cat([x, x], 1))
    inner = MPConv(48, 96, 3)(x)[:, :, 1:-1, 1:-1]  # zero padding takes from the border
    assert rms(inner) == pytest.approx(1, abs=0.03)
    assert rms(MPConv(48, 96, 1)(x)) == pytest.approx(1, abs=0.03)
    assert rms(MPConv(48, 512)(torch.randn(4096, 48))) == pytest.approx(1, abs=0.03)
    assert rms(MPConv(48, 96, 1)(x, 0.5)) == pytest.approx(0.5, abs=0.02)
    assert rms(MPConv(48, 96, 3)(torch.nn.functional.silu(x), SILU)[:, :, 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
    assert rms(Fourier(512)(torch.randn(256))) == pytest.approx(1, abs=0.05)


def test_mpconv_is_a_convolution_with_unit_weights_whatever_their_length() -> None:
    conv, x = MPConv(3, 5, 3).double(), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    unit = conv.weight / conv.weight.flatten(1).norm(dim=1)[:, None, None, None]
    expected = torch.nn.functional.conv2d(x, unit, padding=1)
    torch.testing.assert_close(conv(x), expected)
    with torch.no_grad():
        conv.weight *= torch.tensor([0.01, 0.5, 1, 3, 400.0])[:, None, None, None]
    torch.testing.assert_close(conv(x), expected)
    (conv(x) * torch.randn_like(expected)).sum().backward()
    along = (conv.weight.grad * conv.weight).flatten(1).sum(1)  # type: ignore[operator]
    assert along.abs().max() < 1e-9  # the gradient is orthogonal to the weights: what forced normalization relies on


def test_forced_normalization_is_idempotent_bit_by_bit_and_leaves_frozen_weights_alone() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(*shape) * 3) for shape in [(96, 48, 3, 3), (17, 5), (8, 192, 1, 1), (1, 2)]]
    frozen = nn.Parameter(torch.randn(4, 4) * 3, requires_grad=False)
    before = frozen.clone()
    force([*weights, frozen])
    assert torch.equal(frozen, before)
    once = [w.detach().clone() for w in weights]
    for w in weights:
        assert w.detach().double().flatten(1).square().mean(1).sub(1).abs().max() < 1e-5
    for _ in range(3):
        force(weights)
    assert all(torch.equal(a, b.detach()) for a, b in zip(once, weights, strict=True))


# the magnitude-preserving network


def test_a_block_and_its_attention_keep_the_variance() -> None:
    """In the interior and on average over channels; a U-Net of such blocks has activations of order 1 at every depth."""
    torch.manual_seed(0)
    config = MPUNetConfig()
    x, vec = torch.randn(16, 32, 12, 12), torch.randn(16, D)
    for down in (True, False):
        for c_out in (32, 48):
            y = MPBlock(32, c_out, D, config, False, down)(x, vec)[:, :, 2:-2, 2:-2]
            assert float(y.detach().square().mean().sqrt()) == pytest.approx(1, abs=0.06)
    y = CosineAttention(64)(torch.randn(8, 64, 6, 6))
    assert 0.85 < float(y.detach().square().mean().sqrt()) < 1.05  # the mean of values that attention takes is smaller than one of them


def test_activations_stay_of_order_one_through_a_deep_network() -> None:
    torch.manual_seed(0)
    net = backbone(ImageShape(3, 16, 16), D, MPUNetConfig(width=32, mults=(1, 2, 2), blocks=2, attention=(1, 2))).eval()
    found: list[float] = []
    for module in net.modules():
        if isinstance(module, MPBlock):
            module.register_forward_hook(lambda _, __, y: found.append(float(y.square().mean().sqrt())))
    with torch.no_grad():
        net(torch.randn(4, 3, 16, 16), torch.randn(4) / 4, torch.randn(4, D))
    assert len(found) == 3 * 2 + 2 + 3 * 3
    assert all(0.6 < rms < 1.3 for rms in found), found


def test_training_normalizes_and_evaluation_does_not_touch_weights() -> None:
    net = awake(NETS[1])
    x, t, vec = inputs()
    with torch.no_grad():
        for p in net.parameters():
            p *= 3
    before = {k: v.clone() for k, v in net.state_dict().items()}
    a = net.eval()(x, t, vec)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    b = net.train()(x, t, vec)
    torch.testing.assert_close(a, b)  # the same function before and after
    norms = [m.weight.detach().flatten(1).square().mean(1) for m in net.modules() if isinstance(m, MPConv)]
    assert all((n - 1).abs().max() < 1e-4 for n in norms)


def test_two_forwards_before_one_backward_give_the_sum_of_both_gradients() -> None:
    net, (x, t, vec) = awake(NETS[1]).train(), inputs()
    (net(x, t, vec).square().sum() + net(x + 1, t, vec).square().sum()).backward()
    both = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for shift in (0, 1):
        net(x + shift, t, vec).square().sum().backward()
    for a, p in zip(both, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-4 * float(a.abs().max()) + 1e-7)


def test_steps_with_a_sample_and_a_resume_between_are_those_without() -> None:
    """What the loop does: steps, an average put in for sampling and taken out again, weights saved and read back. Bit by bit."""

    def step(net: nn.Module, opt: torch.optim.Optimizer, k: int) -> None:
        torch.manual_seed(k)
        net.train()(*inputs()).sub(1).square().mean().backward()
        opt.step()
        opt.zero_grad()

    def run(broken: bool) -> list[Tensor]:
        net = awake(NETS[1])
        opt = torch.optim.Adam(net.parameters(), 1e-2)
        mean = [p.detach().clone() for p in net.parameters()]
        for k in range(4):
            step(net, opt, k)
            with torch.no_grad():
                torch._foreach_lerp_(mean, list(net.parameters()), 0.5)
                if broken and k == 1:
                    kept = [p.clone() for p in net.parameters()]
                    torch._foreach_copy_(list(net.parameters()), mean)
                    assert torch.isfinite(net.eval()(*inputs())).all()
                    torch._foreach_copy_(list(net.parameters()), kept)
                    weights, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(opt.state_dict())
                    net = awake(NETS[1], seed=9)
                    net.load_state_dict(weights)
                    opt = torch.optim.Adam(net.parameters(), 1e-2)
                    opt.load_state_dict(moments)
        return [*(p.detach() for p in net.parameters()), *mean]

    for a, b in zip(run(False), run(True), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_does_not_decay_by_growing_weights() -> None:
    """With forced norms a step turns the weights by the same angle for ever; without them their length grows and the angle shrinks."""
    torch.manual_seed(0)
    angles = {}
    for forced in (True, False):
        conv = MPConv(32, 32)
        opt = torch.optim.Adam(conv.parameters(), 0.1)
        for k in range(200):
            if forced:
                force([conv.weight])
            old = conv.weight.detach().clone()
            torch.manual_seed(k)
            (conv(torch.randn(8, 32)) * torch.randn(8, 32)).sum().backward()
            opt.step()
            opt.zero_grad()
            angles[forced, k] = float(torch.nn.functional.cosine_similarity(old, conv.weight.detach()).mean().clamp(max=1).acos())
    early, late = range(20, 40), range(180, 200)
    change = {forced: np.mean([angles[forced, k] for k in late]) / np.mean([angles[forced, k] for k in early]) for forced in (True, False)}
    assert change[True] == pytest.approx(1, abs=0.1)
    assert change[False] < 0.7


# attention and positions


def slow_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One query and one head at a time, float64."""
    out = np.zeros_like(v)
    for b, h, n in np.ndindex(q.shape[:3]):
        score = np.array([q[b, h, n] @ row for row in k[b, h]]) / math.sqrt(q.shape[-1])
        weight = np.exp(score - score.max())
        out[b, h, n] = (weight[:, None] * v[b, h]).sum(0) / weight.sum()
    return out


def heads(x: Tensor, num: int) -> np.ndarray:
    """(B, N, heads d) -> (B, heads, N, d)."""
    return x.detach().double().unflatten(2, (num, -1)).transpose(1, 2).numpy()


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_attention_of_the_transformer_is_the_slow_one(qk_norm: bool, turned: bool) -> None:
    torch.manual_seed(0)
    config = DiTConfig(width=24, heads=3, qk_norm=qk_norm)
    layer, x = Attention(config), torch.randn(2, 6, 24)
    if layer.gain is not None:
        nn.init.normal_(layer.gain)
    angles = rope_2d(2, 3, 8, CPU) if turned else None
    q, k, v = (heads(part, 3) for part in layer.qkv(x).chunk(3, dim=2))
    if layer.gain is not None:
        q, k = (z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) * g for z, g in zip((q, k), layer.gain.detach().double().numpy(), strict=True))
    if turned:  # by complex numbers, position by position
        for z in (q, k):
            for n in range(6):
                freq = 100.0 ** (-np.arange(2) / 2)
                turn = np.exp(1j * np.concatenate([n // 3 * freq, n % 3 * freq]))
                pairs = (z[:, :, n, :4] + 1j * z[:, :, n, 4:]) * turn
                z[:, :, n] = np.concatenate([pairs.real, pairs.imag], axis=-1)
    expected = torch.from_numpy(slow_attention(q, k, v)).transpose(1, 2).flatten(2).float()
    torch.testing.assert_close(layer(x, angles), layer.proj(expected), rtol=1e-4, atol=1e-5)


def test_cosine_attention_is_the_slow_one() -> None:
    torch.manual_seed(0)
    layer, x = CosineAttention(8, head_dim=4), torch.randn(2, 8, 2, 3)
    w, p = (m.weight.detach().double().flatten(1) for m in (layer.qkv, layer.proj))
    w, p = (m / m.norm(dim=1, keepdim=True) for m in (w, p))
    rows = x.double().flatten(2).transpose(1, 2)  # (B, N, C)
    q, k, v = (heads(part, 2) for part in (rows @ w.t()).chunk(3, dim=2))
    q, k, v = (z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) for z in (q, k, v))
    y = torch.from_numpy(slow_attention(q, k, v)).transpose(1, 2).flatten(2) @ p.t()
    expected = (0.7 * rows + 0.3 * y) / math.sqrt(0.7**2 + 0.3**2)
    torch.testing.assert_close(layer(x).double(), expected.transpose(1, 2).view_as(x).double(), rtol=1e-4, atol=1e-5)


def test_rotated_products_depend_on_the_difference_of_positions_alone() -> None:
    h, w, d = 5, 7, 16
    q, k = torch.randn(2, d, dtype=torch.float64)
    cos, sin = (a.double() for a in rope_2d(h, w, d, CPU))
    a, b = (rotate(z.expand(h * w, d), cos, sin) for z in (q, k))
    products = (a @ b.t()).view(h, w, h, w)
    seen: dict[tuple[int, int], float] = {}
    for i, j, m, n in np.ndindex(h, w, h, w):
        value = seen.setdefault((m - i, n - j), float(products[i, j, m, n]))
        assert float(products[i, j, m, n]) == pytest.approx(value, abs=1e-5)
    assert seen[0, 0] == pytest.approx(float(q @ k), abs=1e-6)
    assert len({round(v, 4) for v in seen.values()}) > 0.9 * len(seen)  # and every difference is told from the others
    assert a.square().sum(1).sub(q.square().sum()).abs().max() < 1e-5  # a rotation


def test_sines_and_cosines_are_the_formula_and_tell_positions_apart() -> None:
    table = sincos_2d(3, 4, 8, CPU)
    for n in range(12):
        row, col = divmod(n, 4)
        expected = [f(p * w) for p in (col, row) for f in (math.sin, math.cos) for w in (1.0, 1e-2)]
        assert table[n].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.cdist(table, table).add(torch.eye(12)).min() > 0.01


def test_the_transformer_knows_where_a_patch_is() -> None:
    """Without positions, moving the patches about would move the result about; with them it does not."""
    x, t, vec = inputs(1, 2, 8, 8)
    moved = x.roll(4, dims=3)
    for positions in ("rope", "sincos"):
        net = awake(replace(NETS[3], positions=positions), ImageShape(2, 8, 8)).eval()  # type: ignore[type-var]
        assert not torch.allclose(net(moved, t, vec), net(x, t, vec).roll(4, dims=3), atol=1e-3)


def test_a_fresh_transformer_is_zero_and_its_blocks_are_the_identity() -> None:
    torch.manual_seed(0)
    net = backbone(ImageShape(2, 8, 12), D, NETS[3])
    x, t, vec = inputs()
    assert not net(x, t, vec).any()
    tokens = torch.randn(2, 24, 24)
    for block in net.blocks:
        assert torch.equal(block(tokens, torch.randn(2, D), rope_2d(4, 6, 12, CPU)), tokens)
    net(x, t, vec).sub(1).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()] == ["head.weight", "head.bias"]  # it learns from there


# every network


@every
def test_shape_gradients_and_interface(config: NetConfig) -> None:
    net, (x, t, vec) = awake(config).train(), inputs()
    y = net(x, t, vec)
    assert y.shape == x.shape
    y.square().mean().backward()
    lacking = [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()]
    assert not lacking
    again = net.eval()(x, t, vec)
    assert torch.equal(again, net(x, t, Conditioned(vec)))
    for other in (net(x + 1, t, vec), net(x, t + 0.5, vec), net(x, t, vec + torch.randn(D))):
        assert not torch.allclose(again, other, atol=1e-4)


@every
def test_map_and_output_channels(config: NetConfig) -> None:
    net, (x, t, vec) = awake(config, map_channels=3, out_channels=4).eval(), inputs()
    around = torch.randn(3, 3, 8, 12)
    y = net(x, t, Conditioned(vec, around))
    assert y.shape == (3, 4, 8, 12)
    assert not torch.allclose(y, net(x, t, Conditioned(vec, -around)), atol=1e-4)
    small = torch.nn.functional.interpolate(around, (4, 6), mode="area")
    large = torch.nn.functional.interpolate(small, (8, 12), mode="bilinear", antialias=True)
    assert torch.equal(net(x, t, Conditioned(vec, small)), net(x, t, Conditioned(vec, large)))  # a smaller image is enlarged


@every
def test_a_sample_does_not_depend_on_the_batch(config: NetConfig) -> None:
    net, (x, t, vec) = awake(config).eval(), inputs(5)
    with torch.no_grad():
        whole = net(x, t, vec)
        alone = torch.cat([net(x[i : i + 1], t[i : i + 1], vec[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


@every
def test_bf16_agrees_with_fp32(config: NetConfig) -> None:
    """Values and gradients, in both layouts of memory."""
    net, (x, t, vec) = awake(replace(config, **({"dropout": 0.0} if hasattr(config, "dropout") else {}))), inputs(8)

    def run(bf16: bool) -> tuple[Tensor, Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            y = net(x, t, vec).float()
        (y * target).mean().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])

    target = torch.randn_like(x)
    (y, g), (y16, g16) = run(False), run(True)
    assert (y16 - y).norm() < 0.04 * y.norm()
    assert torch.nn.functional.cosine_similarity(g16, g, dim=0) > 0.995
    last = [p for p in net.parameters() if p.ndim == 4]
    for p in last:
        p.data = p.data.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(False)[0], y, rtol=1e-4, atol=1e-4)


def test_sides_that_do_not_divide_and_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="images of 6x12 do not divide by 4; give --data.resolution"):
        backbone(ImageShape(1, 6, 12), D, UNetConfig(patch=2))
    with pytest.raises(UserError, match="give a multiple of 20"):
        backbone(ImageShape(1, 8, 8), D, DiTConfig(width=32, heads=5))


def test_two_points_of_the_plane_are_images_too() -> None:
    net = awake(MLPConfig(width=16, depth=1), ImageShape(2, 1, 1))
    assert net(torch.randn(5, 2, 1, 1), torch.rand(5), torch.randn(5, D)).shape == (5, 2, 1, 1)


def test_uncertainty_finds_the_mean_loss_of_each_level() -> None:
    """The minimum of e^-u L + u is u = log E[L]: for losses e^(3c) times an exponential variable it must come out as 3c."""
    torch.manual_seed(0)
    net = Uncertainty(64)
    assert not net(torch.randn(4)).any()
    opt = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(300):
        c = torch.rand(256) * 2 - 1
        loss = torch.exp(3 * c) * torch.empty(256).exponential_()
        u = net(c)
        (loss * (-u).exp() + u).mean().backward()
        opt.step()
        opt.zero_grad()
    c = torch.linspace(-0.9, 0.9, 19)
    assert (net(c) - 3 * c).abs().max() < 0.35
    assert net(c).shape == (19,)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("tokens", [49, 1024])
def test_forward_derivatives_through_attention_are_those_of_differences(tokens: int) -> None:
    """What consistency models and mean flows differentiate by: with few positions two products, with many the fused kernel, which has none of its own."""
    from pixelkiln.layers.attention import attend

    gen = torch.Generator().manual_seed(0)
    q, k, v, dq, dk, dv = (torch.randn(1, 2, tokens, 8, generator=gen, dtype=torch.float64) for _ in range(6))
    value, found = torch.func.jvp(attend, (q, k, v), (dq, dk, dv))
    torch.testing.assert_close(value, attend(q, k, v))
    h = 1e-5
    slow = (attend(q + h * dq, k + h * dk, v + h * dv) - attend(q - h * dq, k - h * dk, v - h * dv)) / (2 * h)
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("name", ["edm2", "dit"])
def test_forward_derivatives_of_whole_networks_are_those_of_differences(name: str) -> None:
    """In x and t at once (attention, embeddings and norms in one)."""
    from pixelkiln.core.catalog import builtin
    from pixelkiln.core.types import Condition, DataInfo, ImageShape
    from pixelkiln.engine.build import make

    method = make(builtin()[name]("tiny").last, DataInfo(ImageShape(1, 16, 16), ("a", "b")), {}, 0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, t, dx = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 0.7]), torch.randn(2, 1, 16, 16)
    method.requires_grad_(False)
    cond = method.condition(Condition(label=torch.tensor([0, 1])), 2)
    run = lambda x, t: method.net(x, t, cond)
    _, found = torch.func.jvp(run, (x, t), (dx, 0.01 + 0 * t))  # networks are told 1000 t
    h = 3e-3
    slow = (run(x + h * dx, t + 0.01 * h) - run(x - h * dx, t - 0.01 * h)) / (2 * h)
    torch.testing.assert_close(found, slow, rtol=0, atol=5e-3 * float(slow.abs().max()))
