"""From a run folder to a method that samples: the recipe by name, its configuration from JSON, its weights with their hashes checked."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.catalog import find, stages_from_json
from ..core.protocols import Method
from ..core.recipe import Recipe, Stage
from ..core.runs import Run
from ..core.types import DataInfo, ImageShape, UserError
from ..core.version import __version__

__all__ = ["Opened", "load_method", "make", "open_run", "parent_digest", "resolve", "versions"]


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
        return DataInfo(ImageShape(*data["shape"]), tuple(data["classes"]))


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
    return Opened(run, facts, recipe)


def make(stage: Stage, info: DataInfo, parents: Mapping[str, Method], seed: int) -> Method:
    """The stage's method with fresh weights, which depend on the seed alone."""
    from ..core.rng import seed_all

    seed_all(seed, "init")
    return stage.method(info, stage.model, parents)  # type: ignore[call-arg]


def load_parents(opened: Opened, instead: Mapping[str, str] | None = None, recipe_name: str | None = None) -> dict[str, Method]:
    """The frozen methods that a run builds on: each folder is where the run says, or where the caller says, and its content must match."""
    found = {}
    for role, fact in opened.facts.get("parents", {}).items():
        given = (instead or {}).get(role)
        folder = Path(given) if given else opened.run.path / fact["run"] if not Path(fact["run"]).is_absolute() else Path(fact["run"])
        if not folder.exists():
            raise UserError(f"{opened.run.path} builds on {folder}, which is not there; say --parent {role}=RUN")
        found[role], parent = load_method(folder, recipe_name)
        if parent_digest(parent) != fact["digest"]:
            raise UserError(f"{folder} is not the run that {opened.run.path} was built on (another training); say --parent {role}=RUN")
    return found


def parent_digest(opened: Opened) -> str:
    """What identifies a parent's weights: the hash of its newest checkpoint's manifest."""
    from ..core.files import sha256

    return sha256(opened.run.checkpoint().path / "manifest.json")


def load_method(path: Path | str, recipe_name: str | None = None, parents: Mapping[str, str] | None = None) -> tuple[Method, Opened]:
    """The trained method of a run folder, with the weights that it samples with (averaged where it keeps an average)."""
    opened = open_run(path, recipe_name)
    point = opened.run.checkpoint()
    method = make(opened.stage, opened.info, load_parents(opened, parents, recipe_name), opened.facts["seed"])
    weights = point.tensors("weights") | point.tensors("average")
    own = method.state_dict()
    if set(own) != set(weights) or any(own[k].shape != weights[k].shape for k in own):
        raise UserError(f"{point.path}: its weights do not fit the recipe {opened.facts['recipe']!r}; was it made by another version?")
    method.load_state_dict(weights)
    return method.eval(), opened
