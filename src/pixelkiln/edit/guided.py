"""Guidance by a second model: a classifier of noisy images, or a weaker version of the model itself.

    D + w s^2 grad_x log p(y | x; s)                    classifier guidance, Dhariwal and Nichol 2021, arXiv 2105.05233, section 4
    D_weak + w (D - D_weak)                             autoguidance, Karras et al. 2024, arXiv 2406.02507

Both have trained runs as parents, and nothing to train. The classifier needs no label in the base's training: an unconditional model
becomes conditional. The weak model is a smaller one, or one that was trained for less long; both are asked for the same label.
`--guidance` is w: for a classifier 1 is Bayes' rule and 0 is off; for the weak model 1 is off. `--interval` limits both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from ..core.protocols import Classifier, Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Condition, DataInfo, Request, UserError
from ..solvers import autoguided as away_from
from ..solvers import classifier_guided as towards
from ..solvers import conditioned
from ..solvers.diffusion import PASSED_ON, Sampling, clamped, drawn

__all__ = ["Autoguided", "AutoguidedConfig", "ClassifierGuided", "ClassifierGuidedConfig", "autoguided", "classifier_guided"]

OWN = frozenset({Ability.GUIDANCE, Ability.INTERVAL})
WITHOUT = frozenset({Ability.RESCALE})  # of classifier-free guidance, which is not used here


@dataclass(frozen=True)
class ClassifierGuidedConfig:
    """How it samples unless a request says otherwise; guidance is w."""

    sampling: Sampling = field(default_factory=Sampling)
    label_to_base: bool = False  # give the base its label, too: guidance of a conditional model (the paper's ADM-G)


@final
class ClassifierGuided(Method):
    """The base's samples, pulled towards a label by the classifier's gradient; a sample with label -1 is not pulled."""

    abilities = PASSED_ON - WITHOUT
    roles: Mapping[str, type] = {"base": Denoiser, "classifier": Classifier}

    def __init__(self, info: DataInfo, config: ClassifierGuidedConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        base, classifier = self.parents["base"], self.parents["classifier"]
        _alike("classifier", classifier, base)
        if classifier.info.classes != info.classes:
            raise UserError(f"the classifier knows {len(classifier.info.classes)} classes that are not those of the data: give one trained on these data")
        self.abilities = (PASSED_ON & base.abilities | OWN | {Ability.LABEL}) - WITHOUT

    def draw(self, request: Request) -> Tensor:
        """Images (n, C, H, W) of the labels asked for."""
        base, classifier = self.parents["base"], self.parents["classifier"]
        assert isinstance(base, Denoiser) and isinstance(classifier, Classifier)
        order, label = self.config.sampling.asked(request), request.cond.label
        cond = request.cond if self.config.label_to_base else Condition(text=request.cond.text)
        denoise = conditioned(base.denoise, cond)
        if label is not None:
            known, column = (label >= 0).to(self.device), label.clamp_min(0).to(self.device)[:, None]  # (n,), (n, 1)

            def logp(x: Tensor, s: float) -> Tensor:
                each = classifier.logits(x, x.new_full((len(x),), s)).float().log_softmax(1)  # (n, K)
                return each.gather(1, column)[:, 0] * known

            denoise = towards(denoise, logp, order.guidance, order.interval)
        return drawn(base, clamped(denoise, order), order, request, tuple(self.shape), self.device)


@dataclass(frozen=True)
class AutoguidedConfig:
    """How it samples unless a request says otherwise; guidance is w."""

    sampling: Sampling = field(default_factory=lambda: Sampling(guidance=1.5))


@final
class Autoguided(Method):
    """The base's samples, pushed away from what a weaker model would make of the same noise and condition."""

    abilities = PASSED_ON - WITHOUT
    roles: Mapping[str, type] = {"base": Denoiser, "weak": Denoiser}

    def __init__(self, info: DataInfo, config: AutoguidedConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        base, weak = self.parents["base"], self.parents["weak"]
        _alike("weak model", weak, base)
        if weak.info.classes != base.info.classes:
            raise UserError("the weak model was trained on other classes than the base: give one trained on the same data")
        self.abilities = (PASSED_ON & base.abilities | OWN) - WITHOUT

    def draw(self, request: Request) -> Tensor:
        """Images (n, C, H, W), guided by w (base - weak)."""
        base, weak = self.parents["base"], self.parents["weak"]
        assert isinstance(base, Denoiser) and isinstance(weak, Denoiser)
        order = self.config.sampling.asked(request)
        main, other = (conditioned(model.denoise, request.cond) for model in (base, weak))
        denoise = away_from(main, other, order.guidance, order.interval)
        return drawn(base, clamped(denoise, order), order, request, tuple(self.shape), self.device)


def _alike(name: str, other: Method, base: Method) -> None:
    """UserError unless both work on images of one shape."""
    if other.shape != base.shape:
        raise UserError(f"the {name} works on {tuple(other.shape)} and the base on {tuple(base.shape)}: train it on the same data and resolution")


def classifier_guided(size: Size = "small") -> Recipe:
    """Class-conditional samples of any diffusion model: `--parent base=RUN --parent classifier=RUN`; nothing to train."""
    config = ClassifierGuidedConfig(Sampling(steps=by_size(size, tiny=4, small=30, base=50)))
    stage = Stage(ClassifierGuided, config, train=TrainConfig(steps=0), parents={"base": "", "classifier": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233",
        summary="Guide a diffusion model by the gradient of a classifier of noisy images",
    )


def autoguided(size: Size = "small") -> Recipe:
    """A better model out of a good and a weak one: `--parent base=RUN --parent weak=RUN`; nothing to train."""
    config = AutoguidedConfig(Sampling(steps=by_size(size, tiny=4, small=20, base=32), guidance=1.5))
    stage = Stage(Autoguided, config, train=TrainConfig(steps=0), parents={"base": "", "weak": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024, arXiv 2406.02507",
        summary="Guide a diffusion model away from a weaker version of itself",
    )
