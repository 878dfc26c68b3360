"""One checkpoint, all solvers: a score against the number of network evaluations, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.protocols import Denoiser
from ..core.types import Ability, UserError
from ..solvers import SOLVERS, solver
from .charts import number
from .plots import plot
from .sample import Trained
from .sweep import Row, Sweep, markdown

__all__ = ["EVALUATIONS", "Setting", "compare", "known", "refuse_without_solver", "settings", "show", "steps_within"]

EVALUATIONS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
ADAPTIVE = 2  # steps of a solver that halves them as it needs: from the highest level to the lowest, and to the image


@dataclass(frozen=True)
class Setting:
    """One line of the table: a solver, with a guidance weight and a spacing where these were asked for (None: as the run has them)."""

    solver: str
    guidance: float | None = None
    spacing: str | None = None

    def __str__(self) -> str:
        more = [f"guidance {self.guidance:g}"] if self.guidance is not None else []
        return ", ".join([self.solver, *more, *([self.spacing] if self.spacing else [])])

    @property
    def knobs(self) -> dict[str, Any]:
        """What a request is told."""
        told = {"solver": self.solver, "guidance": self.guidance, "spacing": self.spacing}
        return {name: value for name, value in told.items() if value is not None}


def known(names: str) -> list[str]:
    """Solvers by name, with commas between them, or all; UserError for one that there is not."""
    if names == "all":
        return list(SOLVERS)
    found = [name.strip() for name in names.split(",")]
    for name in found:
        solver(name)
    return list(dict.fromkeys(found))


def settings(solvers: Sequence[str], guidances: Sequence[float | None], spacings: Sequence[str | None]) -> list[Setting]:
    """Every solver with every guidance weight and every spacing."""
    return [Setting(name, weight, spacing) for weight in guidances for spacing in spacings for name in solvers]


def refuse_without_solver(trained: Trained) -> None:
    """UserError unless the run is a denoiser that can be told a solver and a number of steps."""
    method = trained.method
    if not isinstance(method, Denoiser) or not {Ability.SOLVER, Ability.STEPS} <= method.abilities:
        raise UserError(f"{trained.opened.run.path} is a run of {trained.facts['recipe']}, which samples without a solver: give a run of a diffusion model")


def steps_within(name: str, budget: int) -> int | None:
    """The largest number of steps that costs at most `budget` evaluations (each step costs one or more); None where one step costs more."""
    costs = solver(name).evaluations
    return max((n for n in range(1, budget + 1) if costs(n) <= budget), default=None)


def compare(sweep: Sweep, lines: Sequence[Setting], budgets: Sequence[int]) -> dict[Setting, dict[int, Row]]:
    """The row of each setting for each budget of evaluations that suffices for a step; each number of steps is measured once.

    An adaptive solver has one row, of ADAPTIVE steps, for every budget that covers what it took.
    """
    found: dict[Setting, dict[int, Row]] = {line: {} for line in lines}
    for budget in budgets:
        for line in lines:
            steps = ADAPTIVE if solver(line.solver).adaptive else steps_within(line.solver, budget)
            if steps is not None:
                key = {"solver": line.solver, "steps": steps, "guidance": line.guidance, "spacing": line.spacing}
                found[line][budget] = sweep.row(key, steps=steps, **line.knobs)
    return found


def show(sweep: Sweep, found: Mapping[Setting, Mapping[int, Row]], budgets: Sequence[int]) -> tuple[str, str]:
    """The tables (Markdown, one a score) and the plot (SVG) of the first score."""
    tables = []
    for name in sweep.names:
        cells = [[str(line), *(round(rows[b][name], 4) if b in rows and rows[b]["evaluations"] <= b else None for b in budgets)]
                 for line, rows in found.items()]
        free = [(line, next(iter(rows.values()))) for line, rows in found.items() if solver(line.solver).adaptive]
        own = "".join(f" {line} chooses their number itself: {number(row['evaluations'])} for {number(round(row[name], 4))}." for line, row in free)
        tables.append(f"{sweep.caption(name)}. Columns: at most so many evaluations of the network.{own}\n\n" + markdown(["solver", *map(str, budgets)], cells))
    first = sweep.names[0]
    lines = {str(line): sorted({(float(r["evaluations"]), float(r[first])) for r in rows.values()}) for line, rows in found.items() if rows}
    return "\n".join(tables), plot(sweep.caption(first), lines, "evaluations of the network", sweep.floor[first], log_x=True)
