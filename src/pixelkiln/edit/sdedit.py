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
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from ..core.protocols import Denoiser, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import noise, streams
from ..core.types import Ability, Condition, DataInfo, Request, UserError
from ..solvers import classifier_free, solver

__all__ = ["SDEdit", "SDEditConfig", "levels_below", "sdedit"]

FINE = 1000  # intervals in which the parent's axes are read
OWN = frozenset({Ability.SOURCE, Ability.STRENGTH})
PASSED_ON = frozenset({Ability.LABEL, Ability.TEXT, Ability.STEPS, Ability.SOLVER, Ability.GUIDANCE, Ability.ETA})


@dataclass(frozen=True)
class SDEditConfig:
    """What a request leaves open. The paper solves the reverse SDE from t_0 = 0.3 to 0.6; ancestral sampling is its discrete form."""

    strength: float = 0.5  # in (0, 1]
    steps: int = 40
    solver: str = "ddpm"


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
        base = self.parents["base"]
        assert isinstance(base, Denoiser)
        source = self._source(request)  # (n, C, H, W)
        strength = self.config.strength if request.strength is None else request.strength
        name, steps = request.solver or self.config.solver, self.config.steps if request.steps is None else request.steps
        chosen = solver(name)
        if request.eta is not None and not chosen.eta:
            raise UserError(f"solver {name!r} does not take eta: use --solver ddim, or leave eta out")
        sigmas = levels_below(base, strength, steps, name)
        gens = streams(request.seeds, "noise")
        x = source + float(sigmas[0]) * noise(gens, tuple(base.shape), self.device)
        weight = 1.0 if request.guidance is None else request.guidance
        denoise = classifier_free(base.denoise, replace(request.cond, source=None), Condition(), weight)
        return chosen.run(
            denoise,
            x,
            sigmas,
            noise=lambda: noise(gens, tuple(base.shape), self.device),
            eta=request.eta or 0.0,
            callback=request.callback,
        )

    def _source(self, request: Request) -> Tensor:
        source, shape = request.cond.source, tuple(self.parents["base"].shape)
        if source is None:
            raise UserError("sdedit edits a picture: give one with --source IMAGE")
        if tuple(source.shape) != (len(request.seeds), *shape):
            raise UserError(f"source is {tuple(source.shape)}, and {len(request.seeds)} of {shape} are asked for: give one for each sample")
        return source.to(self.device, torch.float32)


def levels_below(base: Denoiser, strength: float, steps: int, name: str) -> Tensor:
    """Noise levels (steps + 1,) float64 from s_0 = s(strength * t_max) to 0, spaced as `base` spaces the solver's.

    s_0 is read off the time axis (a thousand "ddpm" steps, linear in between), found on the solver's own curve of levels by its
    value, and the rest of that curve is divided evenly. UserError for a strength outside (0, 1] or steps < 1.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength} is not in (0, 1]: 0 would keep the picture as it is, 1 ignores it")
    if steps < 1:
        raise UserError(f"cannot sample in {steps} steps: give 1 or more")
    index = torch.arange(FINE + 1, dtype=torch.float64)
    time, curve = base.sigmas(FINE, "ddpm").cpu().flip(0), base.sigmas(FINE, name).cpu().flip(0)  # (FINE + 1,), rising from 0
    s_0 = _interpolated(torch.tensor([strength * FINE], dtype=torch.float64), index, time)
    top = _interpolated(s_0, curve, index)  # where s_0 lies on the solver's curve
    share = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    return _interpolated(top * share, index, curve)


def _interpolated(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through the points (xs, ys), xs rising, at `at`, which is held within xs."""
    at = at.clamp(xs[0], xs[-1])
    k = torch.searchsorted(xs, at, right=True).clamp(1, len(xs) - 1)
    return ys[k - 1] + (at - xs[k - 1]) / (xs[k] - xs[k - 1]) * (ys[k] - ys[k - 1])


def sdedit(size: Size = "small") -> Recipe:
    """Edit pictures with a trained diffusion model: `--parent base=RUN`; nothing to train (Meng et al. 2022, arXiv 2108.01073)."""
    config = SDEditConfig(steps=by_size(size, tiny=4, small=40, base=100))
    stage = Stage(SDEdit, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022, arXiv 2108.01073",
        summary="Re-noise a picture by a chosen strength and let a trained denoiser redraw it",
    )
