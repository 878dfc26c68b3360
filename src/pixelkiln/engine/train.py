"""Training a recipe into a run folder: its stages one after the other, each planned, begun or resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.catalog import find, override, stages_to_json
from ..core.config import from_json, to_json
from ..core.files import write_json
from ..core.protocols import Update
from ..core.recipe import DataConfig, Recipe, Stage
from ..core.runs import Run
from ..core.types import UserError
from ..data import ImageSet, Streamed
from .access import Access
from .build import load_method, make, parent_digest, resolve, versions
from .log import Log
from .loop import optimizers
from .plan import Budget, Order, plan
from .session import execute
from .watch import chosen
from .where import Where, compilable

__all__ = ["Budget", "Order", "train"]


def train(order: Order, where: Where, resume: bool = False, log: Log | None = None, access: Access = Access()) -> Run:
    """Train a recipe into order.out, or go on with what is there; returns the run of its last stage.

    Of several processes only the first reads and writes run folders (stages and parents that a recipe builds on are read by all).
    """
    log = (log or Log()) if where.team.first else Log(quiet=True)
    recipe = override(find(order.recipe)(order.size), order.changes)
    from_json(int, order.seed, "--seed")
    with ExitStack() as held:
        where.team.agree(lambda: _take_folder(order, resume, held, log))
        for stage in recipe.stages[:-1]:
            part = replace(order, out=order.out / "stages" / stage.name, budget=_share(order.budget, len(recipe.stages)))
            where.team.agree(partial(_hold, part.out, held, log))
            _stage(part, recipe, stage, where, log, {}, access)
        inner = {s.name: order.out / "stages" / s.name for s in recipe.stages[:-1]}
        return _stage(replace(order, budget=_share(order.budget, len(recipe.stages))), recipe, recipe.last, where, log, inner, access)


def _hold(folder: Path, held: ExitStack, log: Log) -> None:
    """Keep other trainings out of a run folder until `held` is closed."""
    held.enter_context(Run(folder).hold(log.say))


def _take_folder(order: Order, resume: bool, held: ExitStack, log: Log) -> None:
    """Hold the run's folder; refuse one that holds something else than what is asked for."""
    _hold(order.out, held, log)
    run = Run(order.out)
    if run.recipe_file.exists() and resume and (name := run.read_recipe()["recipe"]) != order.recipe:
        raise UserError(f"{order.out} holds a run of {name!r}, not of {order.recipe!r}")
    if run.recipe_file.exists() and not resume:
        raise UserError(f"{order.out} already holds a run: add --resume to go on with it, or choose another --out")
    if not run.recipe_file.exists() and any(p.name != "stages" and not p.name.startswith(".") for p in order.out.iterdir()):
        raise UserError(f"{order.out} exists and is not a run folder: choose another --out")


