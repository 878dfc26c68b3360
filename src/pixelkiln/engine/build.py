"""From a run folder to a method that samples: the recipe by name, its configuration from JSON, its weights with their hashes checked."""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook

from ..core.catalog import find, stages_from_json
from ..core.protocols import Method
from ..core.recipe import Recipe, Stage
from ..core.runs import Checkpoint, Run
from ..core.types import DataInfo, ImageShape, UserError
from ..core.version import __version__
from .posthoc import reconstruct

__all__ = ["Opened", "load_method", "make", "open_run", "parent_digest", "resolve", "versions"]

MAX_DEPTH = 8  # of parents of parents


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"pixelkiln": __version__, "torch": torch.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Opened:
    """A run folder with its recipe resolved."""

    run: Run
    facts: Mapping[str, Any]  # recipe.json
    recipe: Recipe

    @property
    def stage(self) -> Stage:
        """The stage that this folder holds."""
        return next(s for s in self.recipe.stages if s.name == self.facts["stage"])

    @property
    def info(self) -> DataInfo:
        """Shape and classes of the data that it was trained on."""
        data = self.facts["data"]
        return DataInfo(ImageShape(*data["shape"]), tuple(data["classes"]), tuple(data.get("texts", ())))


def open_run(path: Path | str, recipe_name: str | None = None) -> Opened:
    """A run folder; the code of a recipe outside the library is imported only if the caller names it (`recipe_name`)."""
    run = Run.open(path)
    return resolve(run, run.read_recipe(), recipe_name)


def resolve(run: Run, facts: Mapping[str, Any], recipe_name: str | None = None) -> Opened:
    """The same, where what recipe.json says is known already."""
    name = facts["recipe"]
    if ":" in name and name != recipe_name:
        raise UserError(f"{run.path} was made by the recipe {name!r}, which is not part of pixelkiln; if you trust it, say --recipe {name}")
    recipe = stages_from_json(find(name)(facts["size"]), facts["stages"], str(run.recipe_file))
    if facts["stage"] not in [s.name for s in recipe.stages]:
        raise UserError(f"{run.recipe_file}: {name} has no stage {facts['stage']!r}; the file is damaged")
    return Opened(run, facts, recipe)


def make(stage: Stage, info: DataInfo, parents: Mapping[str, Method], seed: int) -> Method:
    """The stage's method with fresh weights, which depend on the seed alone. UserError: its options do not fit together, or into memory."""
    from ..core.rng import seed_all

    seed_all(seed, "init")
    try:
        return stage.method(info, stage.model, parents)  # type: ignore[call-arg]
    except UserError:
        raise
    except Exception as e:
        if not stage.method.__module__.startswith("pixelkiln."):
            raise  # a method under development: its author wants the trace
        raise UserError(f"no {stage.method.__name__} can be made with these options ({' '.join(str(e).split())[:160]}): change --model.*") from e


def load_parents(opened: Opened, instead: Mapping[str, str] | None = None, recipe_name: str | None = None, depth: int = 0) -> dict[str, Method]:
    """The frozen methods that a run builds on: each folder is where the run says, or where the caller says, and its content must match."""
    found = {}
    if depth > MAX_DEPTH:
        raise UserError(f"{opened.run.path}: its parents have parents without end; a recipe.json is damaged")
    for role, fact in opened.facts.get("parents", {}).items():
        if not isinstance(fact, dict) or not isinstance(fact.get("run"), str) or "digest" not in fact:
            raise UserError(f"{opened.run.recipe_file}: parent {role!r} is not described; the file is damaged")
        given = (instead or {}).get(role)
        folder = Path(given) if given else opened.run.path / fact["run"] if not Path(fact["run"]).is_absolute() else Path(fact["run"])
        if not folder.exists():
            raise UserError(f"{opened.run.path} builds on {folder}, which is not there; say --parent {role}=RUN")
        found[role], parent = load_method(folder, recipe_name, depth=depth + 1)
        if parent_digest(parent) != fact["digest"]:
            raise UserError(f"{folder} is not the run that {opened.run.path} was built on (another training); say --parent {role}=RUN")
    return found


def parent_digest(opened: Opened) -> str:
    """What identifies a parent's weights: the hash of its newest checkpoint's manifest."""
    from ..core.files import sha256

    return sha256(opened.run.checkpoint().path / "manifest.json")


def newest(run: Run, ema_std: float | None = None) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The newest good checkpoint, and the weights that it samples with (averaged as long as `ema_std` says); while a training replaces one by
    the next, the next."""
    point = run.checkpoint()
    try:
        return point, point.tensors("weights") | (point.tensors("average") if ema_std is None else reconstruct(run, ema_std))
    except UserError:
        if point.path.exists():
            raise
        return newest(run, ema_std)


@contextlib.contextmanager
def at_most(num: int, wrong: UserError) -> Iterator[None]:
    """Inside, modules of this thread that come to more than `num` scalars are refused when they are declared, before they are filled."""
    count, mine = 0, threading.get_ident()

    def declared(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal count
        if value is not None and threading.get_ident() == mine:
            count += value.numel()
            if count > num:
                raise wrong

    hooks = [register_module_parameter_registration_hook(declared), register_module_buffer_registration_hook(declared)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_method(path: Path | str, recipe_name: str | None = None, parents: Mapping[str, str] | None = None, depth: int = 0,
                ema_std: float | None = None) -> tuple[Method, Opened]:
    """The trained method of a run folder, with the weights that it samples with (averaged where it keeps an average; ema_std: as `reconstruct`).

    A recipe.json that asks for more than the checkpoint holds is refused before the memory is filled. depth: how many runs build on this one.
    """
    opened = open_run(path, recipe_name)
    point, weights = newest(opened.run, ema_std)
    above = load_parents(opened, parents, recipe_name, depth)
    wrong = UserError(f"{point.path}: its weights do not fit the recipe {opened.facts['recipe']!r}; was it made by another version?")
    with at_most(2 * sum(w.numel() for w in weights.values()) + 2**20, wrong):  # tables that are not saved included
        method = make(opened.stage, opened.info, above, opened.facts["seed"])
    own = method.state_dict()
    if set(own) != set(weights) or any(own[k].shape != weights[k].shape or own[k].dtype != weights[k].dtype for k in own):
        raise wrong
    method.load_state_dict(weights)
    return method.eval(), opened
