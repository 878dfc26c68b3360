"""Scores of many settings of one run, with the same seeds and one reference; each is kept at once, in a file that a later call goes on with."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from ..core.files import read_json, write_bytes, write_json
from ..core.protocols import Denoiser, Method
from ..core.types import Ability, UserError
from .access import Access
from .build import parent_digest
from .charts import number
from .evaluate import check, chosen, floor_of, score_of
from .log import Log
from .measure import Ask, reference
from .named import extractor_named
from .sample import Trained, generate
from .scores import Sets, title
from .statistics import Statistics, statistics_of

__all__ = ["Row", "Sweep", "markdown"]

PART = 1000  # samples drawn and measured at a time
Row = Mapping[str, Any]


@final
class Sweep:
    """What is the same for all settings: the run, the real images with their statistics, seeds and labels, some knobs, the file of the scores.

    Several processes share the sampling; the first alone measures and writes. UserError: the file holds scores of something else.
    """

    def __init__(self, trained: Trained, file: Path, source: str | None, num: int, ask: Ask, label: Any = None, log: Log | None = None,
                 access: Access = Access(), **knobs: Any) -> None:
        self.trained, self.file, self.num, self.ask, self.label, self.log, self.knobs = trained, file, num, ask, label, log or Log(quiet=True), knobs
        if Ability.SOURCE in trained.method.abilities:
            raise UserError(f"{trained.opened.run.path} edits images that it is given: give a run that draws its own")
        self.train, self.test = reference(source or trained.facts["data"]["source"], trained, access, log)
        self.rows: list[dict[str, Any]] = []
        self.floor: dict[str, float | None] = {}
        self.names: list[str] = []
        trained.where.team.agree(self._prepare)

    def _prepare(self) -> None:
        """The reference's statistics, the scores of real test images, and what the file has."""
        train, test, ask = self.train, self.test, self.ask
        self.extractor = extractor_named(ask.extractor, train, ask.weights, self.log.say)
        labels = self.trained.request(self.num, ask.seed, self.label).cond.label if train.classes else None
        self.names = chosen(ask.metrics or ("fd",), labels is not None, self.extractor)
        check(self.names, self.num, labels, train, self.extractor)
        about = {"recipe": self.trained.facts["recipe"], "checkpoint": parent_digest(self.trained.opened), "ema std": self.trained.ema_std,
                 "data": train.digest(), "extractor": self.extractor.name, "weights": self.extractor.weights, "N": self.num, "seed": ask.seed,
                 "label": self.label, "metrics": self.names, "knobs": self.knobs, "precision": self.trained.where.precision}
        if self.file.exists():
            self._take(about)
        self.about, size = about, train.info.shape
        self.real = statistics_of(self.extractor, train, size, ask.seed)
        self.some = statistics_of(self.extractor, test, size, ask.seed, min(self.num, len(test))) if len(test) else None
        every = statistics_of(self.extractor, test, size, ask.seed) if "accuracy" in self.names and len(test) else None
        floors = {name: floor_of(name, every if name == "accuracy" else self.some, self.real, ask.seed) for name in self.names}
        self.floor = {name: None if score is None else score.value for name, score in floors.items()}

    def _take(self, about: Mapping[str, Any]) -> None:
        """The rows of the file, if they are about the same."""
        found = read_json(self.file)
        if not isinstance(found, dict) or not isinstance(found.get("about"), dict) or not isinstance(found.get("rows"), list):
            raise UserError(f"{self.file} holds no scores of ours: choose another --out")
        for name, value in about.items():
            if found["about"].get(name) != value:
                raise UserError(f"{self.file} holds scores of {'other' if name in ('metrics', 'knobs', 'weights') else 'another'} {name}: choose another --out, or remove it")
        self.rows = found["rows"]

    def row(self, key: Row, prepare: Callable[[], None] = lambda: None, **knobs: Any) -> Row:
        """The scores for a setting: from the file, or measured now, after `prepare()`; knobs as `Trained.sample`. {} for all processes but the first."""
        where = self.trained.where
        known = where.team.agree(lambda: next((r for r in self.rows if all(r.get(k, self) == v for k, v in key.items())), None))
        if known is not None:
            return dict(known)
        prepare()
        calls: Counter[str] = Counter()
        whole = self.trained.request(self.num, self.ask.seed, self.label, **self.knobs, **knobs)
        fake = Statistics(self.extractor, self.train.info.shape, self.ask.seed) if where.team.first else None
        start = time.perf_counter()
        with self.log.meter(" ".join(str(v) for v in key.values() if v is not None), self.num, unit="images") as meter:
            for i in range(0, self.num, PART):
                part = whole.take(slice(i, i + PART))
                with counted(self.trained.method, calls):
                    images = generate(self.trained.method, part, where)
                if fake is not None:
                    fake.update(images, labels=part.cond.label if self.train.classes else None)
                    meter.at(len(fake))
        if fake is None:
            return {}
        seconds = time.perf_counter() - start
        sets = Sets(fake, self.real, self.some, self.ask.seed, self.ask.num_bootstrap)
        found: dict[str, Any] = {**key, "evaluations": round(calls["denoise"] / calls["draw"], 2), "seconds": round(seconds, 3)}
        for name in self.names:
            score = score_of(name, sets)
            found |= {name: score.value, f"{name} error": score.error}
        self.rows.append(found)
        write_json(self.file, {"about": self.about, "floor": self.floor, "rows": self.rows})
        self.log.say(f"{', '.join(f'{k} {v}' for k, v in key.items() if v is not None)}: "
                     + ", ".join(f"{title(n, self.extractor)} {found[n]:.4g}" for n in self.names) + f" ({seconds:.1f} s)")
        return found

    def caption(self, name: str) -> str:
        """What a table or a plot of a score shows, and what real images have."""
        floor = self.floor[name]
        real = "" if floor is None or self.some is None else f"; {len(self.some):,} real test images: {number(round(floor, 4))}"
        return f"{title(name, self.extractor)} of {self.num:,} samples of {self.about['recipe']} against {self.train.name}{real}"

    def write(self, suffix: str, text: str) -> Path:
        """A file beside that of the scores."""
        target = self.file.with_suffix(suffix)
        write_bytes(target, text.encode())
        return target


@contextlib.contextmanager
def counted(method: Method, calls: Counter[str]) -> Iterator[None]:
    """Inside, batches that are drawn and evaluations of the denoiser are counted (guidance takes both halves in one)."""
    names = ["draw", *(["denoise"] if isinstance(method, Denoiser) else [])]

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return counting

    for name in names:
        setattr(method, name, watched(name, getattr(method, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(method, name)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; numbers with four digits, an en dash for None."""
    lines = [list(head), ["---"] * len(head), *([number(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
