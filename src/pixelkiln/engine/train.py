"""Training a recipe into a run folder: plan, stages, checkpoints, resuming, interruption."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.catalog import find, override, stages_to_json
from ..core.images import grid, save_png
from ..core.protocols import Method
from ..core.recipe import Recipe, Stage
from ..core.runs import Run
from ..core.files import write_json
from ..core.types import Batch, UserError
from ..data import Feed, ImageSet, open_source

from .build import load_method, make, open_run, parent_digest, versions
from .log import Log, duration
from .loop import Diverged, Trainer
from .sample import preview
from .where import Where, processor

__all__ = ["Budget", "Interrupted", "Order", "train"]


class Interrupted(Exception):
    """A signal stopped the run after everything was saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass(frozen=True)
class Budget:
    """How long: one of steps, images, seconds; none of them = as the recipe says."""

    steps: int | None = None
    images: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Order:
    """Everything that a training command says. `recipe` is a name, `changes` are dotted overrides."""

    recipe: str
    source: str
    out: Path
    size: str = "small"
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    changes: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def train(order: Order, where: Where, resume: bool = False, log: Log | None = None) -> Run:
    """Train a recipe into order.out, or go on with what is there; returns the run of its last stage."""
    log = log or Log()
    recipe = override(find(order.recipe)(order.size), order.changes)
    held = Run(order.out)
    if held.recipe_file.exists() and resume and (name := held.read_recipe()["recipe"]) != order.recipe:
        raise UserError(f"{order.out} holds a run of {name!r}, not of {order.recipe!r}")
    if held.recipe_file.exists() and not resume:
        raise UserError(f"{order.out} already holds a run: add --resume to go on with it, or choose another --out")
    if not held.recipe_file.exists() and order.out.exists() and any(p for p in order.out.iterdir() if p.name != "stages"):
        raise UserError(f"{order.out} exists and is not a run folder: choose another --out")
    for stage in recipe.stages[:-1]:
        part = replace(order, out=order.out / "stages" / stage.name, budget=_share(order.budget, len(recipe.stages)))
        _stage(part, recipe, stage, where, log, {})
    inner = {s.name: order.out / "stages" / s.name for s in recipe.stages[:-1]}
    return _stage(replace(order, budget=_share(order.budget, len(recipe.stages))), recipe, recipe.last, where, log, inner)


def _share(budget: Budget, parts: int) -> Budget:
    """An equal share of the budget for each stage."""
    return Budget(*(None if v is None else type(v)(v / parts) for v in (budget.steps, budget.images, budget.seconds)))


def _stage(order: Order, recipe: Recipe, stage: Stage, where: Where, log: Log, inner: Mapping[str, Path]) -> Run:
    """Train one stage into its own run folder; one that is complete is left as it is."""
    run = Run(order.out)
    known = run.recipe_file.exists()
    if known:
        opened = open_run(run.path, order.recipe)
        order, recipe, stage, where = _as_begun(opened.facts, opened.recipe, order, stage, where, log)
    data = open_source(order.source, stage.data, "train")
    roles = {role: str(inner[name]) if name else order.parents.get(role, "") for role, name in stage.parents.items()}
    parents = {role: load_method(path, order.recipe) for role, path in roles.items() if path}
    methods = {role: method for role, (method, _) in parents.items()}
    method = make(stage, data.info, methods, order.seed)
    where.place(method)
    if known:
        facts = dict(run.read_recipe())
        if facts["data"]["digest"] != data.digest():
            raise UserError(f"{order.source} has changed since {run.path} was begun; train anew with another --out")
    else:
        total, plan = _plan(order, stage, data, methods, where, log, bool(method.updates()))
        facts = {
            "recipe": order.recipe, "size": order.size, "stage": stage.name, "seed": order.seed, "stages": stages_to_json(recipe.stages),
            "data": {"source": _source(order.source), "digest": data.digest(), "name": data.name, "shape": list(data.info.shape),
                     "classes": list(data.classes), "images": len(data)},
            "parents": {role: {"run": os.path.relpath(roles[role], run.path), "digest": parent_digest(o)} for role, (_, o) in parents.items()},
            "total": total, "plan": plan, "command": order.command, "versions": versions(),
            "where": {"device": where.device, "precision": where.precision, "threads": where.threads, "compile": where.compile,
                      "processor": processor()},
            "parameters": sum(p.numel() for p in method.parameters()),
        }
        write_json(run.recipe_file, facts)
    _execute(run, stage, method, data, facts, where, log)
    return run


