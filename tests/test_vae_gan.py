"""VAE/GAN: the features' likelihood against SciPy, every network's gradient against the losses written by hand, and D's features as an image's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pixelkiln.core.protocols import Codec, Latent, Likelihood
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer, only
from pixelkiln.engine.where import Where
from pixelkiln.methods.vae_gan import VAEGAN, VAEGANConfig, vae_gan
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.nets.mlpgan import MLPNets
from pixelkiln.nets.r3gan import R3Nets
from pixelkiln.nets.resgan import ResNets
from pixelkiln.objectives.rules import Rules

NOW = Moment(0, 1, 0)
ROWS = {"encode": "encoder", "g": "generator", "d": "discriminator"}
NETS = {
    "dcgan": DCGANNets(6, 6, "spectral"),
    "batch": DCGANNets(6, 6, "batch"),
    "mlp": MLPNets(12, 12),
    "res": ResNets(4, 4, condition="none"),
    "r3": R3Nets((8,), 1, 4),
}


def small(kind: str = "dcgan", **changes: Any) -> VAEGAN:
    torch.manual_seed(0)
    config = VAEGANConfig(**{"nets": NETS[kind], "latent": 5, "width": 4, "hidden": 12, "reference": 32, "deviation": 0.5, "gamma": 0.3} | changes)
    return VAEGAN(DataInfo(ImageShape(1, 16, 16), ("cat", "dog")), config).train()


def images(n: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def precise(kind: str = "dcgan") -> VAEGAN:
    """In float64, latents included."""
    method = small(kind).double()
    method.random_latents = lambda n: torch.randn(n, 5, dtype=torch.float64)  # type: ignore[method-assign]
    return method


def gradients(method: VAEGAN, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter that the loss reaches."""
    named = dict(method.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def moved(method: VAEGAN, row: str, x: Tensor, seed: int) -> dict[str, Tensor]:
    """What the loop's row leaves in .grad, with its other nets frozen."""
    (update,) = [u for u in method.updates() if u.name == row]
    method.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    with only(method, update.nets):
        update.loss(Batch(x), NOW)["loss"].backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def by_hand(method: VAEGAN, x: Tensor, seed: int, row: str) -> dict[str, Tensor]:
    """Algorithm 1's line of that row, in plain terms: KL and Gaussian by torch.distributions, D's inner layer by its modules, L_GAN by sigmoids."""
    c, d = method.config, method.discriminator
    torch.manual_seed(seed)
    mu, log_var = method.encoder((x + 1) / 2).chunk(2, dim=1)
    q = torch.distributions.Normal(mu, (log_var / 2).exp())
    z = mu + torch.randn_like(mu) * q.stddev
    drawn, rebuilt = method.generator(torch.randn_like(mu)), method.generator(z)
    conv1, act, conv2 = d.trunk[:3]
    target = conv2(act(conv1(x))).detach()
    unit = (target - target.mean(0)).square().mean().sqrt()
    llike = -torch.distributions.Normal(conv2(act(conv1(rebuilt))), c.deviation * unit).log_prob(target).sum((1, 2, 3)).mean()
    if row == "encode":
        return gradients(method, torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean() + llike)
    real, of_drawn, of_rebuilt = (torch.sigmoid(d(i)[0]) for i in (x, drawn, rebuilt))
    if row == "g":  # non-saturating: -log D in the place of log(1 - D)
        return gradients(method, c.gamma * llike - of_drawn.log().mean() - of_rebuilt.log().mean())
    return gradients(method, -(real.log() + (1 - of_drawn).log() + (1 - of_rebuilt).log()).mean())


@pytest.mark.parametrize("kind", ["dcgan", "batch"])
@pytest.mark.parametrize("row", ROWS)
def test_each_net_gets_the_gradient_of_its_own_losses(row: str, kind: str) -> None:
    method, x = precise(kind), images().double()
    for norm in (m for m in method.discriminator.modules() if hasattr(m, "track_running_stats")):
        norm.track_running_stats = False  # D's spectral norms stand still here, so that both sides see the same D
    found, expected = moved(method, row, x, 3), by_hand(method, x, 3, row)
    net = ROWS[row]
    assert {name.split(".")[0] for name in found} == {net}
    assert found.keys() == {name for name in expected if name.startswith(f"{net}.")}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-11)
    assert all(float(value.abs().max()) > 0 for value in found.values())


def test_what_must_not_reach_a_net_would_change_its_gradient() -> None:
    """The test above can tell: by hand, L_GAN does reach the encoder, and L_llike the discriminator."""
    method, x = precise(), images().double()
    whole = by_hand(method, x, 3, "g")
    assert {name.split(".")[0] for name, g in whole.items() if float(g.abs().max()) > 1e-8} == {"encoder", "generator", "discriminator"}


