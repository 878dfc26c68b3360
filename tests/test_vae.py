"""The VAE against closed forms: likelihoods, the KL, the bound, and what each term of the loss means."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pixelkiln.core.protocols import Update
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.methods.vae import VAE, VAEConfig, vae, vae_mlp
from pixelkiln.nets.convae import pyramid
from pixelkiln.nets.mlp import CouplingFlow
from pixelkiln.objectives import likelihoods as lik
from pixelkiln.objectives import variational as vi
from pixelkiln.objectives.amortized import Modeled, thresholds

SMALL = VAEConfig(latent=3, net="mlp", width=12, depth=1, likelihood="bernoulli", flow_width=8, flow_layers=3)
START = Moment(0, 100, 0)
LEVELS = torch.arange(256.0)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def images(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    """8-bit images in [-1, 1], every level possible."""
    return torch.randint(0, 256, (n, channels, side, side), generator=gen(seed)) / 127.5 - 1


def built(config: VAEConfig, channels: int = 1, side: int = 8, seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(DataInfo(ImageShape(channels, side, side)), config).eval()


def loss(method: VAE, x: Tensor, moment: Moment = START, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    (row,) = method.updates()
    assert isinstance(row, Update)
    return dict(row.loss(Batch(x), moment))


# ---- likelihoods
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, -0.3, 0.9922, 1.0, 2.0])
def test_logistic_sums_to_one(mean: float, log_scale: float) -> None:
    """Wherever the mean and however narrow: the trap is level 254 counted as the edge, which gives 1.06 to 1.62."""
    x = (LEVELS / 127.5 - 1).view(256, 1, 1, 1).double()
    log_p = lik.logistic_log_prob(x, double(mean), double(log_scale))
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("levels", [2, 32, 256])
def test_logistic_matches_scipy(levels: int) -> None:
    v = np.arange(levels)
    x = 2 * v / (levels - 1) - 1
    cdf = stats.logistic(loc=0.2, scale=0.1).cdf
    upper = np.where(v == levels - 1, 1, cdf(x + 1 / (levels - 1)))
    lower = np.where(v == 0, 0, cdf(x - 1 / (levels - 1)))
    ours = lik.logistic_log_prob(torch.from_numpy(x).view(-1, 1, 1, 1), double(0.2), double(math.log(0.1)), levels)
    np.testing.assert_allclose(ours, np.log(upper - lower), rtol=1e-8)


def test_logistic_is_stable_in_the_tails() -> None:
    """Far from the mean both sigmoids round to the same number in float32; the value and its gradient stay right."""
    mean = torch.tensor(-1.0, requires_grad=True)
    x = (LEVELS / 127.5 - 1).view(256, 1, 1, 1)
    narrow = lik.logistic_log_prob(x, mean, torch.tensor(-7.0))
    wide = lik.logistic_log_prob(x.double(), mean.double(), double(-7.0))
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(narrow.sum(), mean)
    assert torch.isfinite(slope) and slope > 1e4  # every level but the first pulls the mean up


def test_levels_survive_the_float_round_trip() -> None:
    assert torch.equal(lik.discrete_levels(LEVELS / 127.5 - 1), LEVELS)


def test_gaussian_has_its_normalizer() -> None:
    x, mean, log_scale = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.tensor([-1.0, 0.0, 0.5]).view(3, 1, 1)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(lik.gaussian_log_prob(x, mean, log_scale), expected)


def test_bernoulli_matches_torch_and_stays_finite() -> None:
    b, logits = torch.randint(0, 2, (4, 1, 5, 5)).float(), 3 * torch.randn(4, 1, 5, 5)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(b).sum((1, 2, 3))
    torch.testing.assert_close(lik.bernoulli_log_prob(b, logits), expected)
    assert torch.isfinite(lik.bernoulli_log_prob(b, 1000 * logits)).all()


def test_binarization_has_the_right_mean_and_leaves_binary_images() -> None:
    """Cross-entropy on grey values is no likelihood, so the Bernoulli VAE never sees one."""
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2).expand(40_000, -1, -1, -1)
    b = lik.binarize(x, torch.rand(x.shape, generator=gen()))
    assert set(b.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(b.mean(0), (x[0] + 1) / 2, atol=0.01, rtol=0)
    assert torch.equal(b[:, 0, 0, 0].unique(), torch.zeros(1)) and torch.equal(b[:, 0, 1, 1].unique(), torch.ones(1))
    seen = built(SMALL).observed(images(10), torch.rand(10, 1, 8, 8))
    assert set(seen.unique().tolist()) == {-1.0, 1.0}


def test_dequantized_density_bounds_the_discrete_probability() -> None:
    """E_u log p(x + u) + log(2/255) <= log of the integral over the bin, nearly equal where the density is smooth; noise fills the bin."""
    mean, scale = 0.1, 0.05
    x = torch.tensor(30 / 127.5 - 1 + 1.0).view(1, 1, 1, 1)
    u = torch.linspace(0, 1, 2001, dtype=torch.float64).view(-1, 1, 1, 1)
    noisy = lik.dequantize(x.double().expand(2001, -1, -1, -1), u)
    assert float(noisy.max() - noisy.min()) == pytest.approx(2 / 255)
    bound = float(lik.gaussian_log_prob(noisy, torch.tensor(mean), torch.tensor(math.log(scale))).mean()) + math.log(2 / 255)
    cdf = stats.norm(mean, scale).cdf
    exact = math.log(cdf(float(x) + 1 / 255) - cdf(float(x) - 1 / 255))
    assert exact - 0.05 < bound <= exact


def test_bits_per_dim_of_uniform_noise_is_eight() -> None:
    """8 bits for a uniform pmf over 256 levels, and for a uniform density over their bins (2/255 wide, not 1/256 and not 1)."""
    dims = 48
    discrete = lik.bits_per_dim(torch.tensor(-dims * math.log(256)), dims)
    density = lik.bits_per_dim(torch.tensor(-dims * math.log(256 * 2 / 255)), dims, math.log(2 / 255))
    assert float(discrete) == pytest.approx(8) and float(density) == pytest.approx(8)


def test_scale_floor_keeps_its_gradient() -> None:
    raw = torch.tensor([-30.0, -8.0, 0.0], requires_grad=True)
    low = lik.soft_floor(raw)
    assert (low >= lik.MIN_LOG_SCALE).all() and float(low[2].detach()) == pytest.approx(0, abs=1e-2)
    (slope,) = torch.autograd.grad(low.sum(), raw)
    assert (slope > 0).all()


# ---- the variational terms
def test_kl_matches_torch() -> None:
    mean, log_var = torch.randn(6, 4), torch.randn(6, 4)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    torch.testing.assert_close(vi.kl_per_unit(mean, log_var), torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)))
    log_q = q.log_prob(torch.ones(6, 4)).sum(1)
    torch.testing.assert_close(vi.log_normal(torch.ones(6, 4), mean, log_var), log_q)


def test_reparameterized_gradient() -> None:
    """d/dmu E[z^2] = 2 mu and d/dlog_var E[z^2] = sigma^2: the path through the sample carries both."""
    mean, log_var = torch.tensor(0.7, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    z = vi.reparameterize(mean, log_var, torch.randn(400_000, generator=gen()))
    d_mean, d_log_var = torch.autograd.grad((z**2).mean(), [mean, log_var])
    assert float(d_mean) == pytest.approx(1.4, abs=0.01) and float(d_log_var) == pytest.approx(math.exp(-0.4), abs=0.01)


def test_free_bits_are_per_unit_after_the_batch_mean() -> None:
    """Not per sample (which would give 1.25 here) and not on the total (1.1)."""
    kl = torch.tensor([[0.0, 0.1], [2.0, 0.1]])
    assert float(vi.free_bits(kl, 0.5)) == pytest.approx(1.0 + 0.5)


def test_importance_bound_rewards_the_best_sample() -> None:
    """Losses 100, 101, 105, 110 give a loss of 101.07: below their mean (a sign mistake gives 109.96, above it)."""
    bound = vi.importance_bound(-torch.tensor([100.0, 101.0, 105.0, 110.0]).view(4, 1))
    assert float(-bound) == pytest.approx(101.07, abs=0.01)


def test_linear_gaussian_bound_is_below_and_converges() -> None:
    """x = w z + noise has a known log p(x). With a wrong q every bound lies below it, rises with K, and converges to it."""
    w, s, x = torch.tensor([1.0, -0.5, 0.8]), 0.6, torch.tensor([0.9, 0.2, 1.1])
    exact = float(torch.distributions.MultivariateNormal(torch.zeros(3), torch.outer(w, w) + s**2 * torch.eye(3)).log_prob(x))
    mean, log_var = torch.tensor([0.3]), torch.tensor([-1.0])
    z = vi.reparameterize(mean, log_var, torch.randn(2_000 * 512, 1, generator=gen()))
    log_lik = torch.distributions.Normal(z * w, s).log_prob(x).sum(1)
    log_w = (log_lik + vi.log_normal(z, torch.zeros(1), torch.zeros(1)) - vi.log_normal(z, mean, log_var)).view(512, 2_000)
    bounds = [float(vi.importance_bound(log_w[:k]).mean()) for k in (1, 4, 32, 512)]
    closed = float(log_lik.mean()) - float(vi.kl_per_unit(mean, log_var).sum())
    assert bounds[0] == pytest.approx(closed, abs=0.02)  # K = 1 is the ELBO with its KL in closed form
    assert bounds == sorted(bounds) and bounds[-1] < exact + 0.01
    assert bounds[-1] == pytest.approx(exact, abs=0.02) and exact - bounds[0] > 0.2


def test_linear_gaussian_bound_is_tight_at_the_true_posterior() -> None:
    w, s, x = torch.tensor([1.0, -0.5, 0.8]), 0.6, torch.tensor([0.9, 0.2, 1.1])
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), torch.outer(w, w) + s**2 * torch.eye(3)).log_prob(x)
    var = 1 / (1 + (w @ w) / s**2)
    mean, log_var = (var * (w @ x) / s**2).view(1), var.log().view(1)
    z = vi.reparameterize(mean, log_var, torch.randn(50, 1))
    log_lik = torch.distributions.Normal(z * w, s).log_prob(x).sum(1)
    weights = log_lik + vi.log_normal(z, torch.zeros(1), torch.zeros(1)) - vi.log_normal(z, mean, log_var)
    torch.testing.assert_close(weights, exact.expand(50), atol=1e-5, rtol=1e-5)


# ---- the flow prior
def test_flow_inverts_and_its_determinant_is_right() -> None:
    torch.manual_seed(0)
    flow = CouplingFlow(5, 8, 4).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.3)
    u = torch.randn(3, 5, dtype=torch.float64)
    z = flow(u)
    back, log_det = flow.inverse(z)
    torch.testing.assert_close(back, u, atol=1e-5, rtol=1e-5)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse(v)[0], z[i])
        assert float(log_det[i].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-4)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_prior_integrates_to_one(prior: str) -> None:
    method = built(replace(SMALL, latent=2, prior=prior))
    for p in method.prior.parameters() if method.prior is not None else ():
        torch.nn.init.normal_(p, std=0.3)
    line = torch.linspace(-12, 12, 241)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        mass = method.log_prior(grid).exp().sum() * 0.1**2
    assert float(mass) == pytest.approx(1, abs=0.01)


# ---- the method
@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_bound_converges_to_the_integral(prior: str) -> None:
    """With two latent units p(x) is a sum over a grid: the method's bound rises with K to log p(x), and never passes it."""
    method = built(replace(SMALL, latent=2, prior=prior), side=4)
    for p in method.prior.parameters() if method.prior is not None else ():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randint(0, 2, (6, 1, 4, 4), generator=gen()).float() * 2 - 1  # binary: the binarization changes nothing
    line = torch.linspace(-9, 9, 181)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        joint = torch.stack([method.log_likelihood(row.expand(len(grid), 1, 4, 4), grid) for row in x]) + method.log_prior(grid)
    exact = torch.logsumexp(joint, 1) + 2 * math.log(0.1)
    torch.testing.assert_close(method.log_prob(x, 4000, gen()).nats, exact, atol=0.05, rtol=0)
    elbo = method.log_prob(x.repeat(300, 1, 1, 1), 1, gen()).nats.view(300, 6)  # 300 draws of the bound with one sample
    assert (elbo.mean(0) < exact + 3 * elbo.std(0) / math.sqrt(300)).all() and (elbo.mean(0) < exact).sum() >= 5


