"""Statistics for sampling that belong to the weights that draw, with and without labels; and what truncation does to latents and to them."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pixelkiln.core.rng import generator
from pixelkiln.core.types import Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.layers.batchnorm import ConditionalBatchNorm
from pixelkiln.layers.standing import has_statistics, with_standing_stats
from pixelkiln.methods.cgan import CGAN, CGANConfig
from pixelkiln.methods.dcgan import DCGAN, DCGANConfig
from pixelkiln.methods.gan import GAN, GANConfig
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.nets.mlpgan import MLPNets
from pixelkiln.objectives.game import Game
from pixelkiln.objectives.truncation import truncated

SHAPE = ImageShape(1, 16, 16)
TEN = tuple("0123456789")


def labeled(condition: str = "concat", **more: object) -> Game:
    torch.manual_seed(0)
    made = CGAN(DataInfo(SHAPE, TEN), CGANConfig(nets=DCGANNets(8, 8, condition=condition), latent=6, reference=80, **more))  # type: ignore[arg-type]
    for m in made.modules():
        if isinstance(m, ConditionalBatchNorm):  # zero at first, when labels do nothing
            nn.init.normal_(m.gain.weight, 0, 0.5)
            nn.init.normal_(m.shift.weight, 0, 0.5)
    return made


def order(num: int, first: int = 0, **more: object) -> Request:
    return Request(tuple(range(first, first + num)), Condition(label=torch.arange(first, first + num) % 10), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("condition", ["concat", "projection", "generator"])
@pytest.mark.parametrize("statistics", ["standing", "running"])
def test_a_row_is_its_seeds_and_its_labels_alone(condition: str, statistics: str) -> None:
    method = labeled(condition, statistics=statistics)
    whole = method.sample(order(6, truncation=0.7))
    parts = torch.cat([method.sample(order(1, truncation=0.7)), method.sample(order(5, 1, truncation=0.7))])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    other = method.sample(Request(tuple(range(6)), Condition(label=torch.arange(1, 7)), truncation=0.7))
    assert (whole - other).abs().flatten(1).amax(1).min() > 1e-4, "and the label matters"


def test_a_label_is_asked_for() -> None:
    with pytest.raises(UserError, match="give --label"):
        labeled().sample(Request((0,)))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_statistics_are_the_means_and_variances_of_the_reference(momentum: float | None) -> None:
    """Layer by layer on paper: the second norm sees what the first has made of the reference."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=momentum))
    for _ in range(3):
        net.train()(torch.randn(8, 3))  # running statistics and counts of something else
    before = {k: v.clone() for k, v in net.state_dict().items()}
    reference, x = torch.randn(50, 3) * 2 + 1, torch.randn(5, 3)

    def through(norm: nn.Module, h: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = h.mean(0), h.var(0, unbiased=True)
        batch = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()
        return batch, (own - mean) / (var + norm.eps).sqrt()

    h, own = through(net[1], net[0](reference), net[0](x))
    _, expected = through(net[4], net[3](h.relu()), net[3](own.relu()))
    torch.testing.assert_close(with_standing_stats(net, (x,), (reference,)), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training


def test_an_error_leaves_the_net_as_it_was() -> None:
    method = labeled()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.generator.eval()
    with pytest.raises(RuntimeError):
        with_standing_stats(method.generator, (torch.randn(2, 99), None), (torch.randn(9, 6), torch.zeros(9, dtype=torch.int64)))
    assert not method.generator.training and all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_the_reference_is_truncated_as_the_latents_are() -> None:
    """And has every class equally often."""
    method = labeled("projection")
    seen: list[tuple[Tensor, Tensor]] = []
    hook = method.generator.register_forward_pre_hook(lambda _, args: seen.append(args))
    method.sample(order(4, truncation=0.3))
    method.sample(order(4))
    hook.remove()
    (narrow, labels), (few, asked), (wide, _), (free, _) = seen
    assert len(narrow) == 80 and torch.equal(labels, torch.arange(80) % 10) and torch.equal(asked, torch.arange(4))
    assert float(narrow.abs().max()) <= 0.3 and float(few.abs().max()) <= 0.3
    drawn = torch.randn((80, 6), generator=generator("dcgan", "reference"))
    torch.testing.assert_close(wide, drawn)
    torch.testing.assert_close(narrow, truncated(drawn, 0.3, "resampled"))
    torch.testing.assert_close(few, truncated(free, 0.3, "resampled"))


def test_running_statistics_are_used_when_asked_for_and_touched_never() -> None:
    standing, running = labeled(), labeled(statistics="running")
    for method in (standing, running):
        for name, buffer in method.generator.named_buffers():
            if "running_var" in name:
                buffer.fill_(100.0)
    before = {k: v.clone() for k, v in running.state_dict().items()}
    plain = running.generator.eval()(running.latents(range(4)), torch.arange(4)).detach()
    running.train()
    torch.testing.assert_close(running.sample(order(4)), plain)
    assert float((standing.sample(order(4)) - plain).abs().max()) > 0.01
    assert all(torch.equal(v, before[k]) for k, v in running.state_dict().items())


def test_a_net_without_batchnorm_is_called_once() -> None:
    method = GAN(DataInfo(SHAPE), GANConfig(nets=MLPNets(16, 16), latent=6))
    calls: list[int] = []
    method.generator.register_forward_hook(lambda *_: calls.append(1))
    x = method.sample(Request((0, 1)))
    assert not has_statistics(method.generator) and has_statistics(labeled().generator)
    assert calls == [1]
    torch.testing.assert_close(x, method.generator(method.latents((0, 1))).detach())


def test_gradients_reach_the_latents_with_and_without_statistics() -> None:
    info = DataInfo(SHAPE)
    for method in (GAN(info, GANConfig(nets=MLPNets(16, 16), latent=6)), DCGAN(info, DCGANConfig(nets=DCGANNets(8, 8), latent=6, reference=16))):
        z = method.eval().latents((0, 1)).requires_grad_()
        for ask in (Request((0, 1)), Request((0, 1), truncation=0.5)):
            (grad,) = torch.autograd.grad(method.from_latents(z, ask)[0].sum(), z)
            assert bool(grad[0].any()) and not bool(grad[1].any())


# -- truncation


def test_truncated_latents_have_the_law_of_drawing_again() -> None:
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.3, 1.0, 2.5):
        found = truncated(z, t, "resampled")
        assert stats.kstest(found.numpy(), stats.truncnorm(-t, t).cdf).pvalue > 0.001
        assert float(found.abs().max()) <= t
        assert bool((found[z.argsort()].diff() >= 0).all()), "and move as the latent moves"
    scaled, narrowed = truncated(z, 0.5, "scaled"), truncated(z, 0.5, "narrowed")
    assert stats.kstest((scaled / 0.5).numpy(), stats.truncnorm(-2, 2).cdf).pvalue > 0.001
    assert torch.equal(narrowed, 0.5 * z)
    assert stats.kstest(scaled.numpy(), stats.truncnorm(-0.5, 0.5).cdf).pvalue < 1e-6, "three different things"


def test_far_latents_and_wrong_bounds() -> None:
    z = torch.tensor([-40.0, -9.0, 0.0, 9.0, 40.0])
    assert truncated(z, 0.7, "resampled").tolist() == pytest.approx([-0.7, -0.7, 0, 0.7, 0.7])
    torch.testing.assert_close(truncated(z[1:4] / 3, 50.0, "resampled"), z[1:4] / 3, rtol=1e-5, atol=1e-6)
    for t in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="--truncation"):
            truncated(z, t, "resampled")