@pytest.mark.parametrize(("deviation", "unit"), [(0.3, "one"), (1.0, "one"), (2.0, "features")])
@pytest.mark.parametrize("kind", NETS)
def test_llike_is_a_gaussian_of_the_features(kind: str, deviation: float, unit: Any) -> None:
    method = small(kind, deviation=deviation, unit=unit)
    for layer in range(1, method.discriminator.depth + 1):
        method.config = replace(method.config, layer=layer)
        with torch.no_grad():
            a, b = (method.discriminator.inner(images(seed=s), layer).flatten(1).double().numpy() for s in (1, 2))
            found = method.llike(images(seed=1), images(seed=2))
        s = deviation * (a.var(0).mean() ** 0.5 if unit == "features" else 1.0)
        expected = -stats.norm.logpdf(a, b, s).sum(1).mean()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_llike_does_not_mind_the_scale_of_features() -> None:
    """Its gradient at the image, where D's features are a hundred times as large; by a fixed deviation it is ten thousand times as large."""
    found: dict[str, list[Tensor]] = {"features": [], "one": []}
    for unit, slopes in found.items():
        method = small(unit=unit, nets=DCGANNets(6, 6, "none"))
        for _ in range(2):
            y = images(seed=2).requires_grad_()
            slopes.append(torch.autograd.grad(method.llike(images(), y), y)[0])
            with torch.no_grad():
                method.discriminator.trunk[2].weight.mul_(100)
    torch.testing.assert_close(found["features"][1], found["features"][0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["one"][1], 1e4 * found["one"][0], rtol=1e-3, atol=1e-6)


def test_the_inner_layer_is_the_convolution_before_its_norm() -> None:
    method = small("batch")
    d = method.discriminator
    assert (d.depth, small("mlp").discriminator.depth) == (2, 2)
    convs = [m for m in d.trunk if isinstance(m, nn.Conv2d)]
    seen: list[Tensor] = []
    convs[1].register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    d.eval()(images())
    torch.testing.assert_close(d.inner(images(), 2), seen[0])
    torch.testing.assert_close(d.inner(images(), 1), convs[0](images()))


@pytest.mark.parametrize("kind", ["batch", "mlp"])
def test_features_are_an_images_own(kind: str) -> None:
    """By batch statistics (or dropout) neighbors would change them, and a batch of paler images would have the same features."""
    torch.manual_seed(0)
    config = VAEGANConfig(nets=NETS[kind], latent=5, width=4, hidden=12, unit="one", layer=3 if kind == "batch" else 2)
    method = VAEGAN(DataInfo(ImageShape(1, 32, 32)), config).train()
    with torch.no_grad():
        for p in method.discriminator.parameters():
            p.mul_(20.0)  # features far above BatchNorm's epsilon
    d, x = method.discriminator, torch.nn.functional.interpolate(images(8), scale_factor=2)
    for _ in range(100 * (kind == "batch")):
        d(x)  # its running statistics come to those of these images
    last = d.depth
    before = {name: b.clone() for name, b in d.named_buffers()}
    whole = d.inner(x, last)
    torch.testing.assert_close(torch.cat([d.inner(x[:3], last), d.inner(x[3:], last)]), whole, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(b, before[name]) for name, b in d.named_buffers()) and d.training and all(m.training for m in d.modules())
    if kind == "batch":
        own = float(method.llike(x, 0.2 * x).detach() - method.llike(x, x).detach())
        path = d.trunk[: [i for i, m in enumerate(d.trunk) if isinstance(m, nn.Conv2d)][-1] + 1]
        batchwise = float((path(x) - path(0.2 * x)).square().flatten(1).sum(1).mean().detach() / 2)
        assert own > 100 * batchwise  # of which batch statistics see next to nothing


def test_kinds_of_images_pass_the_discriminator_apart() -> None:
    method = small("batch")
    sizes: list[int] = []
    method.discriminator.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    terms = method.d_loss(Batch(images()), NOW)
    assert sizes == [6, 6, 6]
    assert {"loss", "d_real", "d_rebuilt", "d_fake", "told"} <= set(terms)


@pytest.mark.parametrize(("objective", "d", "g"), [
    ("non-saturating", lambda r, f, p: -(r.sigmoid().log() + (1 - f.sigmoid()).log() + (1 - p.sigmoid()).log()), lambda f: -f.sigmoid().log()),
    ("minimax", lambda r, f, p: -(r.sigmoid().log() + (1 - f.sigmoid()).log() + (1 - p.sigmoid()).log()), lambda f: (1 - f.sigmoid()).log()),
    ("least-squares", lambda r, f, p: ((r - 1) ** 2 + f**2 + p**2) / 2, lambda f: (f - 1) ** 2 / 2),
    ("hinge", lambda r, f, p: (1 - r).clamp_min(0) + (1 + f).clamp_min(0) + (1 + p).clamp_min(0), lambda f: -f),
])  # fmt: skip
def test_every_kind_of_image_counts_once(objective: Any, d: Any, g: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 10 and its decoder's part, from logits that are given."""
    method, logits = small(rules=Rules(objective), gamma=0.0), torch.linspace(-2, 3, 18).view(3, 6)
    calls: list[int] = []

    def judged(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(x))
        return logits[(len(calls) - 1) % 3], x

    monkeypatch.setattr(method.discriminator, "forward", judged)
    assert float(method.d_loss(Batch(images()), NOW)["loss"]) == pytest.approx(float(d(*logits).mean()), rel=1e-5)
    calls.clear()
    assert float(method.g_loss(Batch(images()), NOW)["loss"].detach()) == pytest.approx(float((g(logits[0]) + g(logits[1])).mean()), rel=1e-5)


@pytest.mark.parametrize("rules", [Rules(r1=1.0), Rules("hinge", gradient=10.0), Rules(r1=1.0, r2=1.0, r_every=4), Rules(augment="ada"), Rules(smoothing=0.1, noise=0.1)])
def test_the_rules_of_the_house_hold(rules: Rules) -> None:
    method, plain = small(rules=rules), small()
    row = method.updates()[1] if rules.r_every > 1 else method.updates()[0]
    assert [u.name for u in method.updates()] == (["d", "r", "encode", "g"] if rules.r_every > 1 else ["d", "encode", "g"])
    torch.manual_seed(0)
    terms = row.loss(Batch(images()), NOW)
    torch.manual_seed(0)
    if rules.augment == "ada":  # its probability begins at 0
        method.after_step(Moment(1, 10, 64), {f"d/{name}": value for name, value in terms.items()})
        assert {"signs", "p"} <= set(terms)
    else:
        assert float(terms["loss"].detach()) != pytest.approx(float(plain.d_loss(Batch(images()), NOW)["loss"].detach()), rel=1e-4)


def test_codes_and_latents() -> None:
    method = small().eval()
    assert isinstance(method, Codec) and isinstance(method, Latent) and not isinstance(method, Likelihood)
    x = images(4)
    method.requires_grad_(False)
    z = method.encode(x)
    mu, log_var = method.posterior(x)
    assert torch.equal(z, mu) and log_var.shape == z.shape == (4, 5)
    y = method.decode(z)
    assert y.shape == x.shape and float(y.abs().max()) <= 1
    torch.testing.assert_close(method.decode(z[:1]), y[:1], rtol=1e-4, atol=1e-5)  # an image's own
    drawn = method.sample(Request((7, 8)))
    torch.testing.assert_close(method.decode(method.latents((7, 8))), drawn)
    assert not method.labeled  # the data's classes are not used


@pytest.mark.parametrize(("changes", "says"), [
    ({"deviation": 0.0}, "deviation must be above 0"),
    ({"gamma": -1.0}, "gamma not negative"),
    ({"layer": 0}, "layers 1 to 2"),
    ({"layer": 3}, "layers 1 to 2"),
    ({"rules": Rules("wasserstein")}, "take non-saturating"),
    ({"rules": Rules("relativistic")}, "take non-saturating"),
    ({"nets": DCGANNets(6, 6), "rules": Rules(r1=1.0)}, "BatchNorm"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as e:
        small(**changes)
    assert "\n" not in str(e.value)


def test_recipe() -> None:
    for size in ("tiny", "small", "base"):
        stage = vae_gan(size).last
        side = stage.data.resolution or 28
        method = stage.method(DataInfo(ImageShape(1, side, side)), replace(stage.model, nets=DCGANNets(8, 8, "spectral")))
        assert {row.opt for row in method.updates()} == set(stage.train.opts)


@pytest.mark.learns
def test_digits_are_rebuilt_and_drawn() -> None:
    """After some seconds reconstructions are those of their originals (nearest of 300 test digits), and samples are nearer to digits than a Gaussian's of their
    mean and covariance are."""
    stage, where = vae_gan("small").last, Where("cpu", "fp32", False, torch.get_num_threads())
    sets = [open_source("digits", DataConfig(), split) for split in ("train", "test")]
    method = make(replace(stage, model=replace(stage.model, nets=DCGANNets(16, 16, "spectral"), layer=1)), sets[0].info, {}, 0)
    where.place(method)
    trainer = Trainer(method, replace(stage.train, batch=32), Feed(sets[0], 32, stage.data, 0, where.device, True).batch, 0, 400, where)
    for k in range(400):
        trainer.step(k)
    known, x = (s.images.float().flatten(1) / 127.5 - 1 for s in sets)
    x = x[:300]
    assert isinstance(method, VAEGAN)
    with torch.no_grad(), trainer.sampling():
        y = method.eval().decode(method.encode(x.view(300, 1, 8, 8))).flatten(1)
        drawn = method.sample(Request(tuple(range(300)))).flatten(1)
    error = float((y - x).square().mean() / (x - known.mean(0)).square().mean())
    same = float((torch.cdist(y, x).argmin(1) == torch.arange(300)).float().mean())
    scale, axes = torch.linalg.eigh(known.T.cov())
    gaussian = (known.mean(0) + torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) * scale.clamp_min(0).sqrt() @ axes.T).clamp(-1, 1)
    near, of_gaussian = (torch.cdist(each, known).min(1) for each in (drawn, gaussian))
    modes = torch.bincount(sets[0].labels[near.indices], minlength=10)
    assert error < 0.5 and same > 0.3  # 1 and 1/300 where a code says nothing
    assert float(near.values.median()) < 0.95 * float(of_gaussian.values.median())
    assert int((modes > 0).sum()) == 10, modes.tolist()
