"""One sitting of a run: fits, steps, and everything that is written on the way."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.files import Unwritable
from ..core.images import grid, save_png
from ..core.protocols import Method
from ..core.recipe import Stage
from ..core.runs import Run
from ..core.types import UserError
from ..data import Feed, ImageSet
from .log import Log
from .loop import Diverged, Trainer, plain
from .parallel import Apart, Lost
from .plan import SAMPLES
from .sample import preview
from .where import Where

__all__ = ["Interrupted", "Session", "execute", "signals"]

MINUTES = 5.0  # longest time between checkpoints


class Interrupted(Exception):
    """A signal stopped the run after everything was saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def execute(run: Run, stage: Stage, method: Method, data: ImageSet, facts: Mapping[str, Any], where: Where, log: Log) -> None:
    """The fits and the steps, with everything written on the way."""
    config, total, team = stage.train, int(facts["total"]), where.team
    _as_first(method, where)
    feed = Feed(data, config.batch, stage.data, facts["seed"], where.device, where.layout == "channels-last")
    trainer = Trainer(method, config, feed.batch, facts["seed"], total, where)
    point, bad = run.last_good() if team.first else (None, [])
    for wrong in bad:
        log.say(f"note: {wrong}; using an older checkpoint")
    done, spent = 0, 0.0
    state = team.agree(lambda: None if point is None else dict(point.state))
    if state is not None:
        try:
            trainer.restore(lambda group: team.spread({} if point is None else point.tensors(group)), state["seen"])
            done, spent = int(state["step"]), float(state["seconds"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
            where_from = "the checkpoint" if point is None else point.path
            raise UserError(f"{where_from} does not fit its recipe ({' '.join(str(e).split())[:160]}); was it made by another version?") from e
        if team.first:
            run.rewind(done)
        log.say(f"going on from step {done} of {total}" if done < total else f"{run.path} is complete: {total} steps")
        if done >= total:
            return
    elif team.first and (run.metrics_file.exists() or run.samples() or run.points("snapshots")):
        run.rewind(-1)
    session = Session(run, trainer, method, total, spent, where, feed)
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

    def loop(self, done: int, log_every: int, sample_every: int | None, save_every: int | None, log: Log) -> None:
        """Steps from `done` up to the total."""
        self.begin, team = time.perf_counter(), self.where.team
        sample_every = sample_every or max(1, math.ceil(self.total / SAMPLES))
        saved = logged = time.perf_counter()
        last, waited = done, self.feed.waited
        with signals(team.size == 1) as caught, log.meter(f"{self.run.path.name}", self.total, done) as meter:
            for k in range(done, self.total):
                self.trainer.step(k)
                step, now = k + 1, time.perf_counter()
                end = step == self.total
                if step % log_every == 0 or end:
                    numbers = self.trainer.look()
                    rate = (step - last) * self.trainer.config.batch / max(now - logged, 1e-9)
                    idle = (self.feed.waited - waited) / max(now - logged, 1e-9)
                    speed = {"images_per_s": round(rate, 1), "idle": round(idle, 4), "seconds": round(self.seconds(), 3)}
                    if team.first:
                        self.run.append({"step": step, **numbers, **speed})
                    meter.at(step, numbers | {"idle": idle})
                    last, logged, waited = step, now, self.feed.waited
                if step % sample_every == 0 or end:
                    self.draw(step, log)
                    logged += time.perf_counter() - now
                self.keep(step, log)
                stop, due = team.most(caught[0] if caught else 0, int(now - saved > 60 * MINUTES))
                if stop or end or (save_every and step % save_every == 0) or due:
                    self.save(step)
                    saved = time.perf_counter()
                if stop and not end:
                    raise Interrupted(f"stopped at step {step} of {self.total}, all saved; go on with --resume", stop)
        if self.total == 0 or done == self.total:
            self.draw(0, log)
            self.save(0)

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
            self.run.save(step, groups, {"seen": self.trainer.seen(), "seconds": round(self.seconds(), 3)})
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


@contextlib.contextmanager
def signals(alone: bool = True) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them, so that the step can be finished and saved; a second one kills, unless
    a launcher may repeat what it got itself (it kills in the end)."""
    caught: list[int] = []

    def note(signum: int, _: object) -> None:
        caught.append(signum)
        if len(caught) > 1 and alone:
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
