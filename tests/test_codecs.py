"""Codecs beside one another: tokens and back, schedules, the discriminator's entry, Gumbel limits, standardized latents."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from pixelkiln.core.catalog import builtin, override
from pixelkiln.core.protocols import Codec, Method, Tokenizer
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.where import Where
from pixelkiln.methods.autoencoder_kl import AutoencoderKL
from pixelkiln.methods.dvae import DVAE
from pixelkiln.methods.vqgan import VQGAN
from pixelkiln.nets.gumbel import GumbelCodes, relaxed
from pixelkiln.nets.patch import PatchDiscriminator
from pixelkiln.nets.standard import Standard
from pixelkiln.objectives.adversarial import adaptive_weight, critic_g, hinge_d
from pixelkiln.objectives.reconstruction import feature_distance, reconstruction

INFO = DataInfo(ImageShape(1, 8, 8), ("a", "b"))
TOKENIZERS = ["vqvae", "vqvae2", "vqgan", "dvae"]
WHERE = Where("cpu", "fp32", False, torch.get_num_threads())


def made(name: str, info: DataInfo = INFO, parents: dict[str, Method] | None = None, **changes: str) -> Method:
    return make(override(builtin()[name]("tiny"), {f"model.{k}": v for k, v in changes.items()}).last, info, parents or {}, 0)


def trained(name: str, steps: int, **changes: str) -> tuple[Method, list[dict[str, float]], Tensor]:
    """A codec of real digits after some steps, what was logged at each, and the images."""
    stage = override(builtin()[name]("tiny"), {f"model.{k}": v for k, v in changes.items()}).last
    data = open_source("digits", stage.data, "train")
    method = make(stage, data.info, {}, 0)
    t = Trainer(method, stage.train, Feed(data, stage.train.batch, stage.data, 0).batch, 0, steps, WHERE)
    logged = []
    for k in range(steps):
        t.step(k)
        logged.append(t.look())
    return method.eval(), logged, data.images.float() / 127.5 - 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 8)])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_images_go_to_tokens_and_back(name: str, shape: tuple[int, int, int]) -> None:
    method = made(name, DataInfo(ImageShape(*shape))).eval()
    assert isinstance(method, Tokenizer)
    x = torch.rand(3, *shape) * 2 - 1
    with torch.no_grad():
        tokens = method.tokens(x)
        assert tokens.shape == (3, sum(h * w for h, w in method.grids))
        assert int(tokens.min()) >= 0 and int(tokens.max()) < method.vocabulary
        y = method.from_tokens(tokens)
        assert y.shape == x.shape
        torch.testing.assert_close(method.decode(method.encode(x)), y, atol=1e-5, rtol=1e-5)
        log_p = method.log_likelihood(x, tokens)
        assert (log_p is None) == (name == "vqgan")
        assert log_p is None or log_p.shape == (3,)


@pytest.mark.parametrize("name", [*TOKENIZERS, "autoencoder-kl"])
def test_sides_that_cannot_be_halved_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--data.multiple"):
        made(name, DataInfo(ImageShape(1, 9, 8)))


@pytest.mark.parametrize("name", [*TOKENIZERS, "autoencoder-kl"])
def test_training_makes_reconstructions_better(name: str) -> None:
    method, _, x = trained(name, 150)
    assert isinstance(method, Codec)
    with torch.no_grad():
        left = (method.decode(method.encode(x)) - x).square().mean() / x.var()
    mean = (x - x.mean(0)).square().mean() / x.var()
    assert float(left) < 0.75 * float(mean), "better than the mean image by a quarter"


def test_two_codebooks_are_both_of_use() -> None:
    """Without the top codes, or without the bottom ones, less is left of the image."""
    method, _, x = trained("vqvae2", 150)
    assert isinstance(method, Tokenizer)
    with torch.no_grad():
        tokens = method.tokens(x)
        errors = []
        for columns in (slice(0, 0), slice(0, 4), slice(4, None)):
            other = tokens.clone()
            other[:, columns] = tokens.roll(1, 0)[:, columns]
            errors.append(float((method.from_tokens(other) - x).square().mean()))
    assert errors[0] < 0.9 * min(errors[1:]), errors


# reconstruction


def test_distances_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, y = (np.round(rng.uniform(-1, 1, (4, 1, 5, 5)) * 127.5) / 127.5 for _ in range(2))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert float(reconstruction("l1", a, b)) == pytest.approx(np.abs(x - y).mean())
    assert float(reconstruction("l2", a, b)) == pytest.approx(((x - y) ** 2).mean() / x.var())
    f, g = [rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 5, 2, 2))], [rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 5, 2, 2))]
    unit = lambda m: m / np.linalg.norm(m, axis=1, keepdims=True)
    wanted = np.mean([((unit(p) - unit(q)) ** 2).sum(1).mean() for p, q in zip(f, g, strict=True)])
    found = feature_distance([torch.from_numpy(p) for p in f], [torch.from_numpy(q) for q in g])
    assert float(found) == pytest.approx(wanted, rel=1e-5)


# the discriminator


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert float(0.5 * hinge_d(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1) / 2))
    assert float(critic_g(fake)) == pytest.approx(1.5)


def test_the_adaptive_weight_makes_both_gradients_as_long() -> None:
    """Of y = W x with rec = |y - 1|^2 and adversarial = -1000 sum y, whose gradients are known."""
    W, x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    y = W @ x
    scale = adaptive_weight((y - 1).square().sum(), -1000 * y.sum(), W)
    of_rec = np.linalg.norm(np.outer(2 * (y.detach().numpy() - 1), x.numpy()))
    of_adversarial = np.linalg.norm(np.outer(np.full(3, 1000.0), x.numpy()))
    assert float(scale) == pytest.approx(of_rec / (of_adversarial + 1e-4), rel=1e-5)
    assert not scale.requires_grad
    y = W @ x
    assert float(adaptive_weight((y - 1).square().sum(), 0 * y.sum(), W)) == pytest.approx(min(of_rec / 1e-4, 1e4), rel=1e-4)


def test_patches_are_judged_by_themselves() -> None:
    torch.manual_seed(0)
    net, x = PatchDiscriminator(3, 8, 2), torch.randn(4, 3, 16, 16)
    assert net(x).shape == (4, 1, 4, 4)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_the_discriminator_enters_late_and_little_by_little() -> None:
    method, logged, _ = trained("vqgan", 40, start="0.5", lead="0.2", ramp="0.25")
    assert isinstance(method, VQGAN)
    assert [method.heard(Moment(k, 40, 0)) for k in (0, 19, 20, 25, 30, 39)] == [0, 0, 0, 0.5, 1, 1]
    heard = ["paint/adversarial" in terms for terms in logged]
    learning = ["judge/real" in terms for terms in logged]
    assert heard == [k > 20 for k in range(40)]
    assert learning == [k >= 12 for k in range(40)]


def test_a_discriminator_that_is_not_heard_changes_nothing() -> None:
    """Up to its start the run is that of an autoencoder alone, whatever the weight; and what is learned is not ruined when it enters."""
    a, _, x = trained("vqgan", 60, start="2")
    b, _, _ = trained("vqgan", 60, start="2", weight="50", lead="0")
    for name in ("encoder", "decoder", "quantizer"):
        for p, q in zip(getattr(a, name).parameters(), getattr(b, name).parameters(), strict=True):
            assert torch.equal(p, q)
    c, _, _ = trained("vqgan", 60, start="0.8", ramp="0.1", lead="0.1")
    assert isinstance(a, Codec) and isinstance(c, Codec)
    with torch.no_grad():
        alone, judged = (float((m.decode(m.encode(x)) - x).abs().mean()) for m in (a, c))
    assert judged < 1.3 * alone


def test_the_perceptual_term_takes_a_classifier_and_nothing_else() -> None:
    info = DataInfo(ImageShape(1, 16, 16), ("a", "b"))
    classifier = made("classifier", info)
    method = made("vqgan", info, {"features": classifier})
    batch = Batch(torch.rand(4, 1, 16, 16) * 2 - 1)
    loss = method.updates()[0].loss(batch, Moment(0, 10, 0))  # type: ignore[union-attr]
    assert float(loss["perceptual"]) > 0
    assert not any(name.startswith("features") for name, _ in method.named_parameters()), "it is a parent, not a net"
    loss["loss"].backward()
    assert all(p.grad is None for p in classifier.parameters())
    for name in ("vqgan", "autoencoder-kl"):
        with pytest.raises(UserError, match="must be a classifier"):
            made(name, info, {"features": made("vae", info)})
        with pytest.raises(UserError, match="must be a classifier"):
            made(name, INFO, {"features": classifier})


# relaxed codes


def test_a_cold_gumbel_softmax_draws_from_the_categorical_and_a_hot_one_is_uniform() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    u = torch.rand(40_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cold, hot = relaxed(logits, 1e-3, u), relaxed(logits, 1e4, u)
    assert (cold.max(1).values > 0.99).double().mean() > 0.99
    np.testing.assert_allclose(cold.mean(0).numpy(), logits.softmax(0).numpy(), atol=4 * 0.5 / 200)
    assert (hot - 0.25).abs().max() < 0.01
    torch.testing.assert_close(relaxed(logits, 0.7, u).sum(1), torch.ones(40_000, dtype=torch.float64))


def test_the_kl_of_codes_to_the_uniform_is_scipys_and_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    codes, logits = GumbelCodes(6, 3), torch.randn(4, 6, 2, 2)
    found = codes(logits, 1.0)
    p = logits.double().softmax(1).numpy()
    wanted = [entropy(p[i].reshape(6, -1), np.full((6, 4), 1 / 6)).sum() for i in range(4)]
    np.testing.assert_allclose(found.kl.numpy(), wanted, rtol=1e-5)
    torch.testing.assert_close(codes(torch.cat([logits] * 3), 1.0).kl.mean(), found.kl.mean())
    codes.eval()
    hard = codes(logits, 1.0)
    assert torch.equal(hard.indices[:, 0], logits.argmax(1))
    assert torch.equal(hard.z, codes.lookup(hard.indices)), "outside of training a code is a code, and not drawn"


def test_the_temperature_falls_by_half_a_cosine() -> None:
    method = made("dvae", anneal="0.5")
    assert isinstance(method, DVAE)
    found = [method.temperature(s) for s in (0.0, 0.125, 0.25, 0.5, 0.9)]
    half = 1 / 16 + (1 - 1 / 16) / 2
    assert found == pytest.approx([1, 1 / 16 + 15 / 16 * (1 + math.cos(math.pi / 4)) / 2, half, 1 / 16, 1 / 16])


# continuous latents


def test_latents_are_standardized_and_come_back() -> None:
    method, _, x = trained("autoencoder-kl", 150)
    assert isinstance(method, AutoencoderKL)
    with torch.no_grad():
        z = method.encode(x)
    assert z.shape[1:] == method.latent_shape
    assert z.mean((0, 2, 3)).abs().max() < 0.3
    assert float(z.std((0, 2, 3)).min()) > 0.7 and float(z.std((0, 2, 3)).max()) < 1.4
    raw, _ = method.posterior(x)
    torch.testing.assert_close(method.standard.inverse(method.standard(raw)), raw, atol=1e-4, rtol=1e-4)


def test_moments_are_those_of_what_was_seen() -> None:
    torch.manual_seed(0)
    net, data = Standard(3), 5 + 2 * torch.randn(10, 64, 3, 4, 4)
    for z in data:
        net.see(z)
    mean, deviation = net.moments()
    w = 0.99 ** np.arange(9, -1, -1)
    each = data.double().mean((1, 3, 4)).numpy()
    squares = data.double().square().mean((1, 3, 4)).numpy()
    wanted = (w[:, None] * each).sum(0) / w.sum()
    np.testing.assert_allclose(mean.flatten().numpy(), wanted, rtol=1e-4)
    np.testing.assert_allclose(deviation.flatten().numpy(), np.sqrt((w[:, None] * squares).sum(0) / w.sum() - wanted**2), rtol=1e-3)
    net.eval()
    net.see(100 + data[0])
    assert torch.equal(net.moments()[0], mean)


def test_beta_is_in_units_of_the_bound_at_any_resolution() -> None:
    """Two images beside each other have the same loss as one: neither term grows with the number of pixels."""
    for name in ("autoencoder-kl", "dvae"):
        stage = builtin()[name]("tiny").last
        small = make(replace(stage), INFO, {}, 0)
        x = 2 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
        wide = make(replace(stage), DataInfo(ImageShape(1, 8, 16)), {}, 0)
        torch.manual_seed(0)
        a = small.updates()[0].loss(Batch(x), Moment(9, 10, 0))  # type: ignore[union-attr]
        b = wide.updates()[0].loss(Batch(torch.cat([x, x], 3)), Moment(9, 10, 0))  # type: ignore[union-attr]
        assert float(b["kl"]) == pytest.approx(float(a["kl"]), rel=0.2), name
