"""Signals that end a training: noted, so that the step can be finished and everything saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["Interrupted", "signals"]


class Interrupted(Exception):
    """A signal stopped the run after everything was saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


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
