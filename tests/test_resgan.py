"""Residual players of SNGAN, SAGAN and BigGAN: every layer against a slow reference, where norms stand, how z is split, what is penalised."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.layers.attention import PooledAttention2d
from pixelkiln.layers.batchnorm import ConditionalBatchNorm
from pixelkiln.layers.resample import DownConv2d, UpConv2d, doubled
from pixelkiln.methods.biggan import BigGAN, BigGANConfig, biggan
from pixelkiln.methods.sagan import SAGAN, sagan
from pixelkiln.methods.sngan import SNGAN, SNGANConfig, sngan
from pixelkiln.nets.judge import Judge
from pixelkiln.nets.resgan import DownBlock, ResGenerator, ResNets, ResTrunk, UpBlock, res_nets
from pixelkiln.objectives.game import Game, matrices

NOW = Moment(0, 1, 0)
TEN = tuple("0123456789")
PLAIN = ResNets(8, 8, d_spectral=False)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64)


def same_gradients(fast: Tensor, slow: Tensor, inputs: list[Tensor], rtol: float = 1e-9) -> None:
    """The values, and the gradients of a random function of both."""
    torch.testing.assert_close(fast, slow, rtol=rtol, atol=1e-11)
    push = rand(*fast.shape, seed=99)
    found, expected = (torch.autograd.grad((y * push).sum(), inputs) for y in (fast, slow))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-11)


# -- layers


def test_conditional_batch_norm_against_loops() -> None:
    norm = ConditionalBatchNorm(3, 4).double().train()
    with torch.no_grad():
        norm.gain.weight.copy_(rand(3, 4, seed=1))
        norm.shift.weight.copy_(rand(3, 4, seed=2))
    h, c = rand(5, 3, 2, 4).mul(2).add(1).requires_grad_(), rand(5, 4, seed=3).requires_grad_()
    a, b = norm.gain.weight, norm.shift.weight
    rows = []
    for n in range(5):
        for ch in range(3):
            values = torch.stack([h[m, ch, y, x] for m in range(5) for y in range(2) for x in range(4)])
            mean = sum(values) / 40
            var = sum((v - mean) ** 2 for v in values) / 40
            gain, shift = 1 + sum(a[ch, d] * c[n, d] for d in range(4)), sum(b[ch, d] * c[n, d] for d in range(4))
            rows.append(torch.stack([gain * (h[n, ch, y, x] - mean) / (var + 1e-5).sqrt() + shift for y in range(2) for x in range(4)]))
    same_gradients(norm(h, c), torch.stack(rows).view(5, 3, 2, 4), [h, c, a, b])


def test_conditional_batch_norm_has_the_second_gradients_of_differences() -> None:
    norm = ConditionalBatchNorm(2, 3).double().train()
    with torch.no_grad():
        norm.gain.weight.copy_(rand(2, 3, seed=1))
        norm.shift.weight.copy_(rand(2, 3, seed=2))

    def run(h: Tensor, c: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"gain.weight": gain, "shift.weight": shift}, (h, c))

    inputs = [x.detach().requires_grad_() for x in (rand(3, 2, 1, 2, seed=3), rand(3, 3, seed=4), norm.gain.weight, norm.shift.weight)]
    assert torch.autograd.gradgradcheck(run, inputs)


def test_projection_logits_against_loops() -> None:
    judge = Judge(nn.Flatten(), 6, ImageShape(1, 2, 3), 4, "projection").double()
    x, label = rand(5, 1, 2, 3).requires_grad_(), torch.tensor([0, 3, 1, 1, 2])
    w, b, v = judge.head.weight, judge.head.bias, judge.embed.weight
    slow = torch.stack([sum((w[0, f] + v[label[n], f]) * x[n].flatten()[f] for f in range(6)) + b[0] for n in range(5)])
    same_gradients(judge(x, label)[0], slow, [x, w, b, v])


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (4, 4)])
def test_doubling_and_halving_convolutions_are_the_two_steps(sides: tuple[int, int]) -> None:
    h, w = sides
    up, down = UpConv2d(3, 4).double(), DownConv2d(3, 4).double()
    x, big = rand(2, 3, h, w).requires_grad_(), rand(2, 3, 2 * h, 2 * w).requires_grad_()
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(doubled(x), repeated)
    same_gradients(up(x), F.conv2d(repeated, up.weight, up.bias, padding=1), [x, up.weight, up.bias])
    same_gradients(down(big), F.avg_pool2d(F.conv2d(big, down.weight, down.bias, padding=1), 2), [big, down.weight, down.bias])


def test_attention_against_loops() -> None:
    block = PooledAttention2d(16).double()
    with torch.no_grad():
        block.gamma.fill_(0.7)
    gamma = block.gamma
    x = rand(2, 16, 4, 6).requires_grad_()
    wf, wg, wh, wv = (m.weight[:, :, 0, 0] for m in (block.f, block.g, block.h, block.v))
    assert (len(wf), len(wg), len(wh), tuple(wv.shape)) == (2, 2, 8, (16, 8))
    images = []
    for n in range(2):
        f, h = (torch.stack([torch.stack([(m @ x[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)).amax(1) for j in range(3)]) for i in range(2)]).flatten(0, 1) for m in (wf, wh))
        out = []
        for i in range(4):
            for j in range(6):
                scores = torch.stack([(f[p] * (wg @ x[n, :, i, j])).sum() for p in range(6)])
                b = scores.exp() / scores.exp().sum()
                out.append(gamma * (wv @ sum(b[p] * h[p] for p in range(6))) + x[n, :, i, j])
        images.append(torch.stack(out, 1).view(16, 4, 6))
    same_gradients(block(x), torch.stack(images), [x, *block.parameters()])


def test_attention_begins_as_nothing_and_learns() -> None:
    block = PooledAttention2d(16)
    x = torch.randn(2, 16, 7, 7)
    y = block(x)
    assert torch.equal(y, x) and block.gamma.shape == ()
    (y * torch.randn_like(y)).sum().backward()
    assert float(block.gamma.grad.abs()) > 0
    assert PooledAttention2d(4)(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)  # fewer than 8 channels, odd sides


def test_attention_can_be_differentiated_twice() -> None:
    block = PooledAttention2d(8).double()
    with torch.no_grad():
        block.gamma.fill_(1.0)
    assert torch.autograd.gradgradcheck(block, (rand(1, 8, 2, 2).requires_grad_(),))


# -- blocks


def test_up_block_is_the_papers() -> None:
    block = UpBlock(4, 3, nn.BatchNorm2d, lambda m: m).double().train()
    x = rand(3, 4, 2, 3).requires_grad_()
    up = nn.Upsample(scale_factor=2)
    c1, c2, short = block.conv1, block.conv2, block.short
    h = F.conv2d(up(F.relu(F.batch_norm(x, None, None, training=True))), c1.weight, c1.bias, padding=1)
    h = F.conv2d(F.relu(F.batch_norm(h, None, None, training=True)), c2.weight, c2.bias, padding=1)
    slow = h + F.conv2d(up(x), short.weight, short.bias)
    same_gradients(block(x, ()), slow, [x, *(p for m in (c1, c2, short) for p in m.parameters())], rtol=1e-7)


@pytest.mark.parametrize(("halve", "first", "outs"), [(True, False, 6), (True, True, 6), (False, False, 6), (False, False, 4)])
def test_down_block_is_the_papers(halve: bool, first: bool, outs: int) -> None:
    block = DownBlock(4, outs, lambda m: m, halve=halve, first=first).double()
    x = rand(3, 4, 4, 6).requires_grad_()
    c1, c2 = block.conv1, block.conv2
    h = F.conv2d(x if first else F.relu(x), c1.weight, c1.bias, padding=1)
    h = F.conv2d(F.relu(h), c2.weight, c2.bias, padding=1)
    short = F.conv2d(x, block.short.weight, block.short.bias) if halve or outs != 4 else x
    slow = F.avg_pool2d(h + short, 2) if halve else h + short
    same_gradients(block(x), slow, [x, *block.parameters()])


@pytest.mark.parametrize("halve", [True, False])
def test_the_shortcut_gets_x_and_not_its_relu(halve: bool) -> None:
    """relu(x) in place before it would hand it the positive half."""
    block = DownBlock(4, 4, lambda m: m, halve=halve)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = -torch.rand(2, 4, 4, 4) - 0.1  # relu(x) is 0
    kept = x.clone()
    y = block(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(y, block.short(F.avg_pool2d(kept, 2)) if halve else kept)
    assert float((y - y.mean((0, 2, 3), keepdim=True)).detach().abs().max()) > 1e-3  # it does depend on x


def test_no_pass_changes_its_input_anywhere() -> None:
    """Every block, norm and attention of both nets: what comes in is still there afterwards (the first thing a block does must not write over it)."""
    generator, judge = res_nets(ImageShape(1, 16, 16), 12, 3, replace(PLAIN, attention=(8,), split=True, shared=4))
    seen = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((args[0], args[0].detach().clone()))

    for net in (generator, judge):
        for m in net.modules():
            if isinstance(m, (UpBlock, DownBlock, PooledAttention2d, nn.BatchNorm2d)):
                m.register_forward_pre_hook(before)
    label = torch.tensor([0, 1, 2, 0])
    judge(generator(torch.randn(4, 12), label), label)
    assert len(seen) > 10
    assert all(torch.equal(now, then) for now, then in seen)


def test_features_are_sums_of_positive_parts() -> None:
    trunk = ResTrunk(3, ImageShape(3, 16, 16), PLAIN, lambda m: m)
    x = torch.randn(2, 3, 16, 16)
    h = trunk.blocks(x)
    assert h.shape == (2, 8, 8, 8)
    torch.testing.assert_close(trunk(x), torch.stack([torch.stack([sum((v for v in h[n, c].flatten() if v > 0), torch.zeros(())) for c in range(8)]) for n in range(2)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trunk(x).dtype == torch.float32


# -- networks


@pytest.mark.parametrize(("height", "width"), [(16, 16), (28, 28), (32, 32), (64, 64), (48, 48), (64, 96)])
@pytest.mark.parametrize("config", [ResNets(4, 4, 2, attention=(16,)), ResNets(4, 4, 4, 4, 1, wide=True, attention=(16,), g_spectral=True, split=True, shared=3, init="orthogonal")])
def test_sides(height: int, width: int, config: ResNets) -> None:
    for channels, classes in ((1, 0), (3, 10)):
        generator, judge = res_nets(ImageShape(channels, height, width), 60, classes, config)
        label = torch.tensor([1, 0]) if classes else None
        x = generator(torch.randn(2, 60), label)
        assert x.shape == (2, channels, height, width) and float(x.detach().abs().max()) <= 1
        logits, features = judge(x, label)
        assert logits.shape == (2,) and features.shape[0] == 2
        logits.sum().backward()
        missing = [name for net in (generator, judge) for name, p in net.named_parameters() if p.grad is None]
        assert not missing


def test_plans_of_the_papers() -> None:
    """SNGAN's for 32 pixels (table 4) and for 128 (table 5); BigGAN's for 128 (table 4 there)."""

    def plan(config: ResNets, side: int, latent: int = 120) -> tuple[list[int], list[int], list[bool]]:
        with torch.device("meta"):
            g = ResGenerator(ImageShape(3, side, side), latent, 0, replace(config, g_spectral=False))
            trunk = ResTrunk(3, ImageShape(3, side, side), config, lambda m: m)
        downs = [m for m in trunk.blocks if isinstance(m, DownBlock)]
        return [g.grid[2], *(b.conv2.out_channels for b in g.blocks)], [b.conv2.out_channels for b in downs], [b.halve for b in downs]

    assert plan(ResNets(256, 128), 32) == ([256] * 4, [128] * 4, [True, True, False, False])
    base = sngan("base").last.model.nets
    assert plan(base, 128) == ([1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], [True] * 5 + [False])
    big = biggan("base").last.model.nets
    ch = 96
    assert plan(big, 128) == ([16 * ch, 16 * ch, 8 * ch, 4 * ch, 2 * ch, ch], [ch, 2 * ch, 4 * ch, 8 * ch, 16 * ch, 16 * ch], [True] * 5 + [False])


def test_attention_stands_at_the_side_asked_for() -> None:
    for height, expected in ((28, 14), (32, 16), (64, 16), (48, 12), (40, 10)):
        shape, sides = ImageShape(1, height, height), []
        generator, judge = res_nets(shape, 8, 0, replace(PLAIN, attention=(16,)))
        for net in (generator, judge):
            (found,) = [m for m in net.modules() if isinstance(m, PooledAttention2d)]
            found.register_forward_hook(lambda m, args, out, sides=sides: sides.append(args[0].shape[2]))
        judge(generator(torch.randn(2, 8)))
        assert sides == [expected, expected], height
    with pytest.raises(UserError, match=r"attention 3: .* pass 14, 7") as caught:
        res_nets(ImageShape(1, 28, 28), 8, 0, replace(PLAIN, attention=(3,)))
    assert "\n" not in str(caught.value)


def wrapped(net: nn.Module) -> tuple[set[str], set[str]]:
    """Names of layers with a weight of their own: with a spectral norm, and without."""
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, kinds)}
    with_norm = {name for name, m in layers.items() if parametrize.is_parametrized(m)}
    return with_norm, set(layers) - with_norm


def test_where_spectral_norms_stand() -> None:
    shape = ImageShape(3, 32, 32)
    g, d = res_nets(shape, 12, 5, ResNets(8, 8, attention=(16,)))
    assert not wrapped(g)[0]
    assert not wrapped(d)[1]  # the embedding of D included
    g, d = res_nets(shape, 12, 5, ResNets(8, 8, attention=(16,), g_spectral=True))
    assert {name.rsplit(".", 1)[-1] for name in wrapped(g)[1]} == {"gain", "shift"}  # of one-hot vectors: these are embeddings
    assert not wrapped(d)[1]
    g, d = res_nets(shape, 12, 5, ResNets(8, 8, attention=(16,), g_spectral=True, split=True, shared=6))
    assert wrapped(g)[1] == {"embed"}
    assert not wrapped(d)[1]
    g, d = res_nets(shape, 12, 0, ResNets(8, 8, g_spectral=True, split=True, shared=6))
    assert not wrapped(g)[1] and g.embed is None
    g, d = res_nets(shape, 12, 5, ResNets(8, 8, d_spectral=False))
    assert not wrapped(d)[0]


def test_parts_of_z_and_the_embedding_go_where_they_should() -> None:
    torch.manual_seed(0)
    generator = ResGenerator(ImageShape(1, 28, 28), 12, 3, replace(PLAIN, split=True, shared=5))
    z, label = torch.arange(24.0).view(2, 12), torch.tensor([2, 0])
    first, second = generator.conditions(z, label)
    rows = generator.embed.weight[label]
    assert torch.equal(first[0], torch.cat([rows, z[:, 4:8]], 1)) and torch.equal(second[0], torch.cat([rows, z[:, 8:12]], 1))
    stem = []
    generator.stem.register_forward_hook(lambda m, args, out: stem.append(args[0]))
    generator(z, label)
    assert torch.equal(stem[0], z[:, :4])
    alone = ResGenerator(ImageShape(1, 28, 28), 12, 0, replace(PLAIN, split=True, shared=5))
    assert torch.equal(alone.conditions(z, None)[1][0], z[:, 8:12])  # without classes the part alone
    own = ResGenerator(ImageShape(1, 28, 28), 12, 3, PLAIN)
    assert torch.equal(own.conditions(z, label)[0][0], F.one_hot(label, 3).float())
    assert ResGenerator(ImageShape(1, 28, 28), 12, 0, PLAIN).conditions(z, None) == [(), ()]


def test_every_part_of_z_and_the_label_reach_the_image() -> None:
    method = built(BigGAN, biggan)
    z = method.latents(range(4)).requires_grad_()
    request = Request(tuple(range(4)), Condition(label=torch.tensor([0, 1, 2, 3])))
    method.eval().from_latents(z, request).square().sum().backward()
    assert all(float(part.abs().sum()) > 0 for part in z.grad.chunk(3, dim=1))
    same = [method.sample(Request((0, 0), Condition(label=torch.tensor([a, b])))) for a, b in ((1, 1), (1, 2))]
    assert torch.allclose(same[0][0], same[0][1]) and not torch.allclose(same[1][0], same[1][1])


@pytest.mark.parametrize(("latent", "near"), [(128, "126 or 129"), (2, "to 3$")])
def test_a_latent_that_does_not_split_is_refused(latent: int, near: str) -> None:
    with pytest.raises(UserError, match=f"latent {latent} does not split into 3 equal parts, .*{near}") as caught:
        BigGAN(DataInfo(ImageShape(1, 28, 28), TEN), BigGANConfig(nets=replace(PLAIN, split=True), latent=latent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [16, 28, 32, 64, 128])
def test_the_recipes_latent_splits_at_all_common_sides(side: int) -> None:
    for size in ("small", "base"):
        model = biggan(size).last.model
        with torch.device("meta"):
            ResGenerator(ImageShape(3, side, side), model.latent, 10, replace(model.nets, g_spectral=False))


def test_orthogonal_start() -> None:
    generator, judge = res_nets(ImageShape(3, 32, 32), 12, 5, ResNets(16, 16, g_spectral=True, split=True, shared=6, init="orthogonal"))
    checked = 0
    for net in (generator, judge):
        for m in net.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding)):
                w = (m.parametrizations.weight.original if parametrize.is_parametrized(m) else m.weight).detach().flatten(1)
                w = w if len(w) <= w.shape[1] else w.t()
                torch.testing.assert_close(w @ w.t(), torch.eye(len(w)), rtol=0, atol=1e-5)
                checked += 1
    assert checked > 20


# -- recipes


def built(kind: type[Game], recipe: Any, classes: tuple[str, ...] = TEN, **changes: Any) -> Game:
    torch.manual_seed(0)
    return kind(DataInfo(ImageShape(1, 16, 16), classes), replace(recipe("tiny").last.model, **changes))


def batch(classes: int = 10) -> Batch:
    x = torch.rand(8, 1, 16, 16, generator=gen()) * 2 - 1
    return Batch(x, Condition(label=torch.arange(8) % classes if classes else None))


def test_orthogonal_penalty_is_of_gs_trained_weights() -> None:
    """Not of the divided ones, whose lengths no penalty could change; and each matrix once, by loops."""
    method = built(BigGAN, biggan).train()
    weights = matrices(method.generator)
    with torch.no_grad():
        for w in weights:
            w.add_(0.1 * torch.randn(w.shape, generator=gen(1)))
    owned = {id(p) for p in method.generator.parameters()}
    assert all(id(w) in owned for w in weights) and method.generator.embed is not None
    slow = 0.0
    for w in weights:
        rows = w.detach().double().flatten(1)
        slow += sum(float(a @ b) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j)
    terms = method.g_loss(batch(), NOW)
    assert float(terms["orthogonal"].detach()) == pytest.approx(1e-4 * slow, rel=1e-4) and slow > 1
    assert "orthogonal" not in method.d_loss(batch(), NOW)  # the paper has it on G, for the sake of truncation


@pytest.mark.parametrize(("kind", "recipe"), [(SNGAN, sngan), (SAGAN, sagan), (BigGAN, biggan)])
def test_without_classes(kind: type[Game], recipe: Any) -> None:
    method = built(kind, recipe, ()).train()
    assert Ability.LABEL not in method.abilities
    for row in method.updates():
        assert math.isfinite(float(row.loss(batch(0), NOW)["loss"].detach()))
    assert method.sample(Request((0, 1), truncation=0.5)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("condition", ["none", "concat", "projection", "generator"])
def test_ways_of_the_label(condition: Any) -> None:
    torch.manual_seed(0)
    method = SNGAN(DataInfo(ImageShape(1, 16, 16), TEN), SNGANConfig(nets=ResNets(8, 8, condition=condition), latent=8, reference=32)).train()
    x, a, b = batch().x, torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    assert (Ability.LABEL in method.abilities) == (condition != "none")
    method.eval()
    answers = [method.discriminator(x, label)[0] for label in (a, b)]
    assert torch.equal(*answers) == (condition in ("none", "generator"))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_what_the_papers_set(size: Any) -> None:
    sn, sa, big = (r(size).last for r in (sngan, sagan, biggan))
    assert all(s.model.rules.objective == "hinge" and s.train.opts["d"].betas[0] == 0 for s in (sn, sa, big))
    assert sa.train.opts["d"].lr == pytest.approx(4 * sa.train.opts["g"].lr)
    assert big.train.opts["d"].lr == pytest.approx((1 if size == "small" else 4) * big.train.opts["g"].lr)  # docs/LOG.md: both at 1e-3 in short runs
    assert all(o.eps == 1e-6 for o in big.train.opts.values()) and big.model.rules.orthogonal == 1e-4
    if size == "base":
        assert (sn.train.opts["d"].lr, sn.train.opts["g"].lr, sn.model.rules.critic_steps) == (2e-4, 2e-4, 5)
        assert (sa.train.opts["d"].lr, sa.model.rules.critic_steps) == (4e-4, 1)
        assert (big.train.opts["g"].lr, big.model.rules.critic_steps, big.train.batch, big.train.batch % big.train.accumulate) == (5e-5, 2, 2048, 0)
