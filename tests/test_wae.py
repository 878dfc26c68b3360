"""The WAE's discrepancy against loops, and against the integral that it has for Gaussians; and what the method does with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pixelkiln.core.protocols import Codec, Latent, Likelihood
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.methods.wae import WAE, WAEConfig, wae
from pixelkiln.objectives.discrepancy import SCALES, inverse_multiquadratic, mmd2

START = Moment(0, 100, 0)
SMALL = WAEConfig(latent=3, net="mlp", width=16, depth=1)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(config: WAEConfig, side: int = 8) -> WAE:
    torch.manual_seed(0)
    return WAE(DataInfo(ImageShape(1, side, side)), config)


def loss(method: WAE, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(method.loss(Batch(x), START))


def images(n: int, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_mmd_is_the_sum_over_pairs() -> None:
    """By loops in float64, over all pairs but those of a vector with itself."""
    x, y = draws(5, 3), draws(7, 3, seed=1) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return sum(2 * 3 * s / (2 * 3 * s + float(((a - b) ** 2).sum())) for s in SCALES)

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert float(mmd2(x, y)) == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def expected(shift: float, deviation: float, other: float, J: int) -> float:
    """E k(x, y) for x ~ N(0, deviation^2), y ~ N(shift 1, other^2), by C / (C + r) = int e^(-t (1 + r / C)) dt and the Gaussian integral."""
    v = deviation**2 + other**2
    total = 0.0
    for s in SCALES:
        c = 2 * J * s
        total += quad(lambda t, c=c: np.exp(-t - t / c * J * shift**2 / (1 + 2 * v * t / c)) * (1 + 2 * v * t / c) ** (-J / 2), 0, np.inf)[0]
    return total


@pytest.mark.parametrize(("shift", "deviation"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.4), (0.3, 2.0)])
def test_mmd_of_gaussians_has_its_closed_form(shift: float, deviation: float) -> None:
    """The mean over many small batches: without bias, so 0 for equal distributions, which with the diagonals it would not be."""
    J, n, times = 4, 8, 3000
    x, y = draws(times, n, J) * deviation + shift, draws(times, n, J, seed=1)
    found = torch.stack([mmd2(a, b) for a, b in zip(x, y, strict=True)])
    exact = expected(0, deviation, deviation, J) + expected(0, 1, 1, J) - 2 * expected(shift, deviation, 1, J)
    error = float(found.std()) / times**0.5
    assert float(found.mean()) == pytest.approx(exact, abs=4 * error)
    biased = exact + (2 * len(SCALES) - expected(0, deviation, deviation, J) - expected(0, 1, 1, J)) / n
    assert biased - exact > 40 * error  # the test can tell


def test_far_codes_keep_a_gradient() -> None:
    """At 100 deviations a Gaussian kernel is 0 in float32; this one still pulls towards the prior."""
    x = (draws(8, 4) + 100).float().requires_grad_()
    (slope,) = torch.autograd.grad(mmd2(x, draws(8, 4, seed=1).float()), x)
    pull = sum(4 * c * 100 / (c + 4 * 100**2) ** 2 / 8 for c in (8 * s for s in SCALES))
    assert slope.mean(0).tolist() == pytest.approx([pull] * 4, rel=0.05)  # of all codes together: between each other they push both ways
    assert float(inverse_multiquadratic(x.detach(), x.detach()).diagonal().mean()) == pytest.approx(len(SCALES))


@pytest.mark.parametrize("encoder", ["deterministic", "gaussian"])
def test_loss_is_cost_and_penalty(encoder: str) -> None:
    """Sums over pixels, the mean over images; twice the penalty adds the discrepancy once more."""
    method, x = built(replace(SMALL, encoder=encoder, penalty=10.0)), images(16)
    terms = loss(method, x)
    torch.testing.assert_close(terms["loss"].detach(), terms["rec"] + 10 * terms["mmd"])
    if encoder == "deterministic":
        z = method.encode(x)
        assert method.posterior(x)[1] is None and z.shape == (16, 3)
        error = ((x - method.decoder(z)) ** 2).sum((1, 2, 3)).mean().detach()
        torch.testing.assert_close(terms["rec"], error)
    else:
        assert not torch.equal(terms["rec"], loss(method, x, seed=1)["rec"])  # z is drawn


def test_there_is_no_likelihood() -> None:
    assert not issubclass(WAE, Likelihood) and issubclass(WAE, Codec) and issubclass(WAE, Latent)


def test_samples_are_decoded_latents() -> None:
    method, order = built(SMALL), Request(seeds=(4, 5, 6))
    torch.testing.assert_close(method.sample(order), method.from_latents(method.latents(order.seeds), order))
    assert method.latents((4,)).shape == (1, 3)


@pytest.mark.parametrize(("change", "word"), [({"latent": 0}, "latent"), ({"penalty": -1.0}, "penalty")])
def test_mistakes_are_one_line(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        built(replace(SMALL, **change))


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="train.batch 2"):
        loss(built(SMALL), images(1))


def test_training_makes_codes_look_like_the_prior() -> None:
    """Images of two factors: mean and deviation of all codes near 0 and 1, and an error far below the images' variance; without the penalty, not so."""
    u = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = (u @ torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])).view(-1, 1, 2, 2) * 0.9
    found = {}
    for penalty in (10.0, 0.0):
        torch.manual_seed(0)
        method = WAE(DataInfo(ImageShape(1, 2, 2)), WAEConfig(latent=2, net="mlp", width=64, depth=2, penalty=penalty))
        opt = torch.optim.Adam(method.parameters(), lr=3e-3)
        for k in range(250):
            torch.manual_seed(k)
            opt.zero_grad()
            terms = method.loss(Batch(x[torch.randint(512, (64,))]), START)
            terms["loss"].backward()
            opt.step()
        with torch.no_grad():
            z = method.encode(x)
            error = float((method.decode(z) - x).square().mean() / x.var())
        found[penalty] = (float(z.mean(0).abs().max()), float((z.std(0) - 1).abs().max()), error)
    mean, deviation, error = found[10.0]
    assert mean < 0.25 and deviation < 0.25 and error < 0.1
    assert max(found[0.0][:2]) > 0.35


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_recipes(size: str) -> None:
    made = wae(size)
    method = made.last.method(DataInfo(ImageShape(1, 28, 28)), made.last.model)
    assert made.family == "vae" and "1711.01558" in made.paper and {row.opt for row in method.updates()} == set(made.last.train.opts)
