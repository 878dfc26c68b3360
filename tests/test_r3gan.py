"""R3GAN: eq. 2 and both penalties against formulas written out, the networks' promises, and the two cheaper penalties."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelkiln.core.recipe import TrainConfig
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.engine.loop import Trainer, only
from pixelkiln.engine.optim import lr_at
from pixelkiln.engine.where import Where, _check_compiler
from pixelkiln.methods.dcgan import DCGAN, DCGANConfig
from pixelkiln.methods.r3gan import R3GAN, R3GANConfig, r3gan
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.nets.r3gan import Block, R3Nets, r3_nets, resampled
from pixelkiln.objectives.penalties import difference_penalty, squared_gradient
from pixelkiln.objectives.rules import Rules

NETS = R3Nets((8, 6), blocks=1, group=4)
RULES = Rules("relativistic", r1=0.3, r2=0.7, r_end=0.1)


def game(rules: Rules = RULES, channels: int = 2, classes: int = 3, side: int = 16, seed: int = 0) -> R3GAN:
    """A small game in float64, its blocks no longer the identity."""
    torch.manual_seed(seed)
    info = DataInfo(ImageShape(channels, side, side), tuple("abcdefgh"[:classes]))
    method = R3GAN(info, R3GANConfig(nets=NETS, rules=rules, latent=5)).double().train()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return method


def batch(n: int = 4, channels: int = 2, classes: int = 3, side: int = 16) -> Batch:
    gen = torch.Generator().manual_seed(1)
    label = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, channels, side, side, generator=gen, dtype=torch.float64) * 2 - 1, Condition(label=label))


def fixed(method: R3GAN, monkeypatch: pytest.MonkeyPatch, n: int = 4) -> Tensor:
    """The latents that the method will draw, n of them, always the same."""
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monkeypatch.setattr(method, "random_latents", lambda num: z[:num])
    return z


def size_of_gradient(method: R3GAN, x: Tensor, label: Tensor | None) -> Tensor:
    """|grad_x D(x_i)|^2 of one image after the other, summed by hand."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        xi = x[i : i + 1].detach().clone().requires_grad_()
        (g,) = torch.autograd.grad(method.discriminator(xi, None if label is None else label[i : i + 1])[0][0], xi, create_graph=True)
        total = total + (g * g).sum()
    return total / len(x)


def written_out(method: R3GAN, b: Batch, z: Tensor, fade: float) -> Tensor:
    """L_D of eq. 2 with both penalties, by log and exp."""
    label = b.cond.label
    fake = method.generator(z, label).detach()
    gap = method.discriminator(b.x, label)[0] - method.discriminator(fake, label)[0]
    loss = torch.log(1 + torch.exp(-gap)).sum() / len(gap)
    return loss + fade * (0.3 / 2 * size_of_gradient(method, b.x, label) + 0.7 / 2 * size_of_gradient(method, fake, label))


@pytest.mark.parametrize(("step", "fade"), [(0, 1.0), (50, 0.55), (100, 0.1)])
@pytest.mark.parametrize("classes", [0, 3])
def test_d_loss_and_its_gradients_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch, step: int, fade: float, classes: int) -> None:
    method, b = game(classes=classes), batch(classes=classes)
    z = fixed(method, monkeypatch)
    with only(method, ("discriminator",)):
        loss = method.d_loss(b, Moment(step, 100, 0))["loss"]
        expected = written_out(method, b, z, fade)
        ps = [p for p in method.discriminator.parameters() if p.requires_grad]
        ours, theirs = torch.autograd.grad(loss, ps), torch.autograd.grad(expected, ps)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, c in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5 * float(c.abs().max()))


