"""Training a recipe into a run folder: its stages one after the other, each planned, begun or resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..core.catalog import find, override, stages_to_json
from ..core.config import from_json
from ..core.files import write_json
from ..core.protocols import Update
from ..core.recipe import DataConfig, Recipe, Stage
from ..core.runs import Run
from ..core.types import UserError
from ..data import ImageSet, open_source
from .build import load_method, make, open_run, parent_digest, versions
from .log import Log
from .plan import Budget, Order, plan
from .session import execute
from .where import Where, processor

__all__ = ["Budget", "Order", "train"]


def train(order: Order, where: Where, resume: bool = False, log: Log | None = None) -> Run:
    """Train a recipe into order.out, or go on with what is there; returns the run of its last stage."""
    log = log or Log()
    recipe = override(find(order.recipe)(order.size), order.changes)
    from_json(int, order.seed, "--seed")
    held = Run(order.out)
    with held.hold(log.say):
        return _train(order, recipe, held, where, resume, log)


def _train(order: Order, recipe: Recipe, held: Run, where: Where, resume: bool, log: Log) -> Run:
    """All stages, in a folder that no other training writes."""
    if held.recipe_file.exists() and resume and (name := held.read_recipe()["recipe"]) != order.recipe:
        raise UserError(f"{order.out} holds a run of {name!r}, not of {order.recipe!r}")
    if held.recipe_file.exists() and not resume:
        raise UserError(f"{order.out} already holds a run: add --resume to go on with it, or choose another --out")
    if not held.recipe_file.exists() and order.out.exists() and any(p.name != "stages" and not p.name.startswith(".") for p in order.out.iterdir()):
        raise UserError(f"{order.out} exists and is not a run folder: choose another --out")
    for stage in recipe.stages[:-1]:
        part = replace(order, out=order.out / "stages" / stage.name, budget=_share(order.budget, len(recipe.stages)))
        with Run(part.out).hold(log.say):
            _stage(part, recipe, stage, where, log, {})
    inner = {s.name: order.out / "stages" / s.name for s in recipe.stages[:-1]}
    return _stage(replace(order, budget=_share(order.budget, len(recipe.stages))), recipe, recipe.last, where, log, inner)


def _share(budget: Budget, parts: int) -> Budget:
    """An equal share of the budget for each stage."""
    steps, images = (None if v is None else max(1, v // parts) for v in (budget.steps, budget.images))
    return Budget(steps, images, None if budget.seconds is None else budget.seconds / parts)


def _stage(order: Order, recipe: Recipe, stage: Stage, where: Where, log: Log, inner: Mapping[str, Path]) -> Run:
    """Train one stage into its own run folder; one that is complete is left as it is."""
    run = Run(order.out)
    known = run.recipe_file.exists()
    if known:
        opened = open_run(run.path, order.recipe)
        order, recipe, stage, where = _as_begun(opened.facts, opened.recipe, order, stage, where, log)
    roles = {role: str(inner[name]) if name else order.parents.get(role, "") for role, name in stage.parents.items()}
    parents = {role: load_method(path, order.recipe) for role, path in roles.items() if path}
    methods = {role: method for role, (method, _) in parents.items()}
    for _, parent in parents.values():
        if stage.data == DataConfig():  # nothing said: images as the run that it builds on has them
            stage = replace(stage, data=parent.stage.data)
            recipe = replace(recipe, stages=tuple(stage if s.name == stage.name else s for s in recipe.stages))
        order = replace(order, source=order.source or parent.facts["data"]["source"])
    if not order.source:
        raise UserError("which images? add --data SRC: digits, shapes, or a path to your own")
    data = open_source(order.source, stage.data, "train")
    method = make(stage, data.info, methods, order.seed)
    where.place(method)
    if known:
        facts = dict(run.read_recipe())
        if facts["data"]["digest"] != data.digest():
            raise UserError(f"{order.source} has changed since {run.path} was begun; train anew with another --out")
    else:
        total, how = plan(order, stage, data, methods, where, log, any(isinstance(row, Update) for row in method.updates()))
        parts = {role: {"run": os.path.relpath(roles[role], run.path), "digest": parent_digest(o)} for role, (_, o) in parents.items()}
        facts = {
            "recipe": order.recipe, "size": order.size, "stage": stage.name, "seed": order.seed, "stages": stages_to_json(recipe.stages),
            "data": _data_facts(order.source, data), "parents": parts, "total": total, "plan": how, "asked": order.asked(), "command": order.command,
            "where": {**asdict(where), "processor": processor()}, "versions": versions(),
            "parameters": sum(p.numel() for p in method.parameters()),
        }
        write_json(run.recipe_file, facts)
    execute(run, stage, method, data, facts, where, log)
    return run


def _data_facts(source: str, data: ImageSet) -> dict[str, Any]:
    """What a run has to know of its data: where they are, what they are, and how often each class occurs."""
    counts = [] if data.labels is None else torch.bincount(data.labels.cpu(), minlength=len(data.classes)).tolist()
    where = str(Path(source).resolve()) if Path(source).exists() else source
    return {"source": where, "digest": data.digest(), "name": data.name, "shape": list(data.info.shape), "classes": list(data.classes),
            "counts": counts, "images": len(data)}


def _as_begun(facts: Mapping[str, Any], recipe: Recipe, order: Order, stage: Stage, where: Where, log: Log) -> tuple[Order, Recipe, Stage, Where]:
    """A resumed run keeps the plan, configuration and precision with which it was begun."""
    asked = order.asked()
    if any(asked.values()) and asked != facts["asked"]:
        raise UserError(f"{order.out} was begun with other options or another budget, which a resumed run keeps: leave them out, or train anew")
    begun = facts["where"]
    if begun["threads"] != where.threads or begun["device"] != where.device:
        log.say(f"note: begun on {begun['device']} with {begun['threads']} threads, now {where.device} with {where.threads}: "
                "the result will not be bit for bit that of an unbroken run")
    parents = {role: str(order.out / part["run"]) for role, part in facts["parents"].items()} | dict(order.parents)
    source = order.source or facts["data"]["source"]
    begun_order = replace(order, source=source, seed=facts["seed"], size=facts["size"], parents=parents)
    begun_stage = next(s for s in recipe.stages if s.name == stage.name)
    return begun_order, recipe, begun_stage, replace(where, precision=begun["precision"])