def test_bound_rises_with_samples_and_repeats_with_the_generator() -> None:
    method, x = built(SMALL), images(32)
    means = [float(torch.stack([method.log_prob(x, k, gen(i)).nats.mean() for i in range(5)]).mean()) for k in (1, 8, 64)]
    assert means[0] < means[1] < means[2]
    assert torch.equal(method.log_prob(x, 3, gen(7)).nats, method.log_prob(x, 3, gen(7)).nats)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "gaussian", "logistic"])
@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_loss_is_the_negative_elbo(likelihood: str, prior: str) -> None:
    """The mean of the logged loss is minus the mean of the bound with one sample, which is written in other terms."""
    method, x = built(replace(SMALL, likelihood=likelihood, prior=prior)), images(8).repeat(400, 1, 1, 1)
    trained = loss(method, x)["loss"].detach()
    scored = method.log_prob(x, 1, gen()).nats.view(400, 8)
    error = float(scored.mean(1).std()) / math.sqrt(400)
    assert float(trained + scored.mean()) == pytest.approx(0, abs=5 * error)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "gaussian", "logistic"])
def test_beta_means_the_same_at_any_resolution(likelihood: str) -> None:
    """Sums over dimensions, means over the batch: rec grows with the pixels, and the batch does not matter."""
    config = replace(SMALL, likelihood=likelihood, beta=2.5)
    for side in (8, 16):
        terms = loss(built(config, side=side), images(64, side=side))
        torch.testing.assert_close(terms["loss"].detach(), terms["rec"] + 2.5 * terms["kl"])
    constant = torch.zeros(4, 1, 8, 8)
    per_image = [lik.gaussian_log_prob(constant[:n], torch.ones(()), torch.zeros(())).mean() for n in (1, 4)]
    assert per_image[0] == per_image[1]
    one = lik.bernoulli_log_prob(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    four = lik.bernoulli_log_prob(torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    assert float(four) == pytest.approx(4 * float(one)) and float(one) == pytest.approx(-64 * math.log(2), rel=1e-5)


def test_warmup_and_free_bits_change_the_loss_and_not_the_report() -> None:
    x, plain = images(16), loss(built(SMALL), images(16))
    half = loss(built(replace(SMALL, warmup=0.2)), x, Moment(10, 100, 0))
    torch.testing.assert_close(half["loss"].detach(), plain["rec"] + 0.5 * plain["kl"])
    assert vi.warmed_up(0.0, 0.2) == 0 and vi.warmed_up(0.5, 0.2) == 1 and vi.warmed_up(0.0, 0.0) == 1
    free = loss(built(replace(SMALL, free_bits=3.0)), x)
    assert free["kl"] == plain["kl"] and float(free["loss"].detach()) == pytest.approx(float(plain["rec"]) + 9.0, rel=1e-5)


def test_continuous_bernoulli_is_a_density_of_dequantized_levels() -> None:
    """Every level's own interval of [0, 1], and the decoded mean is that of the density over all of them, in [-1, 1]."""
    levels = torch.arange(256.0).view(256, 1, 1, 1)
    low, high = (lik.dequantize_unit(levels / 127.5 - 1, torch.full_like(levels, u)) for u in (0.0, 1.0))
    torch.testing.assert_close(low.flatten(), torch.arange(256) / 256)
    torch.testing.assert_close(high[:-1], low[1:])
    method = built(replace(SMALL, likelihood="continuous-bernoulli"))
    z = torch.randn(1, 3, generator=gen())
    with torch.no_grad():
        logits, scale = method.decoder(z)
        y = (torch.arange(25_600.0) + 0.5).view(-1, 1, 1, 1) / 25_600
        density = torch.distributions.ContinuousBernoulli(logits=logits).log_prob(y).exp()  # (N, 1, H, W)
        want = (density * (2 * (256 * y).floor() / 255 - 1)).mean(0)
        torch.testing.assert_close(method.decode(z)[0], want, atol=2e-3, rtol=0)
    assert scale is None


def test_collapse_shows_in_the_active_units() -> None:
    mean = torch.zeros(100, 4)
    mean[:, 1] = torch.randn(100, generator=gen())
    mean[:, 2] = 5.0  # the same for every image: not active
    mean[:, 3] = 0.05 * torch.randn(100, generator=gen())
    assert int(vi.active_units(mean)) == 1


@pytest.mark.parametrize(
    ("likelihood", "per_dim", "word"),
    [("bernoulli", None, "binarized"), ("continuous-bernoulli", -math.log(256), "[0, 1]"), ("gaussian", math.log(2 / 255), "dequantized"), ("logistic", 0.0, "8-bit")],
)
def test_score_says_what_it_is(likelihood: str, per_dim: float | None, word: str) -> None:
    score = built(replace(SMALL, likelihood=likelihood)).log_prob(images(3), 2, gen())
    assert score.kind == "bound" and score.per_dim == per_dim and word in score.of and score.nats.shape == (3,)


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic"])
def test_scale_is_learned_per_channel(likelihood: str) -> None:
    """On constant channels of different noise the learned scales part, and follow the noise."""
    method = built(replace(SMALL, likelihood=likelihood), channels=2)
    noise = torch.tensor([0.02, 0.3]).view(2, 1, 1)
    opt = torch.optim.Adam(method.parameters(), lr=3e-2)
    for i in range(60):
        x = (torch.randn(32, 2, 8, 8, generator=gen(i)) * noise).clamp(-1, 1)
        opt.zero_grad()
        loss(method, x, seed=i)["loss"].backward()
        opt.step()
    scale = method.decoder(torch.zeros(1, 3))[1]
    assert scale is not None
    std = scale.detach().exp().flatten() * (1.0 if likelihood == "gaussian" else math.pi / math.sqrt(3))
    torch.testing.assert_close(std, noise.flatten(), rtol=0.25, atol=0)


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 16, 24)])
def test_shapes_round_trip(net: str, channels: int, height: int, width: int) -> None:
    method = VAE(DataInfo(ImageShape(channels, height, width)), replace(SMALL, net=net, width=4, depth=1, prior="flow"))
    x = torch.zeros(2, channels, height, width)
    assert method.encode(x).shape == (2, 3) and method.decode(method.encode(x)).shape == x.shape
    sample = method.sample(Request(seeds=(1, 2, 3)))
    assert sample.shape == (3, channels, height, width) and sample.abs().max() <= 1


