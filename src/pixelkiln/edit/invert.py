"""Inversion: the noise that a trained denoiser turns into a given picture (Song et al. 2021, arXiv 2010.02502, section 4.3).

    dx/ds = (x - D(x, s)) / s                                                the probability-flow ODE, walked up from the picture, and down

With it pictures have codes, z = x / sqrt(1 + s^2) at the highest level s, which look like standard normal noise: a great circle between two
codes is a walk between two real pictures (`pixelkiln interpolate RUN --images A B`), and a picture that is encoded without a label and
decoded with one is an edit (`pixelkiln sample RUN --source A --label K`). The parent is "base", any denoiser; there is nothing to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from ..core.protocols import Codec, Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Condition, DataInfo, Request
from ..solvers import conditioned, inversion
from ..solvers.diffusion import PASSED_ON, Sampling, from_noise, guided
from ..solvers.pictures import source_of

__all__ = ["Invert", "InvertConfig", "invert"]

WITHOUT = frozenset({Ability.SOLVER, Ability.ETA, Ability.CHURN})  # the way down is the way up, backwards: Euler's steps without noise


@dataclass(frozen=True)
class InvertConfig:
    """How far the way up is trusted, and the steps of both ways. Without a label both are unconditional."""

    how: Literal["ddim", "exact"] = "ddim"  # one evaluation a step; or each step solved, to `tolerance` per pixel
    tolerance: float = 1e-3
    sampling: Sampling = field(default_factory=lambda: Sampling("euler", 100, spacing="time"))


@final
class Invert(Method, Codec):
    """Pictures to noise and back through the parent "base"."""

    abilities = (PASSED_ON | {Ability.SOURCE}) - WITHOUT
    roles: Mapping[str, type] = {"base": Denoiser}

    def __init__(self, info: DataInfo, config: InvertConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        self.abilities = (PASSED_ON & self.parents["base"].abilities | {Ability.SOURCE}) - WITHOUT

    def encode(self, x: Tensor) -> Tensor:
        """z (B, C, H, W), about standard normal, of pictures x (B, C, H, W)."""
        return self._up(x, self.config.sampling)

    def decode(self, z: Tensor) -> Tensor:
        """The pictures of codes z, (B, C, H, W)."""
        return self._down(z, Request(tuple(range(len(z)))))

    def draw(self, request: Request) -> Tensor:
        """Sources encoded without, and decoded with the label of the request: reconstructions where there is none, else edits."""
        source = source_of(request.cond, len(request.seeds), tuple(self.shape), self.device)
        return self._down(self._up(source, self.config.sampling.asked(request)), request)

    def _up(self, x: Tensor, order: Sampling) -> Tensor:
        base = self.parents["base"]
        assert isinstance(base, Denoiser)
        levels, denoise = base.sigmas(order.steps, order.solver, order.spacing, order.levels), conditioned(base.denoise, Condition())
        with torch.autocast(x.device.type, enabled=False):  # rounding on the way up is amplified on the way down
            if self.config.how == "exact":
                x = inversion.invert_exactly(denoise, x, levels, tolerance=self.config.tolerance)
            else:
                x = inversion.invert(denoise, x, levels)
        return x / (1 + float(levels[0]) ** 2) ** 0.5

    def _down(self, z: Tensor, request: Request) -> Tensor:
        base, order = self.parents["base"], self.config.sampling.asked(request)
        assert isinstance(base, Denoiser)
        cond = Condition(label=request.cond.label, text=request.cond.text)
        with torch.autocast(z.device.type, enabled=False):
            return from_noise(base, guided(base, cond, order), z.to(torch.float32), order, None, request)


def invert(size: Size = "small") -> Recipe:
    """Pictures to noise and back with a trained diffusion model: `--parent base=RUN`; nothing to train (Song et al. 2021)."""
    config = InvertConfig(sampling=Sampling("euler", by_size(size, tiny=6, small=100, base=250), spacing="time"))
    stage = Stage(Invert, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv 2010.02502",
        summary="Encode pictures into a diffusion model's noise, walk between them, decode with another label",
    )
