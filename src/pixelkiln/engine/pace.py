"""How a run with a time to keep holds to it: its number of steps, looked at again while it trains.

What a step takes is timed before training begins ([plan](plan.py)). If another program had the machine then, or has it now, that many steps take
another time; so the run looks again when an eighth, a quarter and a half of its time are over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.config import from_json
from ..core.types import UserError

__all__ = ["Pace", "profile"]

LOOKS = (1 / 8, 1 / 4, 1 / 2)  # shares of the time
SLACK = 0.15  # a plan that is off by no more than this is kept
LEAST = 5  # steps between two looks
PAUSE = 60.0, 50  # seconds, and steps, from which on a single step is not slow, but the process was stopped (a suspended job, Ctrl-Z): time that is not counted


def profile(timed: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """(share of the training, seconds of a step there) of some steps -> what a step takes in each quarter of the training: medians, the lower of two."""
    quarters = [sorted(s for share, s in timed if min(int(4 * share), 3) == q) for q in range(4)]
    every = sorted(s for _, s in timed)
    return tuple(times[(len(times) - 1) // 2] for times in (q or every for q in quarters))


@dataclass
class Pace:
    """A time to keep. seconds: for all steps and sample grids; quarters: what a step takes in each quarter of the training, seconds."""

    seconds: float
    quarters: tuple[float, ...]
    mark: tuple[int, float] = field(default=(-1, 0.0), init=False)  # step and seconds of the last look of this sitting
    aside: float = field(default=0.0, init=False)  # seconds of this sitting that were spent on other things than steps
    grids: int = field(default=0, init=False)
    drawn: float = field(default=0.0, init=False)  # `aside` and `rested` of the whole sitting
    stepped: float = field(default=0.0, init=False)  # seconds at the last step, without what was drawn
    paused: float = field(default=0.0, init=False)  # seconds that are not counted

    @classmethod
    def of(cls, plan: Any) -> Pace | None:
        """The pace in a run's plan, or None where it has none. UserError: it makes no sense."""
        found = plan.get("pace") if isinstance(plan, Mapping) else None
        if found is None:
            return None
        seconds, quarters = (from_json(kind, found.get(name) if isinstance(found, Mapping) else None, f"recipe.json: plan.pace.{name}")
                             for name, kind in (("seconds", float), ("quarters", tuple[float, float, float, float])))
        if not all(0 < v < math.inf for v in (seconds, *quarters)):
            raise UserError("recipe.json: plan.pace: its numbers make no sense; the file is damaged")
        return cls(seconds, quarters)

    def mean(self, a: float, b: float) -> float:
        """Mean of the quarters over shares a <= b of the training."""
        if b - a < 1e-9:
            return self.quarters[min(int(4 * a), 3)]
        return sum(v * max(0.0, min(b, (q + 1) / 4) - max(a, q / 4)) for q, v in enumerate(self.quarters)) / (b - a)

    def drew(self, seconds: float) -> None:
        """A grid of samples took so long."""
        self.aside, self.grids, self.drawn = self.aside + seconds, self.grids + 1, self.drawn + seconds

    def rested(self, seconds: float) -> None:
        """What no plan has counted, and may happen once (a look at collapse, which can begin with teaching a classifier), took so long: it is not of the time to keep."""
        self.paused, self.drawn = self.paused + seconds, self.drawn + seconds

    def went_back(self) -> None:
        """The run was taken back to an earlier step: the steps since the last look are not there any more."""
        self.mark = (-1, 0.0)

    def due(self, step: int, spent: float) -> bool:
        """Whether a look belongs after `step`, `spent` seconds into the training. To be asked after every step."""
        at, then = self.mark
        took, self.stepped = spent - self.drawn - self.stepped, spent - self.drawn
        if at >= 0 and took > max(PAUSE[0], PAUSE[1] * self.mean(0, 1)):
            self.paused += took
        spent -= self.paused
        if at < 0:  # the first step of a sitting is slower than others
            self.mark, self.aside, self.grids = (step, spent), 0.0, 0
            return False
        return step >= at + LEAST and any(then < share * self.seconds <= spent for share in LOOKS)

    def again(self, step: int, spent: float, total: int, grids: int) -> int:
        """The number of steps that fit: `total` if that is about right. `grids`: how many a whole run draws.

        The steps since the last look took r times what their place in the training lets expect; those to come will too.
        """
        spent -= self.paused
        (begin, then), self.mark = self.mark, (step, spent)
        took = max(spent - then - self.aside, 1e-9)
        left = self.seconds - spent - grids * max(0.0, 1 - spent / self.seconds) * self.aside / max(self.grids, 1)
        self.aside, self.grids = 0.0, 0
        r = took / (step - begin) / self.mean(min(begin / total, 1.0), min(step / total, 1.0))
        found = total
        for _ in range(8):  # how many there are says which part of the training they are
            found = step + max(1, int(left / (r * self.mean(min(step / found, 1.0), 1.0))))
        return total if abs(found - total) <= SLACK * total else found