def test_every_parameter_learns() -> None:
    method = built(replace(SMALL, net="conv", width=4, depth=1, likelihood="logistic", prior="flow"))
    loss(method, images(8))["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert set(method.updates()[0].nets) == {name for name, _ in method.named_children()} == set(method.averaged)


def test_samples_are_decoded_latents_and_ignore_the_batch() -> None:
    method = built(replace(SMALL, prior="flow"))
    order = Request(seeds=(4, 5, 6))
    whole = method.sample(order)
    torch.testing.assert_close(whole[2:], method.sample(Request(seeds=(6,))))
    torch.testing.assert_close(whole, method.from_latents(method.latents(order.seeds), order))
    with pytest.raises(UserError, match="steps"):
        method.sample(Request(seeds=(1,), steps=5))


def test_encode_is_the_code_of_the_posterior_mean() -> None:
    method, x = built(replace(SMALL, prior="flow", latent=5)), images(4)
    assert method.prior is not None
    for p in method.prior.parameters():
        torch.nn.init.normal_(p, std=0.2)
    seen = method.observed(x, thresholds(x))
    torch.testing.assert_close(method.prior(method.encode(x)), method.posterior(seen)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("likelihood", get_args(Modeled))
def test_an_encoder_is_given_what_it_was_trained_on_and_an_image_has_one_code(likelihood: Modeled) -> None:
    """The trap: grey images for an encoder that has seen black and white ones."""
    method, x, given = built(replace(SMALL, likelihood=likelihood)), images(4), list[Tensor]()
    method.encoder.register_forward_pre_hook(lambda net, args: given.append(args[0]))
    codes = method.encode(x)
    if likelihood == "bernoulli":
        assert set(given[0].flatten().tolist()) == {0.0, 1.0}
        grey = torch.full((1, 1, 64, 64), -0.5)
        assert float(lik.binarize(grey, thresholds(grey)).mean()) == pytest.approx(0.25, abs=0.03)
    elif likelihood == "logistic":
        torch.testing.assert_close(given[0], (x + 1) / 2)
    else:
        assert 0 < float((2 * given[0] - 1 - x).abs().max()) <= 2 / 255, "within a level"
    torch.testing.assert_close(method.encode(x[2:3]), codes[2:3])
    torch.manual_seed(1)
    assert torch.equal(method.encode(x), codes)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"latent": 0}, "latent"),
        ({"latent": 1, "prior": "flow"}, "latent"),
        ({"beta": -1.0}, "beta"),
        ({"free_bits": 1.0, "prior": "flow"}, "prior"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        built(replace(SMALL, **change))
    assert "\n" not in str(caught.value)


def test_odd_sides_are_refused_by_the_conv_net() -> None:
    assert pyramid(ImageShape(1, 28, 28))[-1] == (7, 7) and pyramid(ImageShape(3, 64, 64))[-1] == (4, 4)
    with pytest.raises(UserError, match="33x33"):
        pyramid(ImageShape(1, 33, 33))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("recipe", [vae, vae_mlp])
def test_recipes(recipe, size: str) -> None:
    made = recipe(size)
    method = made.last.method(DataInfo(ImageShape(1, 28, 28)), made.last.model)
    assert made.family == "vae" and "1312.6114" in made.paper
    assert {row.opt for row in method.updates()} == set(made.last.train.opts)
    if (recipe, size) == (vae_mlp, "small"):  # the document's 784-400-20
        assert sum(p.numel() for p in method.parameters()) == 784 * 400 + 400 + 2 * (400 * 20 + 20) + 20 * 400 + 400 + 400 * 784 + 784
