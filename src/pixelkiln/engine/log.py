"""What a person sees while a run works: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["Log", "Meter", "duration"]


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    s = round(seconds)
    if s < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 5400 else f"{s // 3600} h {s % 3600 // 60:02d} min"


class Log:
    """Lines to standard error; `quiet` says nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(line, markup=False)

    def meter(self, what: str, total: int, done: int = 0, unit: str = "steps") -> Meter:
        """Progress of a long piece of work; use it in a with statement."""
        return Meter(self, what, total, done, unit)


class Meter:
    """Progress with rate, remaining time and some numbers."""

    EVERY = 15.0  # seconds between lines where there is no terminal

    def __init__(self, log: Log, what: str, total: int, done: int, unit: str) -> None:
        self.log, self.what, self.total, self.first, self.unit = log, what, total, done, unit
        self.start = self.last = time.monotonic()
        self.live = not log.quiet and sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, console=log.console, disable=not self.live, transient=True)
        self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Meter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def of(self, total: int) -> None:
        """There are so many pieces, it turns out."""
        self.total = total
        self.bar.update(self.task, total=total)

    def at(self, done: int, numbers: Mapping[str, float] | None = None) -> None:
        """`done` pieces are finished; show the numbers."""
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.start, 1e-9)
        note = "  ".join([f"{rate:.1f} {self.unit}/s"] + [f"{k} {v:.4g}" for k, v in (numbers or {}).items()])
        self.bar.update(self.task, completed=done, note=note)
        if not self.live and not self.log.quiet and now - self.last >= self.EVERY:
            self.last = now
            left = (self.total - done) / max(rate, 1e-9)
            self.log.say(f"{self.what} {done}/{self.total}  {duration(left)} left  {note}")
