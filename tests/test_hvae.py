"""The hierarchical VAE: its KL against torch and Monte Carlo, its bounds against an integral, its codes, its samples, and what keeps it stable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelkiln.core.protocols import Update
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import open_source
from pixelkiln.engine.optim import build
from pixelkiln.methods.hvae import HVAE, HVAEConfig, hvae, kl_of, log_ratio
from pixelkiln.nets.ladder import Grow, LadderConfig, Pointwise, Shrink, levels
from pixelkiln.objectives import variational as vi
from pixelkiln.objectives.amortized import thresholds

NET = LadderConfig(width=(4, 6, 8), squeeze=2, latent=2, up=(1, 1, 1), down=(1, 2, 1))
SMALL = HVAEConfig(NET, likelihood="bernoulli")
START = Moment(0, 100, 0)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, channels, side, side), generator=gen(seed)) / 127.5 - 1


def built(config: HVAEConfig = SMALL, channels: int = 1, side: int = 8, stir: float = 0.1) -> HVAE:
    """A method whose priors are no longer N(0, I), as after training."""
    torch.manual_seed(0)
    method = HVAE(DataInfo(ImageShape(channels, side, side)), config).eval()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(stir * torch.randn_like(p))
    return method


def loss(method: HVAE, x: Tensor, moment: Moment = START, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    (row,) = method.updates()
    assert isinstance(row, Update)
    return dict(row.loss(Batch(x), moment))


# ---- the KL
def test_kl_of_two_gaussians_matches_torch() -> None:
    mean, log_std, prior_mean, prior_log_std = torch.randn(4, 6, 5, generator=gen(), dtype=torch.float64)
    q, p = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(prior_mean, prior_log_std.exp())
    torch.testing.assert_close(vi.kl_between(mean, log_std, prior_mean, prior_log_std), torch.distributions.kl_divergence(q, p))
    torch.testing.assert_close(vi.kl_between(mean, log_std, 0 * mean, 0 * mean), vi.kl_per_unit(mean, 2 * log_std))
    same = vi.kl_between(mean.float(), log_std.float(), mean.float(), log_std.float())
    assert torch.equal(same, torch.zeros(6, 5)), "no rounding where both are the same"


def test_sum_of_the_layers_kl_is_its_monte_carlo_estimate() -> None:
    """E_q[log q(z | x) - log p(z)] of all layers together, with densities by torch, equals the mean of the closed forms' sum."""
    method, x, n = built(), images(1), 4000
    eps = torch.randn(n, method.decoder.total, generator=gen())
    with torch.no_grad():
        _, drawn = method.infer(x, eps)
    brute = torch.zeros(n)
    for d in drawn:
        q, p = torch.distributions.Normal(d.mean, d.log_std.exp()), torch.distributions.Normal(d.prior_mean, d.prior_log_std.exp())
        brute += (q.log_prob(d.z) - p.log_prob(d.z)).sum((1, 2, 3))
    closed = kl_of(drawn).sum(1)
    torch.testing.assert_close(-log_ratio(drawn), brute, atol=1e-3, rtol=1e-4)
    apart = brute - closed
    assert float(apart.std()) > 0.1, "the estimate is a random one"
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(n)


def test_the_logged_kl_is_a_sum_over_levels_and_free_bits_change_the_loss_alone() -> None:
    x, plain = images(16), loss(built(), images(16))
    by_level = [v for k, v in plain.items() if k.endswith("/kl")]
    assert [k for k in plain if k.endswith("/kl")] == ["1x1/kl", "4x4/kl", "8x8/kl"]
    single = [v for k, v in plain.items() if k.endswith("/layer_kl")]
    assert [k for k in plain if k.endswith("/layer_kl")] == ["1x1.1/layer_kl", "4x4.1/layer_kl", "4x4.2/layer_kl", "8x8.1/layer_kl"]
    torch.testing.assert_close(sum(by_level), plain["kl"])
    torch.testing.assert_close(torch.stack(by_level), torch.stack([single[0], single[1] + single[2], single[3]]))
    torch.testing.assert_close(plain["loss"].detach(), plain["rec"] + plain["kl"])
    half = loss(built(replace(SMALL, warmup=0.2, beta=3.0)), x, Moment(10, 100, 0))
    torch.testing.assert_close(half["loss"].detach(), plain["rec"] + 1.5 * plain["kl"])
    free = loss(built(replace(SMALL, free_bits=1e5)), x)
    assert free["kl"] == plain["kl"]
    torch.testing.assert_close(free["loss"].detach(), plain["rec"] + 4e5)  # four layers, each after the batch's mean