def test_second_derivatives_are_those_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalties' slope along a direction of D's weights, by a central difference of the formula: nothing is differentiated twice there."""
    method, b = game(replace(RULES, r_end=1.0)), batch()
    z = fixed(method, monkeypatch)
    ps = list(method.discriminator.parameters())
    terms = method.d_loss(b, Moment(0, 1, 0))
    torch.manual_seed(4)
    way = [torch.randn_like(p) for p in ps]
    slope = sum(float((g * v).sum()) for g, v in zip(torch.autograd.grad(terms["loss"], ps, retain_graph=True), way, strict=True))
    ends = []
    for h in (1e-8, -1e-8):  # the penalties jump where an activation changes its sign: hardly ever on so short a way
        with torch.no_grad():
            for p, v in zip(ps, way, strict=True):
                p.add_(h * v)
        ends.append(float(written_out(method, b, z, 1.0).detach()))
        with torch.no_grad():
            for p, v in zip(ps, way, strict=True):
                p.sub_(h * v)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-8, rel=1e-4)
    alone = method.objective.d(method.discriminator(b.x, b.cond.label)[0], method.discriminator(method.generator(z, b.cond.label).detach(), b.cond.label)[0])
    without = sum(float((g * v).sum()) for g, v in zip(torch.autograd.grad(alone, ps), way, strict=True))
    assert abs(slope - without) > 0.01 * abs(slope)  # a hundred times the tolerance: the penalties' part is not detached


def test_g_loss_reaches_g_through_generated_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    method, b = game(), batch()
    z = fixed(method, monkeypatch)
    seen: list[tuple[Tensor, Tensor | None, bool]] = []
    method.discriminator.register_forward_hook(lambda m, args, out: seen.append((args[0], args[1], out[0].requires_grad)))
    x = b.x.clone().requires_grad_()
    with only(method, ("generator",)):
        loss = method.g_loss(Batch(x, b.cond), Moment(0, 1, 0))["loss"]
        loss.backward()
    assert x.grad is None and all(p.grad is None for p in method.discriminator.parameters())
    assert [graph for *_, graph in seen] == [True, False]  # D(G(z)), then D(x)
    assert seen[0][1] is not None and torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[0][1], b.cond.label)
    assert torch.equal(seen[1][0], x)
    real = method.discriminator(b.x, b.cond.label)[0].detach()
    fake = method.discriminator(method.generator(z, b.cond.label), b.cond.label)[0]
    expected = torch.log(1 + torch.exp(real - fake)).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for p, g in zip(method.generator.parameters(), torch.autograd.grad(expected, list(method.generator.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6 * float(g.abs().max()) + 1e-12)


def test_a_pair_has_one_label_in_d_too(monkeypatch: pytest.MonkeyPatch) -> None:
    method, b = game(), batch()
    fixed(method, monkeypatch)
    labels: dict[str, list[Tensor]] = {"d": [], "g": []}
    method.discriminator.register_forward_hook(lambda m, args, out: labels["d"].append(args[1]))
    method.generator.register_forward_hook(lambda m, args, out: labels["g"].append(args[1]))
    method.d_loss(b, Moment(0, 1, 0))
    assert len(labels["d"]) == 2 and len(labels["g"]) == 1
    assert all(torch.equal(found, b.cond.label) for found in (*labels["d"], *labels["g"]))


# -- the cheaper penalties


def test_lazy_penalty_is_the_exact_one_times_as_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    method, lazy, b = game(), game(replace(RULES, r_every=8)), batch()
    for m in (method, lazy):
        fixed(m, monkeypatch)
    exact = method.d_loss(b, Moment(0, 1, 0))
    rows = {row.name: row for row in lazy.updates()}
    assert rows["r"].every == 8 and rows["r"].opt == rows["d"].opt and not rows["r"].fresh and [*rows] == ["d", "r", "g"]
    bare, extra = rows["d"].loss(b, Moment(0, 1, 0)), rows["r"].loss(b, Moment(0, 1, 0))
    assert "r1" not in bare
    assert float((bare["loss"] + extra["loss"] / 8).detach()) == pytest.approx(float(exact["loss"].detach()), rel=1e-6)


def spread(penalty: Callable[[Tensor], Tensor], x: Tensor, draws: int, seed: int = 0) -> tuple[float, float]:
    """Mean of a penalty over so many draws, and its standard error."""
    torch.manual_seed(seed)
    with torch.no_grad():
        found = torch.stack([penalty(x) for _ in range(draws)]).double()
    return float(found.mean()), float(found.std()) / math.sqrt(draws)


@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_differences_on_a_quadratic_have_the_mean_of_the_closed_form(sigma: float) -> None:
    """D(x) = x A x / 2 + b x: E[(D(x + s e) - D(x))^2] / s^2 = |A x + b|^2 + s^2 / 4 (tr(A)^2 + 2 tr(A^2)), within four standard errors."""
    torch.manual_seed(0)
    a, b, x = torch.randn(12, 12).double(), torch.randn(12).double(), torch.randn(500, 3, 2, 2).double()
    a = (a + a.T) / 2

    def critic(x: Tensor) -> Tensor:
        v = x.flatten(1)
        return 0.5 * ((v @ a) * v).sum(1) + v @ b

    slope = float((x.flatten(1) @ a + b).square().sum(1).mean())
    assert float(squared_gradient(critic, x).detach()) == pytest.approx(slope, rel=1e-6)
    mean, error = spread(lambda x: difference_penalty(critic, x, sigma), x, 400)
    assert error < 0.01 * slope
    assert abs(mean - slope - sigma**2 / 4 * float(a.trace() ** 2 + 2 * (a @ a).trace())) < 4 * error


def test_differences_on_a_net_have_the_mean_of_the_gradient() -> None:
    """Within four standard errors, which are less than 2 %."""
    method, b = game(), batch(n=32)
    label = b.cond.label
    exact = float(squared_gradient(lambda x: method.discriminator(x, label)[0], b.x).detach())
    mean, error = spread(lambda x: difference_penalty(lambda y: method.discriminator(y, label.repeat(2))[0], x, 0.01), b.x, 400)
    assert error < 0.02 * exact
    assert abs(mean - exact) < 4 * error


@pytest.fixture(scope="module")
def compiler() -> Iterator[None]:
    """Skips where torch.compile does not work."""
    try:
        _check_compiler(torch.device("cpu"))
    except UserError as e:
        pytest.skip(str(e))
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_compiled_networks_give_differences_and_no_second_derivatives() -> None:
    """Why penalties call `judge`: the compiled forward cannot be differentiated twice."""
    method, b = game().float(), batch()
    x, label = b.x.float(), b.cond.label
    run = torch.compile(lambda x, label: method.discriminator.judge(x, label)[0])
    with pytest.raises(RuntimeError, match="double backward"):
        squared_gradient(lambda x: run(x, label), x).backward()
    method.zero_grad()
    difference_penalty(lambda x: run(x, label.repeat(2)), x, 0.01).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.discriminator.parameters())


@pytest.mark.parametrize(("sigma", "calls"), [(0.0, 2), (0.01, 4)])
def test_differences_are_compiled_where_a_run_is_and_exact_penalties_are_not(monkeypatch: pytest.MonkeyPatch, sigma: float, calls: int) -> None:
    """What `compile` sets is called for real and generated images, and for each penalty by differences."""
    method, seen = game(replace(RULES, r_sigma=sigma)), []
    method.discriminator._compiled_call_impl = lambda *a: seen.append(1) or method.discriminator.judge(*a)
    fixed(method, monkeypatch)
    method.d_loss(batch(), Moment(0, 10, 0))
    assert len(seen) == calls


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rules", [RULES, replace(RULES, r_sigma=0.01)], ids=["exact", "differences"])
def test_a_compiled_run_takes_the_steps_of_an_eager_one(rules: Rules) -> None:
    found, data = [], batch(8, 1, 0)
    for compiled in (False, True):
        torch.manual_seed(0)
        method = R3GAN(DataInfo(ImageShape(1, 16, 16)), R3GANConfig(nets=NETS, rules=rules, latent=5))
        where = Where("cpu", "fp32", compiled, torch.get_num_threads())
        where.place(method)
        opt = r3gan("tiny").last.train.opts["d"]
        t = Trainer(method, TrainConfig(batch=8, opts={"d": opt, "g": opt}), lambda d, i, n: Batch(data.x.float()), 0, 3, where)
        for k in range(3):
            t.step(k)
        assert t.look()["d/r2"] > 0
        found.append(method.state_dict())
    for name, w in found[0].items():
        torch.testing.assert_close(found[1][name], w, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("make", [lambda r: R3GAN(DataInfo(ImageShape(1, 16, 16)), R3GANConfig(nets=NETS, rules=r, latent=5)),
                                  lambda r: DCGAN(DataInfo(ImageShape(1, 16, 16)), DCGANConfig(nets=DCGANNets(4, 4, norm="none"), rules=r, latent=5))], ids=["r3gan", "dcgan"])
@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_penalties_are_fp32_under_autocast(make: Callable[[Rules], Any], sigma: float) -> None:
    """A generator that draws in bf16 gives R2 no bf16 image: the same penalty as without autocast, but for what bf16 did to the image."""
    method = make(replace(RULES, r_sigma=sigma, r1=0.0)).train()
    x = batch(16, 1, 0).x.float()
    found = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = method.d_loss(Batch(x), Moment(0, 1, 0))
        terms["loss"].backward()
        assert terms["r2"].dtype == torch.float32
        found.append(float(terms["r2"].detach()))
    assert found[1] == pytest.approx(found[0], rel=0.03)


# -- the networks


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (1, 28, 28), (3, 32, 32), (4, 64, 64), (2, 40, 48)])
@pytest.mark.parametrize("classes", [0, 3])
def test_sides_and_channels(channels: int, height: int, width: int, classes: int) -> None:
    torch.manual_seed(0)
    shape, label = ImageShape(channels, height, width), torch.tensor([0, 2]) if classes else None
    generator, judge = r3_nets(shape, 5, classes, NETS)
    x = generator(torch.randn(2, 5), label)
    assert x.shape == (2, channels, height, width)
    logits, features = judge(x, label)
    assert logits.shape == (2,) and features.shape == (2, judge.head.in_features)


@pytest.mark.parametrize("condition", ["none", "concat", "generator", "projection"])
def test_a_label_enters_where_it_is_said(condition: Any) -> None:
    torch.manual_seed(0)
    info = DataInfo(ImageShape(1, 16, 16), ("a", "b", "c"))
    method = R3GAN(info, R3GANConfig(nets=replace(NETS, condition=condition), latent=5))
    x, a, b = torch.randn(2, 1, 16, 16), torch.tensor([0, 1]), torch.tensor([2, 1])
    told = [method.discriminator(x, label)[0] for label in (a, b)]
    assert torch.equal(told[0][0], told[1][0]) == (condition in ("none", "generator")) and torch.equal(told[0][1], told[1][1])
    assert method.labeled == (condition != "none")
    if method.labeled:
        drawn = [method.generator(torch.ones(2, 5), label) for label in (a, b)]
        assert not torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])


def test_projection_is_the_papers() -> None:
    """<h(x), e(y)> with no bias at first: V_y + w with w = 0; h has the latent's length."""
    torch.manual_seed(0)
    _, judge = r3_nets(ImageShape(1, 16, 16), 50, 400, NETS)
    x, label = torch.randn(3, 1, 16, 16), torch.tensor([1, 2, 2])
    logits, h = judge(x, label)
    assert h.shape == (3, 50) and judge.head.bias is None
    torch.testing.assert_close(logits, (h * judge.embed.weight[label]).sum(1))
    assert float(judge.embed.weight.detach().std()) == pytest.approx(1 / math.sqrt(50 * 400), rel=0.02)


