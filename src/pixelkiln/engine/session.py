"""One sitting of a run: fits, steps, and everything that is written on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.config import from_json
from ..core.files import Unwritable, read_json, write_json
from ..core.images import grid, save_png
from ..core.protocols import Method
from ..core.recipe import Stage
from ..core.runs import Checkpoint, Run
from ..core.types import UserError
from ..data import Feed, ImageSet
from .log import Log, Meter
from .loop import Diverged, Trainer, plain
from .pace import Pace
from .parallel import Apart, Lost, Team
from .plan import SAMPLES
from .sample import preview
from .signals import Interrupted, signals
from .watch import Choice, State, Watch, classifier_of
from .where import Where

__all__ = ["Session", "execute"]

MINUTES = 5.0  # longest time between checkpoints


def execute(run: Run, stage: Stage, method: Method, data: ImageSet, facts: Mapping[str, Any], where: Where, log: Log) -> None:
    """The fits and the steps, with everything written on the way."""
    config, total, team = stage.train, int(facts["total"]), where.team
    _as_first(method, where)
    feed = Feed(data, config.batch, stage.data, facts["seed"], where.device, where.layout == "channels-last")
    trainer = Trainer(method, config, feed.batch, facts["seed"], total, where)
    point, bad = run.last_good() if team.first else (None, [])
    for wrong in bad:
        log.say(f"note: {wrong}; using an older checkpoint")
    done, spent, watch = 0, 0.0, _watch(trainer, data, facts, where, log)
    trainer.norms = watch is not None
    try:
        state = _restored(trainer, point, team)
        if state is not None:
            if watch is not None:
                watch.state = State.of(state["watch"])
                trainer.retry(watch.state.rollbacks)
            done, spent = int(state["step"]), float(state["seconds"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
        where_from = "the checkpoint" if point is None else point.path
        raise UserError(f"{where_from} does not fit its recipe ({' '.join(str(e).split())[:160]}); was it made by another version?") from e
    if state is not None:
        if team.first:
            run.rewind(done, watch.state.rollbacks if watch is not None else 0)
        log.say(f"going on from step {done} of {total}" if done < total else f"{run.path} is complete: {total} steps")
        if done >= total:
            return
    elif team.first and (run.metrics_file.exists() or run.samples() or run.points("snapshots")):
        run.rewind(-1)
    session = Session(run, trainer, method, total, spent, where, feed, watch, Pace.of(facts.get("plan")) if team.first else None)
    try:
        if trainer.fits and state is None:
            if team.first:
                run.append({"step": 0} | trainer.fit(feed.passes))
            _as_first(method, where)
        session.loop(done, config.log_every, config.sample_every, config.save_every, log)
    except Diverged as e:
        point, _ = run.last_good() if team.first else (None, [])
        good = team.agree(lambda: str(point.path) if point else None)
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint had been saved yet"
        raise Diverged(f"training stopped: {e}; {kept}. Try a lower --train.opts.*.lr, or --precision fp32") from None
    except Apart as e:
        raise Apart(f"training stopped: {e}; the last checkpoint is from before, --resume goes on with it") from None
    except Lost as e:
        raise Lost(f"training stopped: {e}; go on with --resume", e.status) from None
    finally:
        feed.close()


def _restored(trainer: Trainer, point: Checkpoint | None, team: Team) -> dict[str, Any] | None:
    """The trainer as a checkpoint of process 0 has it, and the state beside it; None, and nothing done, where there is none."""
    state = team.agree(lambda: None if point is None else dict(point.state))
    if state is not None:
        trainer.restore(lambda group: team.spread({} if point is None else point.tensors(group)), state["seen"])
    return state


def _watch(trainer: Trainer, data: ImageSet, facts: Mapping[str, Any], where: Where, log: Log) -> Watch | None:
    """What the run said of watching, when it was begun."""
    how: Choice = from_json(Choice, facts.get("watch", {}), "recipe.json: watch")
    if how.mode == "off":
        return None
    return Watch(how.mode, trainer.method, data, trainer.total, trainer.config.batch, where, partial(classifier_of, data, log.say) if how.classifier else lambda: None)


def _as_first(method: Method, where: Where) -> None:
    """Every process's weights become those of process 0."""
    if where.team.size > 1:
        method.load_state_dict(where.team.spread(plain(method.state_dict())))