def _source(source: str) -> str:
    """The source as it will be found from anywhere."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _as_begun(facts: Mapping[str, Any], recipe: Recipe, order: Order, stage: Stage, where: Where, log: Log) -> tuple[Order, Recipe, Stage, Where]:
    """A resumed run keeps the plan, configuration and precision with which it was begun."""
    begun = facts["where"]
    if begun["threads"] != where.threads or begun["device"] != where.device:
        log.say(f"note: begun on {begun['device']} with {begun['threads']} threads, now {where.device} with {where.threads}: "
                "the result will not be bit for bit that of an unbroken run")
    source = order.source or facts["data"]["source"]
    begun_stage = next(s for s in recipe.stages if s.name == stage.name)
    return (replace(order, source=source, seed=facts["seed"], size=facts["size"]), recipe, begun_stage,
            replace(where, precision=begun["precision"]))


def _plan(order: Order, stage: Stage, data: ImageSet, parents: Mapping[str, Method], where: Where, log: Log, trains: bool) -> tuple[int, dict[str, Any]]:
    """Number of steps, and how it came about. A wall-clock budget is turned into steps by timing a throw-away copy."""
    config, budget = stage.train, order.budget
    if not trains:
        return 0, {"by": "nothing to train in steps"}
    if budget.seconds is None:
        if budget.images is not None:
            return max(1, math.ceil(budget.images / config.batch)), {"by": "images", "images": budget.images}
        return budget.steps or config.steps, {"by": "steps" if budget.steps else "recipe"}
    start = time.perf_counter()
    copy = make(stage, data.info, parents, order.seed)
    where.place(copy)
    feed = Feed(data, config.batch, stage.data, order.seed, where.device, channels_last=True)
    trial = Trainer(copy, config, feed.batch, order.seed, config.steps, where)
    if not trial.rows:
        return 0, {"by": "closed form"}
    trial.step(0)
    trial.step(1)
    trial.look()
    spent: list[float] = []
    while len(spent) < 5 or (sum(spent) < min(5.0, budget.seconds / 20) and len(spent) < 200):
        begin = time.perf_counter()
        trial.step(len(spent) + 2)
        trial.look()
        spent.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    with trial.sampling():
        preview(copy, 64, where)
    grids = SAMPLES * (time.perf_counter() - begin)
    per_step = sorted(spent)[len(spent) // 2]
    left = budget.seconds - (time.perf_counter() - start) - grids
    total = max(1, int(left / per_step))
    log.say(f"budget {duration(budget.seconds)}: {total} steps of {per_step * 1e3:.1f} ms ({config.batch / per_step:.0f} images/s)")
    return total, {"by": "time", "seconds": budget.seconds, "step_seconds": per_step, "steps_timed": len(spent)}


SAMPLES = 10  # sample grids in a run
MINUTES = 5.0  # longest time between checkpoints


def _execute(run: Run, stage: Stage, method: Method, data: ImageSet, facts: Mapping[str, Any], where: Where, log: Log) -> None:
    """The fits and the steps, with everything written on the way."""
    config, total = stage.train, int(facts["total"])
    feed = Feed(data, config.batch, stage.data, facts["seed"], where.device, channels_last=True)
    trainer = Trainer(method, config, feed.batch, facts["seed"], total, where)
    point, bad = run.last_good()
    for wrong in bad:
        log.say(f"note: {wrong}; using an older checkpoint")
    done, spent = 0, 0.0
    if point is not None:
        trainer.restore(point.tensors, point.state["seen"])
        done, spent = point.step, float(point.state["seconds"])
        run.rewind(done)
        log.say(f"going on from step {done} of {total}" if done < total else f"{run.path} is complete: {total} steps")
        if done >= total:
            return
    elif run.records():
        run.rewind(-1)
    session = Session(run, trainer, method, total, spent, where)
    try:
        if trainer.fits and point is None:
            run.append({"step": 0} | trainer.fit(feed.passes))
        session.loop(done, config.log_every, config.sample_every, config.save_every, log)
    except Diverged as e:
        good, _ = run.last_good()
        kept = f"the last good checkpoint is {good.path}" if good else "no checkpoint had been saved yet"
        raise Diverged(f"training stopped: {e}; {kept}. Try a lower --train.opts.*.lr, or --precision fp32") from None


@dataclass
class Session:
    """One sitting of a run: what is written and when."""

    run: Run
    trainer: Trainer
    method: Method
    total: int
    spent: float  # seconds of training before this sitting
    where: Where

    def loop(self, done: int, log_every: int, sample_every: int | None, save_every: int | None, log: Log) -> None:
        """Steps from `done` up to the total."""
        self.begin = time.perf_counter()
        sample_every = sample_every or max(1, math.ceil(self.total / SAMPLES))
        saved = logged = time.perf_counter()
        last = done
        with signals() as caught, log.meter(f"{self.run.path.name}", self.total, done) as meter:
            for k in range(done, self.total):
                self.trainer.step(k)
                step, now = k + 1, time.perf_counter()
                end = step == self.total
                if step % log_every == 0 or end:
                    numbers = self.trainer.look()
                    rate = (step - last) * self.trainer.config.batch / max(now - logged, 1e-9)
                    self.run.append({"step": step, **numbers, "images_per_s": round(rate, 1), "seconds": round(self.seconds(), 3)})
                    meter.at(step, numbers)
                    last, logged = step, now
                if step % sample_every == 0 or end:
                    self.draw(step)
                    logged += time.perf_counter() - now
                stop = caught[0] if caught else None
                if stop or end or (save_every and step % save_every == 0) or now - saved > 60 * MINUTES:
                    self.save(step)
                    saved = time.perf_counter()
                if stop and not end:
                    raise Interrupted(f"stopped at step {step} of {self.total}, all saved; go on with --resume", stop)
        if self.total == 0 or done == self.total:
            self.draw(0)
            self.save(0)

    def seconds(self) -> float:
        """Wall-clock seconds of training so far, all sittings."""
        return self.spent + time.perf_counter() - self.begin

    def save(self, step: int) -> None:
        """A checkpoint, if everything in it is finite."""
        self.trainer.check()
        state = {"seen": self.trainer.seen(), "seconds": round(self.seconds(), 3)}
        self.run.save(step, self.trainer.groups(), state)

    def draw(self, step: int) -> None:
        """The same seeds once more (nothing for a method that needs a source image)."""
        with self.trainer.sampling():
            images = preview(self.method, 64, self.where)
        if images is not None:
            save_png(self.run.path / "samples" / f"step-{step:08d}.png", grid(images, None))


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them, so that the step can be finished and saved; a second one kills."""
    caught: list[int] = []

    def note(signum: int, _: object) -> None:
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