def test_blocks_begin_as_the_identity_with_the_fixup_scale() -> None:
    torch.manual_seed(0)
    config = R3Nets((64, 32), blocks=3, group=16)
    for net in r3_nets(ImageShape(3, 32, 32), 16, 0, config):
        blocks = [m for m in net.modules() if isinstance(m, Block)]
        assert len(blocks) == 12  # four resolutions of three
        for block in blocks:
            x = torch.randn(2, block.enter.in_channels, 4, 4)
            assert torch.equal(block(x), x)
            for conv, fan_in in ((block.enter, block.enter.in_channels), (block.mix, 16 * 9)):
                assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / 1.04) * 12**-0.25 / math.sqrt(fan_in), rel=0.1)
            assert block.mix.groups == 2 * block.enter.in_channels // 16 and block.mix.weight.shape[1:] == (16, 3, 3)


def test_biases_are_in_the_activations_alone_and_nothing_is_normalised() -> None:
    for net in r3_nets(ImageShape(3, 32, 32), 16, 3, NETS):
        biased = {name.rsplit(".", 2)[-2] for name, _ in net.named_parameters() if name.endswith("bias")}
        assert biased == {"enter", "mix"}
        assert not [*net.buffers()] and not [m for m in net.modules() if "Norm" in type(m).__name__]


