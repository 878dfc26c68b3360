"""The conditional VAE: what the label does, what its bound is a bound on, and what happens without labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.sample import labels_for
from pixelkiln.methods.cvae import CVAE, CVAEConfig, cvae
from pixelkiln.methods.vae import VAE, VAEConfig
from pixelkiln.objectives import variational as vi

SMALL = CVAEConfig(latent=2, net="mlp", width=12, depth=1, likelihood="bernoulli", flow_width=8, flow_layers=3)
START, CLASSES = Moment(0, 100, 0), ("a", "b", "c")


def images(n: int, side: int = 4) -> Tensor:
    return torch.randint(0, 2, (n, 1, side, side), generator=torch.Generator().manual_seed(0)).float() * 2 - 1  # binary already


def built(config: CVAEConfig = SMALL, classes: tuple[str, ...] = CLASSES, side: int = 4) -> CVAE:
    torch.manual_seed(0)
    return CVAE(DataInfo(ImageShape(1, side, side), classes), config)


def loss(method: CVAE | VAE, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(method.loss(batch, START))


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_encoder_and_decoder_both_know_the_label(net: str) -> None:
    """Every label, and none, gives another posterior and another image; each row depends on its own label alone."""
    method, x = built(replace(SMALL, net=net, width=16), side=8), images(1, 8).expand(4, -1, -1, -1)
    label = torch.tensor([0, 1, 2, -1])
    mean, z = method.posterior(x, label)[0], torch.zeros(4, 2)
    out = method.decode(z, label)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(mean[i], mean[j]) and not torch.allclose(out[i], out[j])
    torch.testing.assert_close(method.posterior(x[:1], label[2:3])[0], mean[2:3])
    torch.testing.assert_close(method.decode(z[:1], label[2:3]), out[2:3])
    torch.testing.assert_close(method.posterior(x[:1])[0], mean[3:])  # not given is the same as none
    torch.testing.assert_close(method.decode(z[:1]), out[3:])


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("label", [0, 2, -1])
def test_bound_converges_to_the_integral_of_each_label(label: int, prior: str) -> None:
    """log p(x|y) is a sum over a grid of two units: the weights' mean is that number, for each label and for none, and the loss is above it."""
    method, x = built(replace(SMALL, prior=prior)), images(3)
    labels = torch.full((3,), label)
    line = torch.linspace(-8, 8, 161)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        many = torch.full((len(grid),), label)
        if method.prior is not None:
            for layer in method.prior.flow.layers:
                torch.nn.init.normal_(layer.head.weight, std=0.1)  # another prior for each label
        joint = torch.stack([method.log_likelihood(row.expand(len(grid), 1, 4, 4), grid, many) for row in x]) + method.log_prior(grid, many)
        assert float(method.log_prior(grid, many).exp().sum()) * 0.1**2 == pytest.approx(1, abs=0.01)
        exact = torch.logsumexp(joint, 1) + 2 * math.log(0.1)
        mean, log_var = method.posterior(x, labels)
        z = vi.reparameterize(mean, log_var, torch.randn(3000, 3, 2, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(vi.importance_bound(method.log_weights(x, z, mean, log_var, labels)), exact, atol=0.03, rtol=0)
        if label < 0:
            score = method.log_prob(x, 3000, torch.Generator().manual_seed(0))
            torch.testing.assert_close(score.nats, exact, atol=0.03, rtol=0)
            assert score.of == "dynamically binarized images, without their labels" and score.kind == "bound"


def test_loss_is_minus_the_bound_given_the_label() -> None:
    """Rarely dropping: the mean loss is the mean of -log w at the right labels, and not at others."""
    method, n = built(replace(SMALL, drop=1e-9)), 40_000
    x, label = images(2).repeat(n // 2, 1, 1, 1), torch.tensor([0, 2]).repeat(n // 2)
    with torch.no_grad():
        scale = 3 * torch.ones(())
        for p in method.decoder.parameters():
            p.mul_(scale)  # so that the label matters
        found = float(loss(method, Batch(x, Condition(label=label)))["loss"])
        bounds = []
        for given in (label, label.flip(0)):
            mean, log_var = method.posterior(x, given)
            z = vi.reparameterize(mean, log_var, torch.randn(1, n, 2, generator=torch.Generator().manual_seed(5)))
            bounds.append(-float(method.log_weights(x, z, mean, log_var, given).mean()))
    assert found == pytest.approx(bounds[0], abs=0.15) and abs(found - bounds[1]) > 0.3


def test_labels_are_lost_one_by_one() -> None:
    method, label = built(replace(SMALL, drop=0.3)), torch.arange(3).repeat(4000)
    torch.manual_seed(0)
    seen = method.seen(label)
    assert seen is not None
    lost = seen < 0
    assert float(lost.float().mean()) == pytest.approx(0.3, abs=0.015) and torch.equal(seen[~lost], label[~lost])
    assert int((label >= 0).sum()) == len(label)  # the batch's own are left alone


def test_without_classes_it_is_the_vae() -> None:
    method = built(replace(SMALL, prior="flow"), classes=())
    vae = VAE(method.info, VAEConfig(2, "mlp", 12, 1, prior="flow", flow_width=8, flow_layers=3, likelihood="bernoulli"))
    vae.load_state_dict(method.state_dict())
    a, b = loss(method, Batch(images(8))), loss(vae, Batch(images(8)))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert method.log_prob(images(2), 2, torch.Generator()).of == "dynamically binarized images"
    with pytest.raises(UserError, match="label"):
        method.sample(Request((0,), Condition(label=torch.tensor([0]))))


def test_samples_follow_label_and_seed() -> None:
    method = built()
    assert method.abilities == {Ability.LABEL}
    label = torch.tensor([0, 1, 2])
    whole = method.sample(Request((7, 7, 7), Condition(label=label)))
    assert not torch.allclose(whole[0], whole[1])
    torch.testing.assert_close(whole[2:], method.sample(Request((7,), Condition(label=label[2:]))))
    torch.testing.assert_close(method.sample(Request((7,))), method.decode(method.latents((7,))).clamp(-1, 1).detach())


@pytest.mark.parametrize("wrong", ["d", 3, "-1"])
def test_an_unknown_label_is_refused(wrong: str | int) -> None:
    with pytest.raises(UserError, match="label"):
        labels_for(wrong, CLASSES, [1, 1, 1], (0,))


@pytest.mark.parametrize("given", [torch.tensor([2, 0]), np.array([2, 0]), [2, "0"], ("c", "a"), "c, a"])
def test_labels_may_be_numbers_or_names_of_any_kind(given: Any) -> None:
    assert labels_for(given, CLASSES, [1, 1, 1], (0, 1, 2)).tolist() == [2, 0, 2]
    assert labels_for(torch.tensor(1), CLASSES, [1, 1, 1], (0, 1)).tolist() == labels_for(1, CLASSES, [1, 1, 1], (0, 1)).tolist() == [1, 1]
    with pytest.raises(UserError, match="no label is given"):
        labels_for([], CLASSES, [1, 1, 1], (0,))


@pytest.mark.parametrize("change", [{"drop": 0.0}, {"drop": 1.0}, {"beta": -1.0}, {"warmup": -1.0}, {"latent": 0}])
def test_mistakes_are_one_line(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(change))}") as caught:
        built(replace(SMALL, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.learns
def test_a_stranger_reads_the_labels_of_samples() -> None:
    """Trained for some seconds on 8x8 digits; scikit-learn's logistic regression, fitted to the real ones, sees what was asked for."""
    from sklearn.linear_model import LogisticRegression

    stage = cvae("tiny").last
    data = open_source("digits", stage.data, "train")
    assert data.labels is not None
    x = data.images.float() / 127.5 - 1
    config = CVAEConfig(latent=6, net="mlp", width=128, depth=1)
    method = make(replace(stage, model=config), data.info, {}, 0)
    opt = torch.optim.Adam(method.parameters(), lr=3e-3)
    for k in range(300):
        rows = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(k))
        opt.zero_grad()
        loss(method, Batch(x[rows], Condition(label=data.labels[rows])), seed=k)["loss"].backward()  # type: ignore[arg-type]
        opt.step()
    label = torch.arange(10).repeat(30)
    drawn = method.sample(Request(tuple(range(300)), Condition(label=label)))
    reader = LogisticRegression(max_iter=100).fit(x.flatten(1).numpy(), data.labels.numpy())
    assert reader.score(drawn.flatten(1).numpy(), label.numpy()) > 0.85
    assert reader.score(drawn.flatten(1).numpy(), label.roll(1).numpy()) < 0.15


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipes(size: str) -> None:
    made = cvae(size)
    method = made.last.method(DataInfo(ImageShape(1, 28, 28), tuple("0123456789")), made.last.model)
    assert made.family == "vae" and {row.opt for row in method.updates()} == set(made.last.train.opts)