def _share(budget: Budget, parts: int) -> Budget:
    """An equal share of the budget for each stage."""
    steps, images = (None if v is None else max(1, v // parts) for v in (budget.steps, budget.images))
    return Budget(steps, images, None if budget.seconds is None else budget.seconds / parts)


def _stage(order: Order, recipe: Recipe, stage: Stage, where: Where, log: Log, inner: Mapping[str, Path], access: Access) -> Run:
    """Train one stage into its own run folder; one that is complete is left as it is."""
    run, team = Run(order.out), where.team
    facts = team.agree(lambda: run.read_recipe() if run.recipe_file.exists() else None)
    if facts is not None:
        order, recipe, stage, where = _as_begun(facts, resolve(run, facts, order.recipe).recipe, order, stage, where, log)
    roles = {role: str(inner[name]) if name else order.parents.get(role, "") for role, name in stage.parents.items()}
    code = {role: order.recipe if name else order.code or order.recipe for role, name in stage.parents.items()}
    parents = {role: load_method(path, code[role]) for role, path in roles.items() if path}
    methods = {role: method for role, (method, _) in parents.items()}
    for _, parent in parents.values():
        if facts is None:
            recipe, stage = _changed(recipe, replace(stage, data=_data_after(parent.stage.data, recipe, stage, order.changes)))
        order = replace(order, source=order.source or parent.facts["data"]["source"])
    if not order.source:
        raise UserError("which images? add --data SRC: digits, glyphs, shapes, or a path to your own")
    data = access.open(order.source, stage.data, "train", log)
    method = make(stage, data.info, methods, order.seed)
    where.place(method)
    if facts is not None and not _same(facts["data"], data):
        raise UserError(f"{order.source} has changed since {run.path} was begun; train anew with another --out")
    if team.agree(data.digest) != data.digest():
        raise UserError(f"{order.source} holds other images here than for process 0: give all processes the same data")
    if facts is None:
        trains = any(isinstance(row, Update) for row in method.updates())
        if trains:
            optimizers(method, stage.train)  # what they refuse, before anything is written
            if method.still and stage.data.moves:
                raise UserError(f"{order.recipe} is to keep the codes of each image, and --data.flip, crop or translate, given here or to the run that it builds on, "
                                "change it each time: leave out the one or the other")
            parts = math.lcm(stage.train.accumulate, team.size)
            recipe, stage = _changed(recipe, replace(stage, train=replace(stage.train, accumulate=parts)))
        with compilable(where, order.recipe):
            total, how = plan(order, stage, data, methods, where, log, trains)
        built_on = {role: {"run": os.path.relpath(roles[role], run.path), "digest": parent_digest(o)} for role, (_, o) in parents.items()}
        facts = {
            "recipe": order.recipe, "size": order.size, "stage": stage.name, "seed": order.seed, "stages": stages_to_json(recipe.stages),
            "data": _data_facts(order.source, data), "parents": built_on, "total": total, "plan": how, "asked": order.asked(), "command": order.command,
            "where": where.facts(), "versions": versions(),
            "parameters": sum(p.numel() for p in method.parameters()),
            "watch": team.agree(lambda: to_json(chosen(order.watch, method, data, total * stage.train.batch))),
        }
        if team.first:
            write_json(run.recipe_file, facts)
        log.say(f"on {where}")
    with compilable(where, order.recipe):
        execute(run, stage, method, data, facts, where, log)
    return run


def _data_after(parent: DataConfig, recipe: Recipe, stage: Stage, changes: Collection[str]) -> DataConfig:
    """Images as the run that a stage builds on has them, but for what the command says; as the recipe has them, where it says anything."""
    prefix = "data." if len(recipe.stages) == 1 else f"{stage.name}.data."
    said = {f.name: getattr(stage.data, f.name) for f in fields(DataConfig) if prefix + f.name in changes}
    by_recipe = replace(stage.data, **{name: getattr(DataConfig(), name) for name in said})
    return replace(parent, **said) if by_recipe == DataConfig() else stage.data


def _same(known: Mapping[str, Any], data: ImageSet) -> bool:
    """Whether these are the images that a run was begun with. Where one of them is streamed, the listing tells."""
    streamed = known.get("streamed") or isinstance(data.images, Streamed)
    return bool(known["listing"] == data.listing) if streamed and known.get("listing") else bool(known["digest"] == data.digest())


def _changed(recipe: Recipe, stage: Stage) -> tuple[Recipe, Stage]:
    """The recipe with another version of one of its stages."""
    return replace(recipe, stages=tuple(stage if s.name == stage.name else s for s in recipe.stages)), stage


def _data_facts(source: str, data: ImageSet) -> dict[str, Any]:
    """What a run has to know of its data: where they are, what they are, and how often each class occurs."""
    counts = [] if data.labels is None else torch.bincount(data.labels.cpu(), minlength=len(data.classes)).tolist()
    where = str(Path(source).resolve()) if Path(source).exists() else source
    return {"source": data.source or where, "digest": data.digest(), "name": data.name, "shape": list(data.info.shape), "classes": list(data.classes),
            "counts": counts, "images": len(data), "listing": data.listing,
            "streamed": isinstance(data.images, Streamed)} | ({"skipped": list(data.skipped)} if data.skipped else {}) | ({"texts": list(data.info.texts)} if data.texts else {})


def _as_begun(facts: Mapping[str, Any], recipe: Recipe, order: Order, stage: Stage, where: Where, log: Log) -> tuple[Order, Recipe, Stage, Where]:
    """A resumed run keeps the plan, the configuration and the way to compute with which it was begun."""
    asked = order.asked()
    if any(asked.values()) and asked != facts["asked"]:
        raise UserError(f"{order.out} was begun with other options or another budget, which a resumed run keeps: leave them out, or train anew")
    begun, now = facts["where"], where
    where = now.kept(begun)
    for name in ("precision", "layout", "compile"):
        if name not in now.why and getattr(now, name) != getattr(where, name):
            log.say(f"note: begun with {name} {getattr(where, name)}, which a resumed run keeps")
    parts = next(s for s in recipe.stages if s.name == stage.name).train.accumulate
    if facts["total"] and parts % where.team.size:
        able = ", ".join(str(n) for n in range(1, parts + 1) if parts % n == 0)
        raise UserError(f"{order.out} was begun with {parts} parts a step, which {where.team.size} processes cannot share: go on with {able}")
    if begun["threads"] != where.threads or begun["device"] != where.device:
        log.say(f"note: begun on {begun['device']} with {begun['threads']} threads, now {where.device} with {where.threads}: "
                "the result will not be bit for bit that of an unbroken run")
    parents = {role: str(order.out / part["run"]) for role, part in facts["parents"].items()} | dict(order.parents)
    source = order.source or facts["data"]["source"]
    begun_order = replace(order, source=source, seed=facts["seed"], size=facts["size"], parents=parents)
    begun_stage = next(s for s in recipe.stages if s.name == stage.name)
    return begun_order, recipe, begun_stage, where
