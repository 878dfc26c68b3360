"""What D is shown: the probability that follows D's answers, kept through a resume; nothing where nothing is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelkiln.core.recipe import Recipe
from pixelkiln.core.types import Batch, Moment, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.where import Where
from pixelkiln.methods.dcgan import dcgan
from pixelkiln.methods.wgan_gp import wgan_gp
from pixelkiln.objectives.adversarial import OBJECTIVES
from pixelkiln.objectives.game import Game
from pixelkiln.objectives.rules import Rules, checked
from pixelkiln.objectives.shown import HIGHEST, Shown, signs

WHERE = Where("cpu", "fp32", False, 1)
NOW = Moment(0, 10, 0)


def walked(answers: list[float], batch: int = 50, target: float = 0.6, images: float = 10_000.0) -> list[float]:
    """p after each step, of a D whose mean signs are these."""
    shown, found = Shown("ada", 0.0, 0.5), []
    for k, answer in enumerate(answers):
        shown.adapt(torch.tensor(answer), Moment(k, len(answers), k * batch), target, images)
        found.append(float(shown.p))
    return found


def test_p_rises_with_a_saturated_discriminator_every_fourth_step_and_falls_otherwise() -> None:
    p = walked([1.0] * 8 + [0.2] * 4)
    assert p == pytest.approx([0, 0, 0, 0.02, 0.02, 0.02, 0.02, 0.04, 0.04, 0.04, 0.04, 0.02], abs=1e-6)  # 4 steps of 50 images in 10,000


def test_four_steps_are_averaged() -> None:
    assert walked([1.0] * 4 + [1.0, 1.0, 1.0, -0.5])[-1] == pytest.approx(0.04, abs=1e-6)  # the mean is 0.625
    assert walked([1.0] * 4 + [0.9, 0.9, 0.9, -0.5])[-1] == pytest.approx(0.0, abs=1e-6)  # 0.55


def test_p_goes_from_zero_to_one_in_as_many_images_and_stays_in_its_bounds() -> None:
    p = walked([1.0] * 240)
    assert p[159] == pytest.approx(HIGHEST, abs=1e-5) and p[155] < HIGHEST - 0.01  # 160 steps of 50 images: 0.8 of 10,000
    assert max(p) <= HIGHEST + 1e-7 and p[-1] == pytest.approx(HIGHEST)
    assert min(walked([-1.0] * 40)) == 0.0
    torch.manual_seed(0)
    wild = walked((2 * torch.rand(400) - 1).tolist(), batch=2000)
    assert min(wild) >= 0.0 and max(wild) <= HIGHEST + 1e-7 and len(set(wild)) > 1


def test_a_speed_of_no_images_is_refused() -> None:
    with pytest.raises(UserError, match="ada_speed"):
        checked(Rules(augment="ada", ada_speed=0.0))


@pytest.mark.parametrize(("objective", "shift", "scale"), [("non-saturating", 0.0, 1.0), ("hinge", 0.0, 1.0), ("minimax", 0.0, 1.0), ("least-squares", 0.5, 0.5),
                                                           ("wasserstein", 37.0, 1.0), ("relativistic", -5.0, 3.0)])  # fmt: skip
def test_signs_are_about_the_answer_of_a_discriminator_that_cannot_tell(objective: str, shift: float, scale: float) -> None:
    """A D that is sure gives 1, one that guesses 0, whatever the constant that the objective leaves open."""
    assert objective in OBJECTIVES
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4000, generator=g), torch.randn(4000, generator=g)
    assert float(signs(shift + scale * (0.2 * a + 1), shift + scale * (0.2 * b - 1), objective)) == 1.0
    assert abs(float(signs(shift + scale * a, shift + scale * b, objective))) < 0.06


def recipe(augment: str, base: Recipe | None = None, accumulate: int = 1, **rules: Any) -> Recipe:
    base = base or dcgan("tiny")
    model: Any = base.last.model
    model = replace(model, rules=replace(model.rules, augment=augment, **rules))
    return replace(base, stages=(replace(base.last, model=model, train=replace(base.last.train, accumulate=accumulate)),))


def smooth() -> Recipe:
    """A discriminator without BatchNorm, as penalties ask for."""
    base = dcgan("tiny")
    model: Any = base.last.model
    return replace(base, stages=(replace(base.last, model=replace(model, nets=replace(model.nets, norm="layer"))),))


def trainer(r: Recipe, total: int = 12, seed: int = 0) -> Trainer:
    stage = r.last
    data = open_source("digits", stage.data, "train")
    method = make(stage, data.info, {}, seed)
    WHERE.place(method)
    return Trainer(method, stage.train, Feed(data, stage.train.batch, stage.data, 0).batch, 0, total, WHERE)


def test_resumed_run_restores_p_and_the_running_sum_bit_for_bit() -> None:
    r = recipe("ada", ada_speed=2000.0, ada="bgcfnc")  # p moves by 0.064 at every fourth step
    whole = trainer(r)
    whole.method.shown.p.fill_(0.4)
    for k in range(10):
        whole.step(k)
    first = trainer(r)
    first.method.shown.p.fill_(0.4)
    for k in range(6):  # in the middle of four steps
        first.step(k)
    groups = {g: {k: v.clone() for k, v in t.items()} for g, t in first.groups().items()}
    assert abs(float(groups["weights"]["shown.p"]) - 0.4) == pytest.approx(4 * 32 / 2000, rel=1e-5) and float(groups["weights"]["shown.signs"]) != 0
    second = trainer(r, seed=1)
    second.method.shown.p.fill_(0.3)
    second.restore(lambda g: groups[g], first.seen())
    for k in range(6, 10):
        second.step(k)
    a, b = whole.groups(), second.groups()
    assert a.keys() == b.keys()
    for group in a:
        assert a[group].keys() == b[group].keys()
        for name in a[group]:
            assert torch.equal(a[group][name], b[group][name]), f"{group}: {name}"
    assert float(a["weights"]["shown.p"]) != float(groups["weights"]["shown.p"])
    assert whole.look() == second.look()


class Watched:
    """Notes what D's loss says of its answers, and what `adapt` is told."""

    def __init__(self, method: Game) -> None:
        self.said: list[float] = []
        self.told: list[float] = []
        loss, adapt = method.d_loss, method.shown.adapt

        def d_loss(batch: Batch, moment: Moment) -> Any:
            found = loss(batch, moment)
            self.said.append(float(found["signs"]))
            return found

        def adapted(signs: Tensor, *args: Any) -> None:
            self.told.append(float(signs))
            adapt(signs, *args)

        method.d_loss, method.shown.adapt = d_loss, adapted  # type: ignore[method-assign]


