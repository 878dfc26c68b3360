"""DCGAN: losses on logits, the guidelines, the two rows, and samples by statistics that belong to the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelkiln.core.recipe import Size
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.engine.loop import only
from pixelkiln.layers.standing import with_standing_stats
from pixelkiln.methods.dcgan import DCGAN, DCGANConfig, dcgan
from pixelkiln.nets.dcgan import DCGANNets, Generator, dcgan_nets, stem
from pixelkiln.objectives.adversarial import non_saturating_d, non_saturating_g

NOW = Moment(0, 1, 0)


def small(channels: int = 1, side: int = 16, reference: int = 64) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(DataInfo(ImageShape(channels, side, side)), DCGANConfig(nets=DCGANNets(8, 8), latent=8, reference=reference))


def images(n: int = 16, channels: int = 1, side: int = 16) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_losses_are_cross_entropies() -> None:
    real, fake = torch.randn(50, dtype=torch.float64) * 3, torch.randn(50, dtype=torch.float64) * 3
    one, zero = torch.ones(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits
    assert float(non_saturating_d(real, fake)) == pytest.approx(float(bce(real, one) + bce(fake, zero)), rel=1e-5)
    assert float(non_saturating_g(fake)) == pytest.approx(float(bce(fake, one)), rel=1e-5)
    assert float(non_saturating_d(zero, zero)) == pytest.approx(2 * math.log(2))  # D(x) = 1/2: the game's equilibrium, -V = log 4


@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0])
def test_generator_still_learns_from_a_sure_discriminator(logit: float) -> None:
    """-log(sigmoid + 1e-8) is flat there, and so is log(1 - sigmoid): the slope must be -1."""
    d = torch.tensor([logit], requires_grad=True)
    loss = non_saturating_g(d)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-logit) and float(d.grad) == pytest.approx(-1.0)


def test_losses_are_computed_in_float32() -> None:
    d = torch.tensor([0.01], dtype=torch.bfloat16)
    assert non_saturating_g(d).dtype == non_saturating_d(d, d).dtype == torch.float32


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(16, 16, (4, 4, 2)), (28, 28, (7, 7, 2)), (32, 32, (4, 4, 3)), (64, 64, (4, 4, 4)), (64, 96, (4, 6, 4))],
)
def test_sides(height: int, width: int, expected: tuple[int, int, int]) -> None:
    shape = ImageShape(3, height, width)
    assert stem(shape) == expected
    generator, discriminator = dcgan_nets(shape, 8, 0, DCGANNets(4, 4))
    x = generator(torch.randn(2, 8))
    assert x.shape == (2, 3, height, width) and float(x.detach().abs().max()) <= 1
    logits, features = discriminator(x)
    assert logits.shape == (2,) and features.shape == (2, discriminator.head.in_features)


@pytest.mark.parametrize("side", [7, 15, 34, 100])
def test_other_sides_are_refused_with_the_remedy(side: int) -> None:
    with pytest.raises(UserError, match="--data.resolution 32") as caught:
        stem(ImageShape(1, side, side))
    assert "\n" not in str(caught.value)


def test_guidelines() -> None:
    """No pooling, BatchNorm everywhere but at G's output and D's input and output, ReLU and tanh in G, LeakyReLU 0.2 in D; init."""
    torch.manual_seed(0)
    generator, discriminator = dcgan_nets(ImageShape(3, 64, 64), 100, 0, DCGANNets(16, 16))
    assert [type(m) for m in generator.norms] == [nn.BatchNorm2d] * 4
    outs = [conv.out_channels for conv in generator.convs]
    assert outs == [64, 32, 16, 3] and [conv.bias is not None for conv in generator.convs] == [False, False, False, True]
    names = [type(m).__name__ for m in discriminator.trunk]
    assert names == ["Conv2d", "LeakyReLU"] + ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3 + ["Flatten"]
    assert isinstance(discriminator.head, nn.Linear)  # of the 4 x 4 grid: the paper's last convolution, flattened
    for m in [*generator.modules(), *discriminator.modules()]:
        if isinstance(m, nn.LeakyReLU):
            assert m.negative_slope == 0.2
        if isinstance(m, nn.BatchNorm2d):  # the widely copied BatchNorm2d(C, 0.8) sets eps, not the momentum
            assert (m.eps, m.momentum) == (1e-5, 0.1) and float(m.weight.detach().mean()) == pytest.approx(1, abs=0.02)
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and m.weight.numel() > 5000:
            w = m.weight.detach()
            assert float(w.std()) == pytest.approx(0.02, rel=0.05) and abs(float(w.mean())) < 1e-3


def test_generator_is_the_textbook_one() -> None:
    """The linear stem is the usual transposed convolution of a 1 x 1 image: the same weights give the same images, in training and after."""
    net = Generator(ImageShape(3, 32, 32), 10, 0, DCGANNets(4, 4))
    h, w, top = net.grid
    first = nn.ConvTranspose2d(10, top, (h, w), 1, 0, bias=False)
    with torch.no_grad():
        first.weight.copy_(net.stem.weight.T.reshape(10, h, w, top).permute(0, 3, 1, 2))
    textbook = nn.Sequential(first, *(m for norm, conv in zip(net.norms, net.convs, strict=True) for m in (norm, nn.ReLU(), conv)), nn.Tanh())
    z = torch.randn(6, 10)
    torch.testing.assert_close(net(z), textbook(z[:, :, None, None]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(z), textbook.eval()(z[:, :, None, None]), rtol=1e-4, atol=1e-5)


def test_each_row_moves_its_own_net_only() -> None:
    method = small().train()
    d_row, g_row = method.updates()
    assert (d_row.nets, g_row.nets, g_row.fresh) == (("discriminator",), ("generator",), False)
    for row, idle in ((d_row, method.generator), (g_row, method.discriminator)):
        method.zero_grad()
        before = state(method)
        with only(method, row.nets):
            row.loss(Batch(images()), NOW)["loss"].backward()
        assert all(p.grad is None for p in idle.parameters())
        busy = getattr(method, row.nets[0])
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in busy.parameters())
        moved = {name.split(".")[0] for name, t in state(method).items() if not torch.equal(t, before[name])}
        assert moved == set(row.nets)  # running statistics of the frozen net stand still, those of the other do not


def test_discriminator_row_builds_no_graph_in_the_generator() -> None:
    method = small().train()  # nothing frozen: the row must see to it by itself
    method.d_loss(Batch(images()), NOW)["loss"].backward()
    assert all(p.grad is None for p in method.generator.parameters())


def test_real_and_fake_do_not_share_batch_statistics() -> None:
    method = small().train()
    x = images()
    expected = method.discriminator(x)[0].detach().mean()
    seen = [method.d_loss(Batch(x), NOW)["d_real"] for _ in range(2)]  # two draws of fakes, one verdict on the real images
    assert float(seen[0]) == float(seen[1]) == pytest.approx(float(expected), rel=1e-6)


def test_logged_terms_are_mean_logits_without_graph() -> None:
    method = small().train()
    heard: list[Tensor] = []
    method.discriminator.register_forward_hook(lambda _net, _args, out: heard.append(out[0].detach()))
    d, g = method.d_loss(Batch(images()), NOW), method.g_loss(Batch(images()), NOW)
    assert set(d) == {"loss", "d_real", "d_fake", "told"} and set(g) == {"loss", "d_fake"}
    for value, logits in zip((d["d_real"], d["d_fake"], g["d_fake"]), heard, strict=True):
        assert value.ndim == 0 and not value.requires_grad and float(value) == pytest.approx(float(logits.mean()), rel=1e-5)
    assert 0 <= float(d["told"]) <= 1


def test_standing_statistics_are_those_of_the_reference() -> None:
    """Drawing the reference itself gives what training mode gives for it (up to n / (n - 1) in the variance)."""
    net = small().generator
    reference = torch.randn(512, 8)
    expected = net.train()(reference)
    torch.testing.assert_close(with_standing_stats(net, (reference,), (reference,)), expected, rtol=0, atol=2e-3)


def test_samples_do_not_depend_on_stale_running_statistics() -> None:
    """Averaged weights come with the raw generator's buffers: whatever these hold, the samples are those of the weights."""
    method = small()
    request = Request(seeds=(0, 1, 2))
    first = method.sample(request)
    for name, buffer in method.generator.named_buffers():
        if "running" in name:
            buffer.fill_(7.0)
    before = state(method)
    assert torch.equal(method.sample(request), first)
    assert same(before, state(method)) and method.training  # sampling changes nothing, in the middle of training either


