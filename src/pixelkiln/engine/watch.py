"""A watch on collapse: what a generator still draws, and whether its rival has won. It knows protocols and numbers, never a concrete method.

At a look, a fixed number of images is drawn with the averaged weights, always from the same seeds, and compared with fixed real ones:

    modes      classes that a classifier of the data finds among them        kl          KL(their classes || the data's), nats
    coverage   share of real images with a drawn one nearby                  recall      share of real images near drawn ones

Features are those of the data's classifier, where there is one, else means of pixels. Between looks it follows the share of pairs, one real and one
drawn, that a discriminator tells apart (whatever a row logs as `told`). A look changes nothing: it draws from streams of its own, and the loop
seeds every step anew. What it remembers is saved with each checkpoint, so that its verdicts are functions of the step, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..core.config import from_json
from ..core.protocols import Method, Update
from ..core.rng import permutation
from ..core.types import Ability, Condition, Request, UserError
from ..data import ImageSet
from ..metrics import Modes, neighborhood_scores
from .extractor import FeatureExtractor
from .features import ExtractorConfig, extractor_for, is_kept
from .sample import generate, in_turn, labels_for, seeds_for
from .where import Where

__all__ = ["Choice", "Mode", "State", "Watch", "chosen", "classifier_of"]

Mode = Literal["auto", "off", "warn", "rollback"]

DRAWN, REAL = 256, 512  # images of a look
SHARE = 0.01  # of the images that training sees, at most, are drawn to be looked at
TAUGHT = 1 / 40  # ... and are shown to a classifier that is not there yet
CELLS = 8  # sides of the means of pixels
MODES_LEFT, COVERAGE_LEFT = 1 / 2, 1 / 3  # of the most that was seen: what is no more has collapsed
BEGUN = 0.05  # coverage that can be lost
TOLD, LONG = 0.99, 0.2  # share of pairs told apart, and share of the run in which it never is lower: the discriminator has won
MOST = 3  # rollbacks of a run


@dataclass
class State:
    """What the watch remembers. healthy: the last step at which nothing was wrong; modes, coverage: the most seen; said: kinds of trouble that were told of."""

    rollbacks: int = 0
    healthy: int = -1
    modes: float = 0.0
    coverage: float = 0.0
    won: int = 0  # steps in a row in which the discriminator told nearly all pairs apart
    said: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, data: Any) -> State:
        """What `to_json` gave. UserError for anything else."""
        found: State = from_json(cls, data, "the watch of the checkpoint")
        return found


@dataclass(frozen=True)
class Choice:
    """What a run keeps in recipe.json: whether it is watched, and whether a classifier of its data helps."""

    mode: Mode = "off"
    classifier: bool = False


class Watch:
    """Looks, verdicts and what they rest on. classifier: gives one of the data, at the first look, or none."""

    def __init__(self, mode: Mode, method: Method, data: ImageSet, total: int, batch: int, where: Where, classifier: Callable[[], FeatureExtractor | None] = lambda: None) -> None:
        self.mode, self.method, self.data, self.total, self.batch, self.where, self.classifier = mode, method, data, total, batch, where, classifier
        self.state = State()
        self.counts = None if data.labels is None else torch.bincount(data.labels.cpu(), minlength=len(data.classes))
        self.real: Tensor | None = None
        self.extractor: FeatureExtractor | None = None

    def due(self, step: int, sample_every: int) -> bool:
        """Whether a look belongs after `step`: with the sample grids, or those of them that keep its cost small; never in a run that is too short for one."""
        least = math.ceil(DRAWN / SHARE / self.batch)
        every = sample_every * math.ceil(least / sample_every)
        return step % every == 0 or (step == self.total >= least)

    def follow(self, numbers: Mapping[str, float], steps: int) -> None:
        """Take note of the terms logged for so many steps."""
        told = [value for name, value in numbers.items() if name.rsplit("/", 1)[-1] == "told"]
        self.state.won = self.state.won + steps if told and min(told) >= TOLD else 0

    def look(self) -> dict[str, float]:
        """What is seen now, by name (nothing of a method that needs a source, or draws no images). To be called with the weights that sample."""
        if Ability.SOURCE in self.method.abilities or not self.method.generates:
            return {}
        seeds = seeds_for(1, DRAWN)
        drawn = generate(self.method, Request(seeds, self._condition(seeds)), self.where, batch=DRAWN)
        return self.where.team.agree(lambda: self._compared(drawn))

    def _condition(self, seeds: tuple[int, ...]) -> Condition:
        """Labels as often as in the data; captions in turn."""
        if Ability.LABEL in self.method.abilities and self.counts is not None and int(self.counts.sum()):
            return Condition(label=labels_for(None, self.method.info.classes, self.counts.tolist(), seeds))
        return in_turn(self.method, len(seeds))

    def _features(self, images: Tensor) -> Tensor:
        """uint8 (n, C, H, W) -> (n, d)."""
        if self.extractor is not None:
            return self.extractor.features(images)
        sides = (min(CELLS, images.shape[2]), min(CELLS, images.shape[3]))
        return adaptive_avg_pool2d(images.float() / 255, sides).flatten(1)

    def _compared(self, drawn: Tensor) -> dict[str, float]:
        """The numbers of a look."""
        if self.real is None:
            self.extractor = self.classifier()
            self.real = self._features(self.data.images_of(permutation(len(self.data), "watch")[:REAL]))
        features, found = self._features(drawn), {}
        if self.extractor is not None and self.counts is not None:
            there, of = Modes(len(self.counts)), Modes(len(self.counts))
            there.update(self.extractor.probabilities(features).argmax(1))
            of.counts = self.counts
            found = {"watch/modes": float(there.num_found()), "watch/kl": there.kl(of)}
        k = min(5, len(self.real) - 1)
        if k > 0:
            near = neighborhood_scores(real=self.real, fake=features, k=k)
            found |= {"watch/recall": near.recall, "watch/coverage": near.coverage}
        return {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}

    def judge(self, step: int, seen: Mapping[str, float]) -> dict[str, str]:
        """What is wrong after `step`, by kind, in words; the most that was seen is remembered."""
        s, wrong = self.state, {}
        modes, coverage = seen.get("watch/modes"), seen.get("watch/coverage")
        if modes is not None:
            known = 0 if self.counts is None else int((self.counts > 0).sum())
            most = max(s.modes, known / 2 if 3 * step >= self.total else 0)  # what has not begun by a third of the run never will
            if modes <= MODES_LEFT * most:
                wrong["modes"] = f"the generator draws {modes:.0f} of {known} classes, and has drawn {s.modes:.0f}: it has collapsed onto a part of the data"
            s.modes = max(s.modes, modes)
        if coverage is not None:
            if s.coverage >= BEGUN and coverage <= COVERAGE_LEFT * s.coverage:
                wrong["coverage"] = f"{coverage:.0%} of the real images have a drawn one nearby, and {s.coverage:.0%} had: variety is being lost"
            s.coverage = max(s.coverage, coverage)
        if s.won >= LONG * self.total:
            wrong["told"] = f"for {s.won} steps the discriminator has told {TOLD:.0%} of all pairs apart: it has won, and the generator learns little from it"
        return wrong

    def advise(self, wrong: Mapping[str, str], opts: Mapping[str, Any]) -> list[str]:
        """A line for each kind of trouble that was not told of before."""
        new = [kind for kind in wrong if kind not in self.state.said]
        self.state.said = (*self.state.said, *new)
        lower = " ".join(f"--train.opts.{name}.lr" for name in opts)
        why = "has been tried" if self.state.rollbacks >= MOST else "--watch rollback does it by itself"
        return [f"warning: {wrong[kind]}. Try lower {lower} ({why}), or another recipe of the family (docs/watch.md)" for kind in new]

    def begins(self, step: int) -> bool:
        """Whether training begins, with a state that is to be saved, to come back to."""
        return self.state.healthy < 0 and self.passed(step)

    def passed(self, step: int) -> bool:
        """All is well after `step`: whether it is to be saved, to come back to."""
        self.state.healthy = step if self.may_go_back else self.state.healthy
        return self.may_go_back

    def go_back(self, saved: Mapping[str, Any]) -> None:
        """Remember what was known then, and that it is another try."""
        known = State.of(saved)
        self.state = replace(known, rollbacks=self.state.rollbacks + 1, said=self.state.said, won=0)

    @property
    def may_go_back(self) -> bool:
        """Whether a collapse is to be taken back."""
        return self.mode == "rollback" and self.state.rollbacks < MOST


def chosen(mode: Mode, method: Method, data: ImageSet, images: int) -> Choice:
    """For a run that sees so many images; auto is warn where several rows play, and off elsewhere."""
    rows = [row for row in method.updates() if isinstance(row, Update)]
    taken: Mode = ("warn" if len(rows) > 1 else "off") if mode == "auto" else mode if rows else "off"
    able = taken != "off" and data.labels is not None and len(data.classes) >= 2 and images * SHARE >= DRAWN
    return Choice(taken, able and (is_kept(data) or ExtractorConfig.default(data.info.shape).images <= TAUGHT * images))


def classifier_of(data: ImageSet, say: Callable[[str], None]) -> FeatureExtractor | None:
    """The data's classifier; None, and a note, where it cannot be kept."""
    try:
        return extractor_for(data, log=say)
    except UserError as e:
        say(f"note: the watch goes without a classifier: {e}")
        return None
