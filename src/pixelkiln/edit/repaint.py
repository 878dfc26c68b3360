"""RePaint: redraw a part of a picture with any trained denoiser (Lugmayr et al. 2022, arXiv 2201.09865).

Legend: y the picture, m the mask, 1 where it is to be redrawn (the paper's is 1 where it is known), s the level now, r the next one,
r < s, z standard normal, all in variance-exploding coordinates x = x0 + s eps. One step down, algorithm 1 divided by alpha:

    known   = y + r z                                                       line 5, q(x_r | y)
    unknown = D + sqrt(r^2 - up^2) (x - D) / s + up z, up = eta r sqrt(s^2 - r^2) / s     lines 6 and 7, DDPM's posterior at eta = 1
    x       = m unknown + (1 - m) known                                     line 8

and, as that does not yet fit together at the seam, `jump` steps up again and down once more, `times` times over (section 4.2, appendix B):

    x <- x + sqrt(s'^2 - s^2) z                                             line 10, from s up to s'

which leaves x distributed as q(x_s'): variances add, s^2 + (s'^2 - s^2). (A standard deviation of s' - s, as some implementations have it,
re-noises hardly at all: for s = 1.0 and s' = 1.03, 0.03 instead of 0.25.) At r = 0 what is known is y itself, bit for bit.

What is redrawn only moves as far as the level lets it, so most of the levels must be low ones, and the spacing is Karras's: two pixels of a
Gaussian with correlation 0.95 and standard deviation 0.3, one masked, 40 levels, jump 5, times 12: the mean is off by 0.017, and by 0.070
with levels uniform in time (without jumps: 0.13 and 0.12).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import noise, streams
from ..core.types import Ability, DataInfo, Request, UserError
from ..solvers.contract import Noise
from ..solvers.diffusion import PASSED_ON, Sampling, guided
from ..solvers.pictures import mask_of, source_of

__all__ = ["RePaint", "RePaintConfig", "down", "repaint", "up", "walk"]

OWN = frozenset({Ability.SOURCE, Ability.MASK, Ability.ETA})
TAKEN = (PASSED_ON | OWN) - {Ability.SOLVER, Ability.CHURN}  # the steps are its own


@dataclass(frozen=True)
class RePaintConfig:
    """Jumps, and what a request leaves open. Evaluations: about steps * times. The paper: 250 steps, jump 10, times 10, eta 1."""

    jump: int = 5  # steps that are taken back
    times: int = 5  # how often each stretch is walked; 1: no jumps
    sampling: Sampling = field(default_factory=lambda: Sampling("ddim", 40, spacing="karras", eta=1.0))  # of the steps; the solver is not to be changed


@final
class RePaint(Method):
    """Inpainting with a trained denoiser as the parent "base", and nothing to train; it takes what the parent takes, a source and a mask."""

    abilities = TAKEN
    roles: Mapping[str, type] = {"base": Denoiser}

    def __init__(self, info: DataInfo, config: RePaintConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        if config.jump < 1 or config.times < 1:
            raise UserError(f"jump {config.jump} and times {config.times} must be 1 or more: --model.times 1 takes no jumps")
        self.config = config
        self.abilities = TAKEN & (self.parents["base"].abilities | OWN)

    def draw(self, request: Request) -> Tensor:
        """Sources (n, C, H, W) redrawn where the mask is 1, and unchanged elsewhere; sample i depends on its seed and its row alone.

        UserError without a source of the parent's shape or a mask. callback: evaluation i of n, from all jumps.
        """
        base, shape, n = self.parents["base"], tuple(self.parents["base"].shape), len(request.seeds)
        assert isinstance(base, Denoiser)
        y, m = source_of(request.cond, n, shape, self.device), mask_of(request.cond, n, shape, self.device)
        order = self.config.sampling.asked(request)
        if not 0 <= order.eta <= 1:
            raise UserError(f"eta {order.eta} is not in [0, 1]: 0 is deterministic, 1 is ancestral sampling")
        s = base.sigmas(order.steps, order.solver, order.spacing, order.levels).tolist()
        path = walk(order.steps, self.config.jump, self.config.times)
        denoise = guided(base, replace(request.cond, source=None, mask=None), order)
        gens = streams(request.seeds, "noise")

        def fresh() -> Tensor:
            return noise(gens, shape, self.device)

        x, done, total = s[0] * fresh(), 0, sum(b > a for a, b in zip(path, path[1:], strict=False))
        for a, b in zip(path, path[1:], strict=False):
            if b < a:
                x = up(x, s[a], s[b], fresh())
                continue
            D = denoise(x, s[a]).float()
            unknown = down(x, D, s[a], s[b], order.eta, fresh)
            x = torch.where(m, unknown, y + s[b] * fresh() if s[b] > 0 else y)
            if request.callback is not None:
                request.callback(done, total, torch.where(m, D, y))
            done += 1
        return x


def down(x: Tensor, D: Tensor, s: float, r: float, eta: float, fresh: Noise) -> Tensor:
    """From s down to r: D + sqrt(r^2 - up^2) (x - D) / s + up z, with up = eta r sqrt(s^2 - r^2) / s; fresh() draws z like x."""
    ahead = eta * r * math.sqrt(s**2 - r**2) / s
    x = D + math.sqrt(r**2 - ahead**2) / s * (x - D)
    return x + ahead * fresh() if ahead > 0 else x


def up(x: Tensor, s: float, higher: float, z: Tensor) -> Tensor:
    """From s up to a higher level: x + sqrt(higher^2 - s^2) z, for standard normal z like x."""
    return x + math.sqrt(higher**2 - s**2) * z


def walk(steps: int, jump: int, times: int) -> list[int]:
    """The levels' indices in the order of the walk, from 0 (the noisiest) to `steps` (no noise): down by one, up by `jump`.

    After each `jump` steps, counted from the end but one, the last `jump` are taken back and walked again, `times` - 1 times (appendix B).
    """
    path, left = [0], {i: times - 1 for i in range(steps - 1, jump - 1, -jump)}  # at these indices it jumps
    while path[-1] < steps:
        path.append(path[-1] + 1)
        if left.get(path[-1], 0) > 0:
            left[path[-1]] -= 1
            path.append(path[-1] - jump)
    return path


def repaint(size: Size = "small") -> Recipe:
    """Redraw what a mask covers with a trained diffusion model: `--parent base=RUN`; nothing to train."""
    config = RePaintConfig(
        jump=by_size(size, tiny=2, small=5, base=10),
        times=by_size(size, tiny=2, small=5, base=10),
        sampling=Sampling("ddim", by_size(size, tiny=6, small=40, base=250), spacing="karras", eta=1.0),
    )
    stage = Stage(RePaint, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, 2022, arXiv 2201.09865",
        summary="Redraw the masked part of a picture with a trained denoiser, by resampling",
    )