def test_the_gain_keeps_the_second_moment() -> None:
    torch.manual_seed(0)
    x = torch.randn(1_000_000)
    assert float((2 / 1.04) * F.leaky_relu(x, 0.2).square().mean()) == pytest.approx(1, rel=0.01)


def test_images_begin_with_the_variance_of_z() -> None:
    torch.manual_seed(0)
    generator, _ = r3_nets(ImageShape(3, 16, 16), 64, 0, R3Nets((256, 128), blocks=1))
    assert 0.2 < float(generator(torch.randn(64, 64)).detach().var()) < 1.5


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_resampling_is_the_filter_1_3_3_1(factor: float) -> None:
    """[1, 2, 1] * [1, 1] = [1, 3, 3, 1], with torch's convolutions, away from the edges (of zeros there)."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
    expected = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=3) if factor > 1 else F.conv2d(x, kernel, stride=2, padding=1, groups=3)
    found = resampled(x, factor)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    torch.testing.assert_close(resampled(torch.ones_like(x), factor), torch.ones_like(expected))  # no dark border
    assert torch.autograd.gradgradcheck(lambda x: resampled(x, factor), (x[:1, :1, :4, :4].detach().requires_grad_(),))


def test_widths_are_by_stage() -> None:
    generator, judge = r3_nets(ImageShape(1, 32, 32), 5, 0, R3Nets((24, 16), blocks=2, group=8))
    g = [m.enter.in_channels for m in generator.modules() if isinstance(m, Block)]
    assert g == [24, 24, 16, 16, 16, 16, 16, 16]
    assert [m.enter.in_channels for m in judge.modules() if isinstance(m, Block)] == g[::-1]


@pytest.mark.parametrize("nets", [R3Nets((10,), group=16), R3Nets(()), R3Nets((16, 0)), R3Nets((16,), blocks=0)])
def test_networks_that_cannot_be_are_refused(nets: R3Nets) -> None:
    with pytest.raises(UserError, match=r"model\.nets"):
        r3_nets(ImageShape(1, 16, 16), 5, 0, nets)


# -- the recipe


def test_recipe() -> None:
    for size in ("tiny", "small", "base"):
        stage = r3gan(size).last
        rules = stage.model.rules
        assert (rules.objective, rules.r_end, rules.r_every, rules.r_sigma, rules.critic_steps) == ("relativistic", 0.1, 4 if size == "small" else 1, 0.0, 1) and rules.r1 == rules.r2 > 0
        for opt in stage.train.opts.values():
            assert (opt.betas, opt.eps) == ((0.0, 0.99), 1e-8)
            assert lr_at(opt, Moment(0, 100, 0)) == opt.lr and lr_at(opt, Moment(100, 100, 0)) == pytest.approx(opt.lr / 4)
        assert stage.train.ema is not None
    assert (stage.model.nets.widths, stage.data.resolution, rules.r1) == ((768,), 32, 0.05)


@pytest.mark.learns
def test_both_modes_are_learned() -> None:
    """Half of the images are bright on the left, half on the right, of their own label: after some seconds so are the samples."""
    torch.manual_seed(0)
    method = R3GAN(DataInfo(ImageShape(1, 8, 8), ("left", "right")), R3GANConfig(nets=R3Nets((8, 8), blocks=1, group=8), rules=replace(RULES, r1=0.1, r2=0.1), latent=8))
    left = torch.full((1, 8, 8), -1.0)
    left[..., :4] = 1.0
    modes = torch.stack([left, left.flip(-1)])
    opts = {name: torch.optim.Adam(getattr(method, name).parameters(), 2e-3, betas=(0.0, 0.99)) for name in ("generator", "discriminator")}
    for k in range(200):
        label = torch.randint(0, 2, (16,))
        for row in method.updates():
            opts[row.nets[0]].zero_grad()
            with only(method, row.nets):
                row.loss(Batch(modes[label], Condition(label=label)), Moment(k, 200, 0))["loss"].backward()
                opts[row.nets[0]].step()
    label = torch.arange(40) % 2
    samples = method.sample(Request(tuple(range(40)), Condition(label=label)))
    assert float((samples - modes[label]).square().mean((1, 2, 3)).median()) < 0.1


def test_nothing_in_the_nets_is_a_module_of_no_use() -> None:
    """Every parameter of both nets is reached (those behind zero layers once these have moved)."""
    method, b = game().float(), batch()
    b = Batch(b.x.float(), b.cond)
    method.d_loss(b, Moment(0, 1, 0))["loss"].backward()
    method.g_loss(b, Moment(0, 1, 0))["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in nn.ModuleList([method.generator, method.discriminator]).parameters())
