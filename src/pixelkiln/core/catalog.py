"""The catalog: every public function annotated `-> Recipe` in methods/, edit/ and recipes/ is a recipe. No registry, no import side effects.

A built-in recipe has its function's name with dashes ("vae-mlp"); a user's own is "my_package.my_file:my_recipe" (or
"path/to/file.py:my_recipe"). A run folder stores the name only: somebody else's module is imported only if the user names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from importlib.abc import InspectLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import apply, flat_fields, from_json, nearest, parse, to_json
from .recipe import Recipe, Stage
from .types import UserError

__all__ = ["builtin", "find", "module_of", "override", "recipes_in", "stages_from_json", "stages_to_json"]

ROOMS = ("pixelkiln.methods", "pixelkiln.edit", "pixelkiln.recipes")
Maker = Callable[..., Recipe]


def recipes_in(module: ModuleType) -> dict[str, Maker]:
    """The recipe functions that a module defines, by name."""
    found: dict[str, Maker] = {}
    for name, fn in vars(module).items():
        if inspect.isfunction(fn) and not name.startswith("_") and fn.__module__ == module.__name__:
            if typing.get_type_hints(fn).get("return") is Recipe:
                found[name.replace("_", "-")] = fn
    return found


@cache
def builtin() -> Mapping[str, Maker]:
    """All recipes of the library, sorted by name."""
    found: dict[str, Maker] = {}
    for module in _modules():
        found |= recipes_in(importlib.import_module(module))
    return dict(sorted(found.items()))


def _modules(holding: str = "") -> Iterator[str]:
    """Names of the library's method files, or of those alone that hold a piece of text (one recipe needs one file)."""
    for room in ROOMS:
        for info in pkgutil.iter_modules(importlib.import_module(room).__path__, room + "."):
            spec = importlib.util.find_spec(info.name)
            loader = spec.loader if spec else None
            if not holding or not isinstance(loader, InspectLoader) or holding in (loader.get_source(info.name) or holding):
                yield info.name


def module_of(name: str) -> ModuleType:
    """A user's module by dotted name (the working directory counts) or by path."""
    path = Path(name)
    if path.suffix == ".py":
        if not path.exists():
            raise UserError(f"{path}: no such file")
        known = sys.modules.get(path.stem)
        if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
            return known
        spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and (name == e.name or name.startswith(e.name + ".")):
            raise UserError(f"no module named {name!r}: give it as package.module:recipe from the folder that holds it, or as file.py:recipe") from None
        raise


def find(name: str) -> Maker:
    """The recipe function for a name; an unknown one gets the nearest names (UserError)."""
    if ":" in name:
        module_name, _, function = name.rpartition(":")
        made = recipes_in(module_of(module_name))
        wanted = function.replace("_", "-")
        if wanted not in made:
            raise UserError(f"{module_name} has no recipe {function!r} (a function annotated '-> Recipe'); {nearest(wanted, made)}")
        return made[wanted]
    wanted = name.replace("_", "-")
    for module in _modules(f"def {wanted.replace('-', '_')}("):
        if wanted in (made := recipes_in(importlib.import_module(module))):
            return made[wanted]
    if wanted in builtin():
        return builtin()[wanted]
    raise UserError(f"unknown recipe {name!r}; {nearest(wanted, builtin())} ('pixelkiln list' shows all)")


OPEN = ("model", "data", "train")


def overridable(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """(dotted name, Field) of everything that a command may change: 'model.width', or 'stage.model.width' where there are several stages."""
    for stage in recipe.stages:
        prefix = f"{stage.name}." if len(recipe.stages) > 1 else ""
        for part in OPEN:
            for leaf in flat_fields(getattr(stage, part), f"{part}."):
                yield prefix + leaf.name, leaf


def override(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """The recipe with typed changes by dotted name; an unknown name gets the nearest ones (UserError)."""
    for name, text in sorted(changes.items(), key=lambda change: change[0].count(".")):  # --model.net dit before --model.net.depth 4
        known = dict(overridable(recipe))
        if name not in known:
            raise UserError(f"unknown option --{name}; {nearest(name, known)}")
        path, stages = name.split("."), {s.name: s for s in recipe.stages}
        stage = path.pop(0) if len(stages) > 1 else recipe.last.name
        stages[stage] = apply(stages[stage], path, parse(known[name].kind, text, f"--{name}"), name)
        recipe = replace(recipe, stages=tuple(stages.values()))
    return recipe


def stages_to_json(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    """Every stage's plain data (its method is code, and comes from the recipe function)."""
    return [{"name": s.name, "parents": dict(s.parents)} | {part: to_json(getattr(s, part)) for part in OPEN} for s in stages]


def stages_from_json(recipe: Recipe, data: list[dict[str, Any]], where: str) -> Recipe:
    """The recipe with the stages' data replaced by what `stages_to_json` wrote."""
    if [s.name for s in recipe.stages] != [d.get("name") for d in data] or any({"parents", *OPEN} - {*d} for d in data):
        raise UserError(f"{where}: its stages are not those of this recipe; was it made by another version?")
    hints = typing.get_type_hints(Stage)
    stages = []
    for stage, d in zip(recipe.stages, data, strict=True):
        kinds = {f.name: hints[f.name] for f in fields(Stage)} | {"model": type(stage.model)}
        stages.append(replace(stage, parents=from_json(kinds["parents"], d["parents"], f"{where}: parents"), **{p: from_json(kinds[p], d[p], f"{where}: {p}") for p in OPEN}))
    return replace(recipe, stages=tuple(stages))
