"""Several conditions at once, and their negation: weighted products of what one model learned (Liu et al. 2022, arXiv 2206.01714).

    D_u + sum_i w_i (D_i - D_u)         p(x) prod_i (p(x | c_i) / p(x))^w_i at each noise level; w_i < 0: "not c_i"

The labels and weights are the run's own configuration, `--model.labels 3,8 --model.weights 1.5,-0.5`: a composition is a model of its own,
with a trained run as its parent "base", and nothing to train. What this product is, and is not, stands at `solvers.guidance.composed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..core.config import nearest
from ..core.protocols import Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Condition, DataInfo, Request, UserError
from ..solvers import composed as product
from ..solvers.diffusion import PASSED_ON, Sampling, clamped, drawn

__all__ = ["Composed", "ComposedConfig", "composed"]

WITHOUT = frozenset({Ability.LABEL, Ability.TEXT, Ability.GUIDANCE, Ability.INTERVAL, Ability.RESCALE})  # the terms say it all


@dataclass(frozen=True)
class ComposedConfig:
    """The terms, and how it samples unless a request says otherwise. No terms: the unconditional model."""

    labels: tuple[str, ...] = ()  # classes of the base, by name or number
    weights: tuple[float, ...] = ()  # one for each label; below 0: not this one
    sampling: Sampling = field(default_factory=Sampling)


@final
class Composed(Method):
    """A product of conditions of the parent "base"."""

    abilities = PASSED_ON - WITHOUT
    roles: Mapping[str, type] = {"base": Denoiser}

    def __init__(self, info: DataInfo, config: ComposedConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, base = config, self.parents["base"]
        if len(config.labels) != len(config.weights):
            raise UserError(f"{len(config.labels)} labels and {len(config.weights)} weights: give one weight for each, --model.labels 3,8 --model.weights 1,-0.5")
        if config.labels and Ability.LABEL not in base.abilities:
            raise UserError("the base is not conditioned on labels, so there is nothing to compose: give one that is")
        self.labels = [_number(label, base.info.classes) for label in config.labels]
        self.abilities = (PASSED_ON & base.abilities) - WITHOUT

    def draw(self, request: Request) -> Tensor:
        """Images (n, C, H, W) of the product."""
        base = self.parents["base"]
        assert isinstance(base, Denoiser)
        order, n = self.config.sampling.asked(request), len(request.seeds)
        terms = [(Condition(label=torch.full((n,), k, device=self.device)), w) for k, w in zip(self.labels, self.config.weights, strict=True)]
        denoise = clamped(product(base.denoise, terms, Condition()), order)
        return drawn(base, denoise, order, request, tuple(self.shape), self.device)


def _number(label: str, classes: tuple[str, ...]) -> int:
    """The number of a class by its name or number; UserError for another one."""
    if label in classes:
        return classes.index(label)
    if label.isascii() and label.isdigit() and int(label) < len(classes):
        return int(label)
    raise UserError(f"--model.labels {label}: no such class; {nearest(label, classes)}")


def composed(size: Size = "small") -> Recipe:
    """Products of conditions of a trained diffusion model: `--parent base=RUN --model.labels A,B --model.weights 1,1`; nothing to train."""
    config = ComposedConfig(sampling=Sampling(steps=by_size(size, tiny=4, small=40, base=100)))
    stage = Stage(Composed, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Liu et al., Compositional Visual Generation with Composable Diffusion Models, 2022, arXiv 2206.01714",
        summary="Several classes at once, or not this one: weighted products of conditions",
    )
