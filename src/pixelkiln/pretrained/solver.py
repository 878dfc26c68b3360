"""Solvers by name: the schedulers of diffusers, made from the model's own configuration, so that its betas and its prediction stay.

A U-Net gets DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095) unless its own solver says that it is a distilled model; flow models and other
transformers keep theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..core.config import nearest
from ..core.errors import UserError

__all__ = ["FLOWS", "SOLVERS", "SPACINGS", "is_flow", "make_solver"]

SOLVERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
FLOWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
}
SPACINGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
REPLACED = ("PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler")  # of models that any solver suits


def is_flow(scheduler: Any) -> bool:
    """Whether it solves a flow from noise to data, not a diffusion."""
    return "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("prediction_type") == "flow_prediction"


def make_solver(own: Any, name: str, spacing: str, unet: bool) -> tuple[str, Any]:
    """The solver `name` ("auto", "own", or one of the tables) for a model whose own is given: its name and a new scheduler.

    Errors: `UserError` for a name that is unknown, or does not suit this kind of model.
    """
    import diffusers

    flow = is_flow(own)
    if name == "auto":
        replace = unet and not flow and type(own).__name__ in REPLACED and own.config.get("timestep_spacing") != "trailing"
        name = "dpmpp-2m" if replace else "own"
    if name != "own" and name not in SOLVERS and name not in FLOWS:
        raise UserError(f"no solver {name!r}; {nearest(name, ['own', *SOLVERS])}")
    table = FLOWS if flow else SOLVERS
    if name != "own" and name not in table:
        raise UserError(f"the solver {name} does not suit a flow model: choose own, {', '.join(FLOWS)}")
    if spacing != "model" and spacing not in SPACINGS:
        raise UserError(f"no spacing {spacing!r}; {nearest(spacing, ['model', *SPACINGS])}")
    kind, settings = (type(own).__name__, {}) if name == "own" else table[name]
    cls = getattr(diffusers, kind)
    more = dict(settings)
    known = inspect.signature(cls.__init__).parameters
    if spacing != "model":
        if SPACINGS[spacing] not in known:
            raise UserError(f"the solver {name} has no {spacing} spacing: choose another of the two")
        more[SPACINGS[spacing]] = True
    if flow and "flow_shift" in known and kind != type(own).__name__:
        more["flow_shift"] = own.config.get("shift", 1.0)
    return name, cls.from_config(own.config, **more)