def test_sample_depends_on_its_seed_alone() -> None:
    method = small()
    whole = method.sample(Request(seeds=(5, 6, 7, 8)))
    parts = torch.cat([method.sample(Request(seeds=(5,))), method.sample(Request(seeds=(6, 7, 8)))])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)
    assert whole.shape == (4, 1, 16, 16) and float((whole[0] - whole[1]).abs().max()) > 1e-3


def test_latents_are_standard_normal_and_differentiable() -> None:
    method = small().eval()
    z = method.latents(range(3000))
    assert torch.equal(z[7], method.latents([7])[0])
    assert float(z.mean()) == pytest.approx(0, abs=0.02) and float(z.std()) == pytest.approx(1, abs=0.02)
    z = z[:2].requires_grad_()
    method.from_latents(z, Request(seeds=(0, 1)))[0].sum().backward()
    assert float(z.grad[0].abs().sum()) > 0 and float(z.grad[1].abs().sum()) == 0  # and image 0 is z[0]'s alone


def test_a_label_is_refused() -> None:
    with pytest.raises(UserError, match="label"):
        small().sample(Request(seeds=(0,), cond=Condition(label=torch.tensor([1]))))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipe(size: Size) -> None:
    stage = dcgan(size).last
    side = stage.data.resolution or 28
    method = stage.method(DataInfo(ImageShape(3, side, side)), stage.model)
    assert {row.opt for row in method.updates()} == set(stage.train.opts)
    assert all(opt.lr == (2e-3 if size == "small" else 2e-4) and opt.betas == (0.5, 0.999) for opt in stage.train.opts.values())
    assert stage.train.ema is not None and method.averaged == ("generator",)
    assert "1511.06434" in dcgan(size).paper


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Nets this small are slower with two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_both_modes_are_learned(one_thread: None) -> None:
    """Half of the images are bright on the left, half on the right: after some seconds so are the samples."""
    method = small(side=8, reference=128).train()
    rows = method.updates()
    opts = {row.opt: torch.optim.Adam(getattr(method, row.nets[0]).parameters(), 3e-3, betas=(0.5, 0.999)) for row in rows}
    left = torch.full((1, 8, 8), -1.0)
    left[..., :4] = 1.0
    modes = torch.stack([left, left.flip(-1)])
    for _, row in itertools.product(range(400), rows):
        batch = Batch(modes[torch.randint(0, 2, (32,))])
        opts[row.opt].zero_grad()
        with only(method, row.nets):
            row.loss(batch, NOW)["loss"].backward()
            opts[row.opt].step()
    samples = method.sample(Request(seeds=tuple(range(100))))
    distance = (samples[:, None] - modes[None]).square().mean((2, 3, 4))  # (n, 2)
    nearest, mode = distance.min(1)
    assert float(nearest.median()) < 0.2 and 15 <= int(mode.sum()) <= 85
