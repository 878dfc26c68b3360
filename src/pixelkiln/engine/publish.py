"""The report of a run, from what its folder holds: facts, curves, sample grids over time, and the newest evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.config import from_json
from ..core.files import read_json, write_bytes, write_json
from ..core.images import read_image
from ..core.runs import Run
from ..core.types import UserError
from ..data import ImageSet
from .access import Access
from .features import extractor_for
from .log import duration
from .report import ReportContext, build_report
from .sample import Trained

__all__ = ["data_of", "evaluation_of", "facts_for_people", "publish", "save_evaluation"]


def facts_for_people(trained: Trained) -> dict[str, str]:
    """What was trained, how long and where, in words."""
    facts, records = trained.facts, trained.opened.run.records()
    where, last = facts["where"], records[-1] if records else {}
    rates = sorted(r["images_per_s"] for r in records if "images_per_s" in r)
    found = {
        "recipe": facts["recipe"],
        "paper": trained.opened.recipe.paper,
        "command": facts["command"],
        "family": trained.opened.recipe.family,
        "size": facts["size"],
        "source": Path(facts["data"]["source"]).name,
        "steps": f"{facts['total']:,}",
        "images seen": f"{facts['total'] * trained.opened.stage.train.batch:,}",
        "seed": str(facts["seed"]),
        "device": f"{where['device']}, {where['processor']}",
        "precision": ", ".join([where["precision"], where.get("layout", "channels-last"), *(["compiled"] if where["compile"] else [])]),
        "threads": str(where["threads"]),
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
    }
    if where.get("why"):
        found["chosen because"] = "; ".join(f"{name}: {reason}" for name, reason in where["why"].items())
    if "seconds" in last:
        found["training time"] = duration(last["seconds"])
    if rates:
        found["images/s"] = f"{rates[len(rates) // 2]:,.0f} (median)"
    return found


def data_of(trained: Trained, source: str | None = None, access: Access = Access()) -> tuple[ImageSet, ImageSet]:
    """Training and test split of the data that the run was trained on (or of another source, prepared alike)."""
    config = trained.opened.stage.data
    where = source or trained.facts["data"]["source"]
    return access.open(where, config, "train"), access.open(where, config, "test")


def save_evaluation(trained: Trained, evaluation: dict[str, Any]) -> None:
    """Keep the evaluation in the run folder, where the report finds it."""
    write_json(trained.opened.run.path / "evaluation.json", evaluation)


def evaluation_of(run: Run) -> dict[str, Any] | None:
    """The newest evaluation in a run folder, None where there is none; what `save_evaluation` cannot have written is a UserError."""
    file = run.path / "evaluation.json"
    if not file.exists():
        return None
    found = read_json(file)
    with contextlib.suppress(KeyError, TypeError):
        metrics = found["metrics"]
        for name, kind in {"name": str, "value": float, "better": str, "floor": float | None, "protocol": Mapping[str, Any], "error": float | None}.items():
            for m in metrics:
                from_json(kind, m[name], f"{file}: {name}")
        for m in metrics:
            from_json(tuple[float, float] | None, m.get("interval"), f"{file}: interval")
        from_json(tuple[str, ...], found["warnings"], f"{file}: warnings")
        return dict(found)
    raise UserError(f"{file} is not an evaluation of ours: remove it, or run 'pixelkiln evaluate' again")


def publish(trained: Trained, train: ImageSet, test: ImageSet, extractor: Any = None) -> Path:
    """Write RUN/report.html; nearest images are found in features where there is an extractor."""
    run = trained.opened.run
    evaluation = evaluation_of(run)
    if evaluation is not None and extractor is None:
        extractor = extractor_for(train)
    history = [(int(p.stem.split("-")[-1]), read_image(p)) for p in run.samples()]
    with trained.where.autocast():
        html = build_report(ReportContext(trained.method, train, test, facts_for_people(trained), run.records(), history, evaluation, extractor,
                                          trained.facts["seed"]))
    target = run.path / "report.html"
    write_bytes(target, html.encode())
    return target