@dataclass
class Session:
    """One sitting of a run: what is written and when."""

    run: Run
    trainer: Trainer
    method: Method
    total: int
    spent: float  # seconds of training before this sitting
    where: Where
    feed: Feed
    watch: Watch | None = None
    pace: Pace | None = None  # of process 0

    def step(self, k: int) -> None:
        """Step k. What cannot be computed (a factorization, say) since a weight or a term is not finite is `Diverged`."""
        try:
            self.trainer.step(k)
        except RuntimeError:
            self.trainer.check()
            raise

    def loop(self, done: int, log_every: int, sample_every: int | None, save_every: int | None, log: Log) -> None:
        """Steps from `done` up to the total; after a look that finds the run collapsed, once more from where it was healthy."""
        self.begin, team = time.perf_counter(), self.where.team
        every = sample_every or self.tenth()
        saved = logged = time.perf_counter()
        last, waited, step = done, self.feed.waited, done
        if self.watch is not None and self.watch.begins(done):
            self.save(done)
        with signals(team.size == 1) as caught, log.meter(f"{self.run.path.name}", self.total, done) as meter:
            while step < self.total:
                self.step(step)
                step, now = step + 1, time.perf_counter()
                end, good = step == self.total, False
                if step % log_every == 0 or end:
                    numbers = self.trainer.look()
                    rate = (step - last) * self.trainer.config.batch / max(now - logged, 1e-9)
                    idle = (self.feed.waited - waited) / max(now - logged, 1e-9)
                    speed = {"images_per_s": round(rate, 1), "idle": round(idle, 4), "seconds": round(self.seconds(), 3)}
                    self.note({"step": step, **numbers, **speed})
                    meter.at(step, numbers | {"idle": idle})
                    last, logged, waited = step, now, self.feed.waited
                    if self.watch is not None:
                        self.watch.follow(numbers, log_every)
                if step % every == 0 or end:
                    self.draw(step, log)
                    drawn = time.perf_counter()
                    if self.pace is not None:
                        self.pace.drew(drawn - now)
                    if self.watch is not None and self.watch.due(step, every):
                        from_here, good = self.watched(step, log)
                        if from_here < step:
                            step = last = from_here
                            logged = time.perf_counter()
                            if self.pace is not None:
                                self.pace.went_back()
                            continue
                    looked = time.perf_counter()
                    logged += looked - now
                    if self.pace is not None:
                        self.pace.rested(looked - drawn)
                self.keep(step, log)
                late = not end and self.pace is not None and self.pace.due(step, self.seconds())
                stop, due, look = team.most(caught[0] if caught else 0, int(now - saved > 60 * MINUTES), int(late))
                moved = bool(look) and self.plan_again(step, meter, log)
                if moved:
                    every = sample_every or self.tenth()
                if stop or end or good or moved or (save_every and step % save_every == 0) or due:
                    self.save(step)
                    saved = time.perf_counter()
                if stop and not end:
                    raise Interrupted(f"stopped at step {step} of {self.total}, all saved; go on with --resume", stop)
        if self.total == 0 or done == self.total:
            self.draw(0, log)
            self.save(0)

    def tenth(self) -> int:
        """Steps between grids of samples, where nothing is said."""
        return max(1, math.ceil(self.total / SAMPLES))

    def plan_again(self, step: int, meter: Meter, log: Log) -> bool:
        """Set the total to what fits the time, and write it down; whether it is another."""
        pace, total = self.pace, self.total
        self.total = self.where.team.agree(lambda: total if pace is None else pace.again(step, self.seconds(), total, SAMPLES))
        if self.total == total:
            return False
        self.trainer.total = self.total
        if self.watch is not None:
            self.watch.total = self.total
        meter.of(self.total)
        if self.where.team.first:
            facts = self.run.read_recipe()
            again = [*facts["plan"].get("again", ()), {"step": step, "total": self.total}]
            write_json(self.run.recipe_file, facts | {"total": self.total, "plan": facts["plan"] | {"again": again}})
        log.say(f"step {step}: steps take another time than was planned with: {self.total} of them fit, not {total}")
        return True

    def watched(self, step: int, log: Log) -> tuple[int, bool]:
        """Look, write down what is seen, warn: the step to go on from, which is an earlier one where the run was taken back, and whether this
        one is to be saved, to come back to."""
        watch = self.watch
        assert watch is not None
        with self.trainer.sampling():
            seen = watch.look()
        if seen:
            self.note({"step": step, **seen})
        wrong = watch.judge(step, seen)
        if wrong and watch.may_go_back and (healthy := self.back(step)) is not None:
            log.say(f"step {step}: {'; '.join(wrong.values())}. Back to step {healthy}, with {self.trainer.rate:g} of the learning rates")
            return healthy, False
        for line in watch.advise(wrong, self.trainer.opts):
            log.say(line)
        return step, watch.passed(step) if not wrong else False

    def back(self, step: int) -> int | None:
        """Restore the checkpoint at which all was well, for another try; its step, or None where it is no longer there.

        A kill in the middle costs nothing: whatever checkpoint training resumes from, it comes to the same verdict, or was made after it.
        """
        watch, team, run = self.watch, self.where.team, self.run
        assert watch is not None
        tried, path = watch.state, run.path / "checkpoints" / f"step-{watch.state.healthy:08d}"
        point = Checkpoint(path, read_json(path / "state.json")) if team.first and run.verify(path) is None else None
        state = _restored(self.trainer, point, team)
        if state is None:
            return None
        found = int(state["step"])
        self.note({"step": step, "rollback": found, "lr_factor": 0.5 ** (tried.rollbacks + 1)})
        watch.go_back(state["watch"])
        self.trainer.retry(watch.state.rollbacks)
        if team.first:
            run.forget(found)
        return found

    def note(self, record: Mapping[str, Any]) -> None:
        """A line of the log, which says how often the run was taken back before."""
        if self.where.team.first:
            tries = self.watch.state.rollbacks if self.watch is not None else 0
            self.run.append({**record, **({"rollbacks": tries} if tries else {})})

    def seconds(self) -> float:
        """Wall-clock seconds of training so far, all sittings."""
        return self.spent + time.perf_counter() - self.begin

    def save(self, step: int) -> None:
        """A checkpoint, if everything in it is finite and the same on all processes; they wait until it is written."""
        team, groups = self.where.team, self.trainer.groups()
        self.trainer.check()
        for tensors in groups.values():
            team.check(tensors)
        if team.first:
            state = {"seen": self.trainer.seen(), "seconds": round(self.seconds(), 3)}
            if self.watch is None:
                self.run.save(step, groups, state)
            else:
                self.run.save(step, groups, state | {"watch": self.watch.state.to_json()}, 2, self.watch.state.healthy)
        team.wait()

    def keep(self, step: int, log: Log) -> None:
        """A snapshot of the averages, if one is due. One that cannot be written ends no training: the others do without."""
        average = self.trainer.average
        if average is None or not average.due(step, self.total):
            return
        self.trainer.check()
        if self.where.team.first:
            try:
                self.run.snapshot(step, average.snapshot(), {"stds": list(average.config.stds)})
            except Unwritable as e:
                log.say(f"note: no snapshot of step {step}: {e}")

    def draw(self, step: int, log: Log) -> None:
        """The same seeds once more (nothing for a method that needs a source image). A grid that cannot be written ends no training."""
        self.trainer.check()
        with self.trainer.sampling():
            images = preview(self.method, 64, self.where)
        if images is not None and self.where.team.first:
            try:
                save_png(self.run.path / "samples" / f"step-{step:08d}.png", grid(images, None))
            except Unwritable as e:
                log.say(f"note: no grid of step {step}: {e}")