# ---- the bound
def test_the_bound_rises_to_the_integral() -> None:
    """Two layers of one number each: p(x) is a sum over a grid of codes. The ELBO is below it, and importance weighting reaches it."""
    method = built(replace(SMALL, net=LadderConfig(width=(6, 6), squeeze=2, latent=1, up=(1, 1), down=(1, 1), patch=4)), side=4)
    x = torch.randint(0, 2, (5, 1, 4, 4), generator=gen()).float() * 2 - 1  # binary: the binarization changes nothing
    line = torch.linspace(-7, 7, 121)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)  # (N, 2)
    with torch.no_grad():
        out = method.decoder(method.decoder.generate(grid))
        joint = torch.stack([method.log_likelihood(row.expand(len(grid), 1, 4, 4), out) for row in x]) - grid.square().sum(1) / 2 - math.log(2 * math.pi)
    exact = torch.logsumexp(joint, 1) + 2 * math.log(14 / 120)
    torch.testing.assert_close(method.log_prob(x, 3000, gen()).nats, exact, atol=0.05, rtol=0)
    elbo = method.log_prob(x.repeat(300, 1, 1, 1), 1, gen()).nats.view(300, 5)
    assert (elbo.mean(0) < exact + 3 * elbo.std(0) / math.sqrt(300)).all()
    assert (exact - elbo.mean(0)).mean() > 0.01


def test_the_elbo_is_below_the_importance_bound_and_the_bound_repeats() -> None:
    method, x = built(), images(8)
    means = [float(torch.stack([method.log_prob(x, k, gen(i)).nats.mean() for i in range(4)]).mean()) for k in (1, 8, 64)]
    assert means[0] < means[1] < means[2]
    assert torch.equal(method.log_prob(x, 3, gen(7)).nats, method.log_prob(x, 3, gen(7)).nats)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic", "mixture"])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_negative_elbo(likelihood: str, channels: int) -> None:
    """The mean of the loss, with its closed KL, is minus the mean of the bound with one sample, which has densities only."""
    method, x = built(replace(SMALL, likelihood=likelihood, mixtures=2), channels), images(4, channels).repeat(200, 1, 1, 1)
    with torch.no_grad():
        trained = loss(method, x)["loss"]
    scored = method.log_prob(x, 1, gen()).nats.view(200, 4)
    assert float(trained + scored.mean()) == pytest.approx(0, abs=6 * float(scored.mean(1).std()) / math.sqrt(200))


@pytest.mark.parametrize(("likelihood", "per_dim", "word"), [("bernoulli", None, "binarized"), ("logistic", 0.0, "8-bit"), ("mixture", 0.0, "8-bit")])
def test_score_says_what_it_is(likelihood: str, per_dim: float | None, word: str) -> None:
    score = built(replace(SMALL, likelihood=likelihood)).log_prob(images(3), 2, gen())
    assert score.kind == "bound" and score.per_dim == per_dim and word in score.of and score.nats.shape == (3,) and score.how == "2 importance samples"


# ---- codes and samples
def test_codes_bring_the_posterior_means_back() -> None:
    """decode(encode(x)) is the picture that the way down gives with every z at its posterior's mean."""
    method, x = built(), images(4)
    with torch.no_grad():
        out, _ = method.infer(method.observed(x, thresholds(x)), torch.zeros(4, method.decoder.total))
        torch.testing.assert_close(method.decode(method.encode(x)), method.picture(out), atol=1e-4, rtol=1e-4)


def test_z_is_drawn_of_the_priors() -> None:
    """Codes u ~ N(0, I) give each z its prior's mean and deviation: inferring nothing but the prior brings the same features."""
    method = built()
    for blocks in method.decoder.blocks:
        for layer in blocks:  # a posterior that is the prior: what `see` returns is what `expect` says
            layer.see = lambda h, seen, layer=layer: layer.expect(h)[1:]
    u = torch.randn(3, method.decoder.total, generator=gen())
    with torch.no_grad():
        features, drawn = method.decoder.infer(method.encoder(images(3)), u)
        torch.testing.assert_close(features, method.decoder.generate(u), atol=1e-4, rtol=1e-4)
    assert float(kl_of(drawn).abs().max()) == 0


def test_an_image_depends_on_its_own_seed_alone() -> None:
    method, order = built(), Request(seeds=(4, 5, 6), temperature=0.8)
    whole = method.sample(order)
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], method.sample(order.take(slice(i, i + 1))), atol=1e-5, rtol=1e-5)
    assert not torch.equal(whole[0], whole[1])
    torch.testing.assert_close(whole, method.from_latents(method.latents(order.seeds), order))


