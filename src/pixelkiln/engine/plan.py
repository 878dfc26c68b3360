"""What a training command says, and the number of steps that it comes to."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.protocols import Method
from ..core.recipe import Stage
from ..core.types import UserError
from ..data import Feed, ImageSet
from .build import make
from .log import Log, duration
from .loop import Trainer
from .pace import profile
from .parallel import Team
from .sample import preview
from .watch import Mode
from .where import Where

__all__ = ["SAMPLES", "Budget", "Order", "plan"]

SAMPLES = 10  # sample grids in a run
GOLDEN = (5**0.5 - 1) / 2
OUTLIER = 5


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
    code: str = ""  # the recipe of a parent that was made by code outside the library: named, it may be imported
    watch: Mode = "auto"  # of collapse: off, warn, rollback; auto: warn where several rows play against each other

    def asked(self) -> dict[str, Any]:
        """What was said about the recipe and its length, for a resumed run to be held against."""
        said = {} if self.watch == "auto" else {"watch": self.watch}
        return {"changes": dict(self.changes), "budget": {k: v for k, v in asdict(self.budget).items() if v is not None}} | said


def plan(order: Order, stage: Stage, data: ImageSet, parents: Mapping[str, Method], where: Where, log: Log, trains: bool) -> tuple[int, dict[str, Any]]:
    """Number of steps, and how it came about. A wall-clock budget is turned into steps by timing a throw-away copy."""
    config, budget = stage.train, order.budget
    if config.batch % config.accumulate:
        many = where.team.size > 1
        told = f"a step in {config.accumulate} parts, for {where.team.size} processes," if many else f"--train.accumulate {config.accumulate}"
        raise UserError(f"{told} does not divide --train.batch {config.batch}: choose a multiple")
    if not trains:
        return 0, {"by": "nothing to train in steps"}
    if budget.seconds is None:
        if budget.images is not None:
            return max(1, math.ceil(budget.images / config.batch)), {"by": "images", "images": budget.images}
        return budget.steps or config.steps, {"by": "steps" if budget.steps else "recipe"}
    start, team = time.perf_counter(), where.team
    copy = make(stage, data.info, parents, order.seed)
    where.place(copy)
    feed = Feed(data, config.batch, stage.data, order.seed, where.device, where.layout == "channels-last")
    trial = Trainer(copy, config, feed.batch, order.seed, config.steps, where)
    if not trial.rows:
        return 0, {"by": "closed form"}
    timed = _timed(trial, team, budget.seconds)
    per_step = statistics.fmean(seconds for _, seconds in timed)
    feed.close()
    begin = time.perf_counter()
    with trial.sampling():
        preview(copy, 64, where)
    grids = SAMPLES * (time.perf_counter() - begin)
    after = max(budget.seconds - (time.perf_counter() - start), budget.seconds / 2)
    left = max(after - grids, budget.seconds / 2)  # one slow grid, on a busy machine, says little
    total = team.agree(lambda: max(1, int(left / per_step)))
    log.say(f"budget {duration(budget.seconds)}: {total} steps of {per_step * 1e3:.1f} ms ({config.batch / per_step:.0f} images/s)")
    pace = {"seconds": after, "quarters": profile(timed)}
    return total, {"by": "time", "seconds": budget.seconds, "steps": total, "step_seconds": per_step, "steps_timed": len(timed), "pace": pace}


def _timed(trial: Trainer, team: Team, seconds: float) -> list[tuple[float, float]]:
    """Places in the training, as shares of it, and seconds of a step there.

    What comes late or now and then costs, too: a discriminator that joins half-way, a penalty every 16 steps. So steps are timed as if they stood at
    shares of the training that the golden ratio spreads; one that took more than OUTLIER times the median was disturbed, and counts as that much.
    """
    spent: list[float] = []
    shares: list[float] = []
    for k in range(2):
        trial.step(k)
        trial.look()
    while any(team.most(len(spent) < 5 or (sum(spent) < min(5.0, seconds / 20) and len(spent) < 200))):
        k, share = len(spent) + 2, GOLDEN * (len(spent) + 1) % 1
        trial.total = max(k + 1, round(k / share))
        begin = time.perf_counter()
        trial.step(k)
        trial.look()
        spent.append(time.perf_counter() - begin)
        shares.append(share)
    most = OUTLIER * statistics.median(spent)
    return [(share, min(x, most)) for share, x in zip(shares, spent, strict=True)]
