"""One sitting of a run: fits, steps, and everything that is written on the way."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.images import grid, save_png
from ..core.protocols import Method
from ..core.recipe import Stage
from ..core.runs import Run
from ..data import Feed, ImageSet
from .log import Log
from .loop import Diverged, Trainer
from .plan import SAMPLES
from .sample import preview
from .where import Where

__all__ = ["Interrupted", "Session", "execute", "signals"]

MINUTES = 5.0  # longest time between checkpoints


class Interrupted(Exception):
    """A signal stopped the run after everything was saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def execute(run: Run, stage: Stage, method: Method, data: ImageSet, facts: Mapping[str, Any], where: Where, log: Log) -> None:
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
    session = Session(run, trainer, method, total, spent, where, feed)
    try:
        if trainer.fits and point is None:
            run.append({"step": 0} | trainer.fit(feed.passes))
        session.loop(done, config.log_every, config.sample_every, config.save_every, log)
    except Diverged as e:
        good, _ = run.last_good()
        kept = f"the last good checkpoint is {good.path}" if good else "no checkpoint had been saved yet"
        raise Diverged(f"training stopped: {e}; {kept}. Try a lower --train.opts.*.lr, or --precision fp32") from None
    finally:
        feed.close()


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
        self.begin = time.perf_counter()
        sample_every = sample_every or max(1, math.ceil(self.total / SAMPLES))
        saved = logged = time.perf_counter()
        last, waited = done, self.feed.waited
        with signals() as caught, log.meter(f"{self.run.path.name}", self.total, done) as meter:
            for k in range(done, self.total):
                self.trainer.step(k)
                step, now = k + 1, time.perf_counter()
                end = step == self.total
                if step % log_every == 0 or end:
                    numbers = self.trainer.look()
                    rate = (step - last) * self.trainer.config.batch / max(now - logged, 1e-9)
                    idle = (self.feed.waited - waited) / max(now - logged, 1e-9)
                    speed = {"images_per_s": round(rate, 1), "idle": round(idle, 4), "seconds": round(self.seconds(), 3)}
                    self.run.append({"step": step, **numbers, **speed})
                    meter.at(step, numbers | {"idle": idle})
                    last, logged, waited = step, now, self.feed.waited
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
