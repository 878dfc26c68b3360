"""What the discriminator is shown, and beside which labels; the classes that it names; penalties through what it is shown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelkiln.core.types import DataInfo, Moment
from pixelkiln.methods.acgan import ACGAN, ACGANConfig
from pixelkiln.objectives.game import Game
from pixelkiln.objectives.rules import Rules
from pixelkiln.objectives.shown import Shown
from test_game import NETS, NOW, SHAPE, TEN, batch, game, num


def watched(method: Game) -> list[tuple[str, Tensor, Tensor | None]]:
    """What goes into the two networks from now on: whose it is, the images or latents, the labels."""
    seen: list[tuple[str, Tensor, Tensor | None]] = []
    for name in ("generator", "discriminator"):
        getattr(method, name).register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0].detach(), args[1])))
    return seen


@pytest.mark.parametrize("objective", ["non-saturating", "relativistic"])
def test_labels_of_generated_images_occur_as_in_the_data(objective: str) -> None:
    """Every image, real or generated, beside a label of the batch, and G makes what D is told."""
    method = game(TEN, replace(NETS, condition="concat"), objective=objective)
    seen, data = watched(method), batch(classes=10)
    method.d_loss(data, NOW)
    method.g_loss(data, NOW)
    assert [name for name, _, _ in seen] == ["generator", *["discriminator"] * 2, "generator", *["discriminator"] * (1 + (objective == "relativistic"))]
    assert all(label is not None and torch.equal(label, data.cond.label) for _, _, label in seen)


def test_real_and_generated_images_come_in_calls_of_their_own() -> None:
    method = game()
    seen, data = watched(method), batch()
    method.d_loss(data, NOW)
    assert [len(x) for _, x, _ in seen] == [16, 16, 16]
    assert torch.equal(seen[1][1], data.x) and not torch.equal(seen[2][1], data.x)


@pytest.mark.parametrize(("done", "sigma"), [(0, 0.8), (25, 0.4), (49, 0.016), (50, 0.0), (99, 0.0)])
def test_noise_is_the_same_on_all_images_and_falls_to_nothing(done: int, sigma: float) -> None:
    """sigma (1 - progress / until), in D's step and in G's, on real and on generated images."""
    method = game(noise=0.8, noise_until=0.5)
    for p in method.generator.parameters():
        torch.nn.init.zeros_(p)  # tanh(0): black images
    seen, data = watched(method), replace(batch(256), x=torch.zeros(256, *SHAPE))
    method.d_loss(data, Moment(done, 100, 0))
    method.g_loss(data, Moment(done, 100, 0))
    shown = [x for name, x, _ in seen if name == "discriminator"]
    assert len(shown) == 3
    for x in shown:
        assert num(x.std()) == pytest.approx(sigma, rel=0.03) if sigma else not bool(x.any())
    if sigma:
        assert not torch.equal(shown[0], shown[1]), "but not the same numbers"


def test_without_a_rule_images_are_shown_as_they_are() -> None:
    x = batch().x
    assert Shown("none", 0.0, 0.5)(x, NOW) is x
    assert Shown("none", 0.3, 0.0)(x, NOW) is x
    assert not Shown("none", 0.3, 0.5).state_dict()


def straight(method: Game) -> Tensor:
    """Makes D(x) = w . x, and returns w (H W)."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(4)).requires_grad_()

    class Linear(torch.nn.Module):
        def forward(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
            return x.flatten(1).float() @ w, x

        judge = forward

    method.discriminator = Linear()
    return w.detach()


def test_differences_are_those_of_the_image_and_not_of_noise_or_augmentation() -> None:
    """Of D(x) = w . x, E (w . e)^2 = |w|^2; a second draw of the noise would add 2 |w|^2 / sigma^2."""
    for rules in ({"noise": 0.5}, {"augment": "diffaugment"}):
        method = game(r1=2.0, r_sigma=0.01, **rules)
        w = straight(method)
        torch.manual_seed(0)
        found = method.smoothness(batch(2000).x, batch(2000).x, None, NOW)["r1"]
        assert num(found) == pytest.approx(num(w.square().sum()), rel=0.15)


def test_r1_is_the_gradient_by_the_image_before_augmentation() -> None:
    """By differences of every pixel with the same random numbers; what is cut or shifted away has no share."""
    method, x = game(r1=2.0, augment="diffaugment"), batch(1).x
    w = straight(method)

    def answer(x: Tensor) -> float:
        torch.manual_seed(0)
        return num(method.shown(x, NOW).flatten() @ w)

    moved = [x + 0.5 * torch.eye(64)[k].view(1, *SHAPE) for k in range(64)]
    slopes = [(answer(m) - answer(x)) / 0.5 for m in moved]
    torch.manual_seed(0)
    found = num(method.smoothness(x, x, None, NOW)["r1"])
    assert found == pytest.approx(sum(s**2 for s in slopes), rel=1e-3)
    assert found != pytest.approx(num(w.square().sum()), rel=0.05)


@pytest.mark.parametrize("rules", [{"r1": 1.0, "r2": 1.0}, {"gradient": 10.0}, {"r1": 1.0, "r2": 1.0, "r_sigma": 0.01}])
def test_penalties_under_autocast_are_those_of_fp32(rules: dict[str, float]) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        method, data = game(**rules), batch()
        torch.manual_seed(2)
        fake = method.generator(torch.randn(16, 4)).detach().to(dtype)  # as a generator under autocast makes them
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            torch.manual_seed(3)
            terms = method.penalties(data.x, fake, (torch.zeros(16), torch.zeros(16)), None, NOW)
        sum(terms.values(), torch.zeros(())).backward()
        found.append({k: num(v.detach()) for k, v in terms.items()})
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_consistency_compares_with_shifted_images() -> None:
    method = game(consistency=2.0, consistency_fake=3.0)
    data = batch(64)
    terms = method.d_loss(data, NOW)
    assert num(terms["consistency"]) > 0 and num(terms["consistency_fake"]) > 0
    torch.manual_seed(5)
    found = method.penalties(data.x, data.x, (method.discriminator(data.x)[0],) * 2, None, NOW)
    torch.manual_seed(5)
    moved = method.shown.moved(data.x)
    expected = 2.0 * (method.discriminator(data.x)[0] - method.discriminator(moved)[0]).square().mean()
    assert num(found["consistency"]) == pytest.approx(num(expected), rel=1e-5)
    for shifted, image in zip(moved, data.x, strict=True):  # by at most an eighth of 8 pixels, zeros moved in
        tried = [torch.nn.functional.pad(image, (1, 1, 1, 1))[:, 1 + a : 9 + a, 1 + b : 9 + b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
        assert any(torch.equal(shifted, t) for t in tried)


def test_the_classifier_has_a_cross_entropy_of_logits() -> None:
    """Not of a softmax (PyTorch-GAN's acgan.py): a sure and right classifier costs nothing, where that would cost 1.46 of ten classes at least."""
    torch.manual_seed(0)
    method = ACGAN(DataInfo(SHAPE, TEN), ACGANConfig(nets=replace(NETS, condition="generator"), weight=0.7)).train()
    label = torch.arange(10)
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.zero_()
        method.classifier.weight[:, :10] = 50 * torch.eye(10)
    features = torch.zeros(10, 16)
    assert num(method.wants(features, label, None)["class"]) == pytest.approx(0.7 * math.log(10))
    features[:, :10] = torch.eye(10)
    assert num(method.wants(features, label, None)["class"]) == pytest.approx(0, abs=1e-6)
    features[:, :10] = 0.02 * torch.randn(10, 10)
    slow = 0.0
    for i in range(10):
        logits = [50 * num(features[i, k]) for k in range(10)]
        slow -= (logits[i] - math.log(sum(math.exp(v) for v in logits))) / 10
    assert num(method.wants(features, label, None)["class"]) == pytest.approx(0.7 * slow, rel=1e-4)


def test_both_players_of_acgan_want_the_class_named() -> None:
    """Odena et al. 2017, eq. 3: L_C of real and of generated images in D's loss, of generated ones in G's; D itself sees no label."""
    torch.manual_seed(0)
    method = ACGAN(DataInfo(SHAPE, TEN), ACGANConfig(nets=replace(NETS, condition="generator"), rules=Rules())).train()
    data = batch(classes=10)
    d, g = method.d_loss(data, NOW), method.g_loss(data, NOW)
    assert {"class", "class_fake"} <= set(d) and "class" in g
    (row, _) = method.updates()
    assert row.nets == ("discriminator", "classifier")
    assert num(d["class"]) == pytest.approx(math.log(10), rel=0.3)
    other = replace(data.cond, label=(data.cond.label + 1) % 10)
    assert torch.equal(method.discriminator(data.x, data.cond.label)[0], method.discriminator(data.x, other.label)[0])
