"""A score that cannot be separated from how it was made: value, error, floor and protocol in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Estimate", "Report", "Result", "accuracy"]

Better = Literal["lower", "higher", "as the floor"]


def accuracy(*, predicted: Tensor, labels: Tensor) -> float:
    """Share of predicted (N,) that equal labels (N,), in [0, 1]; ValueError if the lengths differ or are 0."""
    if predicted.shape != labels.shape or not len(labels):
        raise ValueError(f"accuracy needs one prediction a label, and there are {tuple(predicted.shape)} and {tuple(labels.shape)}")
    return float((predicted == labels).double().mean())


@dataclass(frozen=True)
class Estimate:
    """A value, one standard error (None: it has none), and the number of parts that gave them (splits, points, paths)."""

    value: float
    error: float | None
    num: int


@dataclass(frozen=True)
class Result:
    """One score. floor: what the real test split scores under the same protocol (None: there is none); error: one standard error;
    interval: 95 % of the score of infinitely many samples."""

    name: str
    value: float
    better: Better
    floor: float | None
    protocol: Mapping[str, str | int | float]
    error: float | None = None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        error = "" if self.error is None else f" +/- {self.error:.2g}"
        error += "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        floor = "no floor" if self.floor is None else f"floor {self.floor:.4g}"
        protocol = ", ".join(f"{k} {v}" for k, v in self.protocol.items())
        return f"{self.name} {self.value:.4g}{error} ({floor}; {self.better} is better; {protocol})"


@dataclass(frozen=True)
class Report:
    """All scores of one set of samples, and what a reader must be warned of."""

    results: tuple[Result, ...]
    warnings: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Result:
        """The score of that name (KeyError)."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def shared(self) -> dict[str, str | int | float]:
        """The part of the protocol that all scores have in common."""
        first, *others = [dict(r.protocol) for r in self.results]
        return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}

    def table(self) -> list[dict[str, str]]:
        """Rows for printing, one a score: metric, value, floor, better, protocol (what is not in `shared`)."""
        shared, rows = self.shared(), []
        for r in self.results:
            own = ", ".join(f"{k} {v}" for k, v in r.protocol.items() if k not in shared)
            value = f"{r.value:.4g}" + ("" if r.error is None else f" ± {r.error:.2g}")
            value += "" if r.interval is None else f" [{r.interval[0]:.4g}, {r.interval[1]:.4g}]"
            floor = "–" if r.floor is None else f"{r.floor:.4g}"
            rows.append({"metric": r.name, "value": value, "floor": floor, "better": r.better, "protocol": own})
        return rows

    def to_json(self) -> dict[str, Any]:
        """{"metrics": [{"name", "value", "better", "floor", "protocol", "error"}], "warnings": [...]}: plain JSON values."""
        return {"metrics": [asdict(r) for r in self.results], "warnings": list(self.warnings)}