def test_temperature_multiplies_the_deviations() -> None:
    method, seeds = built(), (1, 2, 3)
    u = method.latents(seeds)
    warm = method.sample(Request(seeds, temperature=0.5))
    torch.testing.assert_close(warm, method.decode(0.5 * u).clamp(-1, 1))
    cold = method.sample(Request(seeds, temperature=0.0))
    torch.testing.assert_close(cold[0], cold[2])
    assert not torch.allclose(warm, method.sample(Request(seeds)))
    torch.testing.assert_close(built(replace(SMALL, temperature=0.5)).sample(Request(seeds)), warm)
    with pytest.raises(UserError, match="temperature -1"):
        method.sample(Request(seeds, temperature=-1.0))


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic", "mixture"])
def test_drawn_pixels_have_the_mean_that_means_show(likelihood: str) -> None:
    """Many draws of p(x | z) at one z: levels of the likelihood, with their mean at `picture`; and a sample's draws depend on its own seed."""
    config = replace(SMALL, likelihood=likelihood, mixtures=2, pixels="draw")
    method, n = built(config, 3), 4000
    with torch.no_grad():
        out = 0.3 * method.decoder(method.decoder.generate(method.latents((1,))))  # small: where channels are often clipped, the mixture's mean is not exact
        drawn = method.drawn(out.expand(n, *out.shape[1:]), torch.rand(n, 4, 8, 8, generator=gen()))
        error = drawn.std(0) / math.sqrt(n)
        assert ((drawn.mean(0) - method.picture(out)[0]).abs() < 5 * error + 2 / 255 + 0.05 * (likelihood == "mixture")).all()
    assert set(drawn.unique().tolist()) <= ({-1.0, 1.0} if likelihood == "bernoulli" else set((torch.arange(256) * (2 / 255) - 1).tolist()))
    whole = method.sample(Request(seeds=(4, 5)))
    assert torch.equal(whole[1:], method.sample(Request(seeds=(5,)))) and not torch.equal(whole, built(replace(config, pixels="mean"), 3).sample(Request(seeds=(4, 5))))


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic", "mixture"])
@pytest.mark.parametrize(("channels", "height", "width", "net"), [
    (1, 8, 8, NET), (3, 32, 32, LadderConfig((4, 8, 6, 8), 2, 2, (1, 0, 1, 1), (1, 0, 0, 1))), (3, 16, 24, NET), (1, 28, 28, LadderConfig((8,) * 4, 2, 2, (0, 1, 1, 0), (0, 1, 1, 1))),
    (3, 12, 12, LadderConfig((8, 8, 8), 2, 2, (1, 1, 1), (1, 1, 1), patch=3))])
def test_shapes(likelihood: str, channels: int, height: int, width: int, net: LadderConfig) -> None:
    method = HVAE(DataInfo(ImageShape(channels, height, width)), HVAEConfig(net, likelihood, mixtures=2))
    x = torch.zeros(2, channels, height, width)
    assert method.encode(x).shape == (2, method.decoder.total) and method.decode(method.encode(x)).shape == x.shape
    assert method.sample(Request(seeds=(1, 2, 3))).shape == (3, channels, height, width)
    sizes = [net.latent * h * w for (h, w), num in zip(levels(method.shape, net), net.down, strict=True) for _ in range(num)]
    assert method.decoder.total == sum(sizes)


# ---- stability
def test_a_fresh_ladder_is_quiet_however_deep() -> None:
    """Priors start as N(0, I), and features do not grow with the depth: residual branches start divided by sqrt(N)."""
    spread = []
    for depth in (2, 32):
        torch.manual_seed(0)
        net = LadderConfig(width=(16, 16), squeeze=2, latent=4, up=(1, 1), down=(depth, 1))
        method = HVAE(DataInfo(ImageShape(1, 8, 8)), replace(SMALL, net=net))
        with torch.no_grad():
            features, drawn = method.decoder.infer(method.encoder(images(16)), torch.randn(16, method.decoder.total, generator=gen()))
        assert all(not d.prior_mean.any() and not d.prior_log_std.any() for d in drawn)
        spread.append(float(features.std()))
    assert 0.4 < spread[1] / spread[0] < 2.5, spread


def test_a_large_state_does_not_multiply() -> None:
    """What the encoder sees, a thousand times larger, leaves every branch as large as it was: without the norm each layer is a thousand times louder than the last."""
    method = built()
    x, eps = torch.rand(4, 1, 8, 8, generator=gen()), torch.zeros(4, method.decoder.total)
    with torch.no_grad():
        branch = method.encoder.blocks[0][0]
        h = torch.randn(4, NET.width[0], 4, 4, generator=gen())
        torch.testing.assert_close(branch(1000 * h), branch(h), rtol=1e-2, atol=1e-3)
        seen = method.encoder(x)
        (_, usual), (_, loud) = (method.decoder.infer([k * e for e in seen], eps) for k in (1, 1000))
    for a, b in zip(usual, loud, strict=True):
        assert b.mean.abs().max() < 5 * a.mean.abs().max()


