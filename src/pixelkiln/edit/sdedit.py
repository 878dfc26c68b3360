"""SDEdit: re-noise a picture part of the way and let a trained denoiser bring it back (Meng et al. 2022, arXiv 2108.01073).

    x = source + s_0 z,  z ~ N(0, I);   then solve the reverse process from s_0 down to 0         algorithm 1 (variance exploding)

in variance-exploding coordinates, which every Gaussian path maps to. A low strength keeps the source, a high one follows the model.

Strength r is a share of the parent's time axis, t = r t_max, and the start is chosen by its noise level s_0 = s(t), never by a step
index: on levels that are not uniform in time, step n r of n would be another amount of noise for each solver and number of steps.
All `steps` are then spent below s_0, spaced as the parent spaces that solver's. The parent's two axes are read off its own
`sigmas`: a thousand "ddpm" steps are its time axis, a thousand of the solver's the spacing.

Guidance needs only `Denoiser.denoise`: the unconditional half gets a `Condition` without the label (-1, "no label").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import noise, streams
from ..core.types import Ability, DataInfo, Request, UserError
from ..solvers.diffusion import PASSED_ON, Sampling, guided, noise_for, solve
from ..solvers.pictures import source_of

__all__ = ["SDEdit", "SDEditConfig", "levels_below", "sdedit"]

FINE = 1000  # intervals in which the parent's axes are read
OWN = frozenset({Ability.SOURCE, Ability.STRENGTH})


@dataclass(frozen=True)
class SDEditConfig:
    """What a request leaves open. The paper solves the reverse SDE from t_0 = 0.3 to 0.6; ancestral sampling is its discrete form."""

    strength: float = 0.5  # in (0, 1]
    sampling: Sampling = field(default_factory=lambda: Sampling("ddpm", 40))


@final
class SDEdit(Method):
    """Editing with a trained denoiser as the parent "base", and nothing to train; it takes what the parent takes, and a source."""

    abilities = OWN | PASSED_ON
    roles: Mapping[str, type] = {"base": Denoiser}

    def __init__(self, info: DataInfo, config: SDEditConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        self.abilities = OWN | (PASSED_ON & self.parents["base"].abilities)

    def draw(self, request: Request) -> Tensor:
        """Edited sources (n, C, H, W); sample i depends on its seed, its source and its row of the condition alone.

        UserError without a source of the parent's shape, with a strength outside (0, 1], or with an eta that the solver does not use.
        """
        base, shape = self.parents["base"], tuple(self.parents["base"].shape)
        assert isinstance(base, Denoiser)
        source = source_of(request.cond, len(request.seeds), shape, self.device)
        strength = self.config.strength if request.strength is None else request.strength
        order = self.config.sampling.asked(request)
        sigmas = levels_below(base, strength, order)
        gens = streams(request.seeds, "noise")
        x = source + float(sigmas[0]) * noise(gens, shape, self.device)
        denoise = guided(base, replace(request.cond, source=None), order)
        return solve(denoise, x, sigmas, order, noise_for(gens, order, request, shape, self.device), request)


def levels_below(base: Denoiser, strength: float, order: Sampling) -> Tensor:
    """Noise levels (steps + 1,) float64 from s_0 = s(strength * t_max) to 0, spaced as `base` spaces the order's.

    s_0 is read off the time axis (a thousand "ddpm" steps, linear in between), found on the solver's own curve of levels by its
    value, and the rest of that curve is divided evenly. UserError for a strength outside (0, 1] or steps < 1.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength} is not in (0, 1]: 0 would keep the picture as it is, 1 ignores it")
    if order.steps < 1:
        raise UserError(f"cannot sample in {order.steps} steps: give 1 or more")
    index = torch.arange(FINE + 1, dtype=torch.float64)
    time = base.sigmas(FINE, "ddpm", None, base.sigma_range).cpu().flip(0)  # (FINE + 1,), rising from 0
    curve = base.sigmas(FINE, order.solver, order.spacing, order.levels).cpu().flip(0)
    s_0 = _interpolated(torch.tensor([strength * FINE], dtype=torch.float64), index, time)
    top = _interpolated(s_0, curve, index)  # where s_0 lies on the solver's curve
    share = torch.arange(order.steps, -1, -1, dtype=torch.float64) / order.steps
    return _interpolated(top * share, index, curve)


def _interpolated(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through the points (xs, ys), xs rising, at `at`, which is held within xs."""
    at = at.clamp(xs[0], xs[-1])
    k = torch.searchsorted(xs, at, right=True).clamp(1, len(xs) - 1)
    return ys[k - 1] + (at - xs[k - 1]) / (xs[k] - xs[k - 1]) * (ys[k] - ys[k - 1])


def sdedit(size: Size = "small") -> Recipe:
    """Edit pictures with a trained diffusion model: `--parent base=RUN`; nothing to train (Meng et al. 2022, arXiv 2108.01073)."""
    config = SDEditConfig(sampling=Sampling("ddpm", by_size(size, tiny=4, small=40, base=100)))
    stage = Stage(SDEdit, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022, arXiv 2108.01073",
        summary="Re-noise a picture by a chosen strength and let a trained denoiser redraw it",
    )