def test_of_five_critic_steps_the_last_one_counts() -> None:
    made = trainer(recipe("ada", wgan_gp("tiny"), gradient=1.0))
    watched = Watched(made.method)
    again = Trainer(made.method, made.config, made.draw, 0, 12, WHERE)
    for k in range(3):
        again.step(k)
    assert len(watched.said) == 15 and watched.told == watched.said[4::5]
    assert len(set(watched.said)) > 3


@pytest.mark.parametrize("parts", [2, 4])
def test_of_an_accumulated_batch_the_mean_counts(parts: int) -> None:
    made = trainer(recipe("ada", accumulate=parts))
    watched = Watched(made.method)
    again = Trainer(made.method, made.config, made.draw, 0, 12, WHERE)
    for k in range(3):
        again.step(k)
    assert len(watched.said) == 3 * parts
    assert watched.told == pytest.approx([sum(watched.said[parts * k : parts * k + parts]) / parts for k in range(3)], abs=1e-6)


def test_nothing_is_kept_or_done_without_augmentation() -> None:
    made = trainer(recipe("none"))
    assert not [name for name, _ in made.method.named_buffers() if name.startswith("shown")]
    x = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert made.method.shown(x, NOW) is x
    assert torch.equal(torch.get_rng_state(), before)
    made.step(0)
    assert not {"d/signs", "d/p"} & made.look().keys()


@pytest.mark.parametrize("ada", ["b", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"])
def test_every_group_trains_with_a_penalty_through_it(ada: str) -> None:
    made = trainer(recipe("ada", smooth(), ada=ada, r1=0.1))
    made.method.shown.p.fill_(0.5)
    before = made.method.discriminator.head.weight.clone()
    for k in range(2):
        made.step(k)
    terms = made.look()
    assert terms["d/r1"] > 0 and terms["d/p"] == 0.5
    assert not torch.equal(before, made.method.discriminator.head.weight)