def test_no_deviation_can_make_the_loss_infinite() -> None:
    """Deviations are bounded: the paper's remedy, skipping updates, would skip all that follow once every gradient is large."""
    method = built()
    z = SMALL.net.latent
    with torch.no_grad():
        for blocks in method.decoder.blocks:
            for layer in blocks:
                layer.prior[-1].bias[z : 2 * z] = -60.0
                layer.posterior[-1].bias[z:] = 60.0
    terms = loss(method, images(8))
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"]) and float(terms["kl"]) > 1e6
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    assert torch.isfinite(method.sample(Request(seeds=(1,)))).all()


def test_maps_shrink_and_grow_by_one_linear_map_of_each_patch() -> None:
    """A product over patches is torch's convolution whose kernel is its stride, and the reverse its transposed convolution; also of patches that are not square."""
    x, y = torch.randn(2, 5, 6, 8, generator=gen()), torch.randn(2, 3, 3, 2, generator=gen())
    shrink, grow, point = Shrink(5, 3, (2, 4)), Grow(3, 5, (2, 4)), Pointwise(5, 4)
    nn.init.normal_(shrink.map.bias)
    nn.init.normal_(grow.map.bias)
    kernel = grow.map.weight.view(5, 2, 4, 3).permute(3, 0, 1, 2)
    torch.testing.assert_close(shrink(x), F.conv2d(x, shrink.map.weight.view(3, 5, 2, 4), shrink.map.bias, stride=(2, 4)))
    torch.testing.assert_close(grow(y), F.conv_transpose2d(y, kernel, stride=(2, 4)) + grow.map.bias.view(1, 5, 2, 4).repeat(1, 1, 3, 2))
    torch.testing.assert_close(point(x), F.conv2d(x, point.weight[:, :, None, None], point.bias))


def test_every_parameter_learns() -> None:
    method = built(replace(SMALL, likelihood="mixture", mixtures=2), channels=3)
    loss(method, images(8, 3))["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in method.parameters())
    assert set(method.updates()[0].nets) == {name for name, _ in method.named_children()} == set(method.averaged)


@pytest.mark.learns
def test_it_learns_digits_and_uses_every_layer() -> None:
    """400 steps on 8 x 8 digits: the bound on test images beats independent pixels with the right means, and there is no layer that says nothing."""
    train, test = open_source("digits", split="train"), open_source("digits", split="test")
    torch.manual_seed(0)
    net = LadderConfig(width=(32, 64), squeeze=2, latent=4, up=(1, 1), down=(2, 1), patch=2)
    method = HVAE(DataInfo(ImageShape(1, 8, 8)), HVAEConfig(net, "bernoulli", warmup=0.2))
    opt = build(hvae("small").last.train.opts["main"], method.parameters())
    x = train.images.float() / 127.5 - 1
    for k in range(400):
        terms = loss(method, x[torch.randperm(len(x), generator=gen(k))[:64]], Moment(k, 400, 64 * k), seed=k)
        opt.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 200.0)
        opt.step()
    seen = test.images.float() / 127.5 - 1
    p = ((x.mean(0) + 1) / 2).clamp(0.001, 0.999)
    b = (seen + 1) / 2
    flat = -float((b * p.log() + (1 - b) * (1 - p).log()).sum((1, 2, 3)).mean())  # expected nats of a product of Bernoullis
    bound = -float(method.log_prob(seen, 16, gen()).nats.mean())
    assert bound < flat - 2, (bound, flat)
    assert all(float(terms[f"{level}/kl"]) > 0.5 for level in ("1x1", "4x4")), terms
    assert all(float(v) > 0.05 for k, v in terms.items() if k.endswith("/layer_kl")), terms


# ---- mistakes
@pytest.mark.parametrize(("change", "word"), [
    ({"beta": -1.0}, "beta"), ({"mixtures": 0}, "mixtures"), ({"net": replace(NET, down=(1, 1))}, "levels"), ({"net": replace(NET, width=(8, 8))}, "levels"), ({"net": replace(NET, latent=0)}, "latent"), ({"net": replace(NET, down=(0, 0, 0))}, "no layer"),
    ({"net": LadderConfig((8,) * 6, 2, 2, (1,) * 6, (1,) * 6)}, "--data.multiple 16")])
def test_mistakes_are_one_line(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        built(replace(SMALL, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_recipes(size: str) -> None:
    made = hvae(size)  # type: ignore[arg-type]
    method = made.last.method(DataInfo(ImageShape(1, 28, 28)), made.last.model)
    assert made.family == "vae" and "2011.10650" in made.paper and made.last.train.ema is not None
    assert {row.opt for row in method.updates()} == set(made.last.train.opts)
    assert made.last.train.opts["main"].clip is not None
