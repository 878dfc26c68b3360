"""Who of several processes is alive, and why one of them ended.

Each process beats once a second into the launcher's store (a small key-value server) and looks there for the others. One that fails
leaves its reason under "end", where the first reason stands; one that is killed stops beating. The others end with that reason, said
once a machine: at once where a collective fails under them, after `PATIENCE` where they hang in one (NCCL does).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ..core.types import UserError
from .log import Log

if TYPE_CHECKING:  # a torch without it can do all the rest
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["Ending", "Lost", "Pulse"]

BEAT = 1.0  # seconds between beats
SILENT = 20  # beats of others that may be missed before they count as dead, while nothing else is wrong
NAMING = 4.0  # seconds without a beat that tell who died, once a collective has failed
TWINS = 2.0  # seconds in which process 0 comes to a mistake that all of them come to
PATIENCE = 5.0  # seconds that the main thread gets to end by itself once there is a reason to
OVER = "over"  # the last beat of a process that ended well
GONE = "the node of process 0, which keeps the launcher's store, is gone"


@dataclass(frozen=True)
class Ending:
    """Why the processes end, in one line, and their exit status."""

    line: str
    status: int = 1


class Lost(RuntimeError):
    """Another process has ended, or cannot be reached; the message says which and why."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Pulse:
    """The heartbeat of process `rank` of `size`. `store` is used by nothing else; `machine` tells the processes of one node."""

    def __init__(self, rank: int, size: int, machine: str, store: Store) -> None:
        self.rank, self.size, self.machine, self.store = rank, size, machine, store
        self.others = [r for r in range(size) if r != rank] if rank == 0 else [0]  # 0 watches all, and all watch 0
        self.store.set(f"host/{rank}", socket.gethostname())
        self.store.set(f"beat/{rank}", "0")
        self.over = threading.Event()
        self.asker = ThreadPoolExecutor(1)  # a store behind a dead link answers never: ask it from a thread that may be left behind
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """This process has done its work; the others need not miss it."""
        self.over.set()
        self.asker.shutdown()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"beat/{self.rank}", OVER)

    def end(self, error: BaseException) -> NoReturn:
        """Leave the reason for the others, say it, and end this process; a mistake of ours comes with its traceback."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, if another process is quicker
        me = f"{self._name(self.rank)}: "
        if isinstance(error, SystemExit):
            found = self.why() or Ending("stopped by a signal", int(error.code or 1))
        elif isinstance(error, KeyboardInterrupt):
            found = Ending("stopped by a signal", 130)
        elif isinstance(error, Lost):
            self._leave(Ending(str(error), error.status))
        elif hasattr(error, "status"):
            mine = isinstance(error, UserError) and self.rank > 0 and not self._wait_for_ending(TWINS)  # else process 0 says the same
            found = Ending((me if mine else "") + str(error), int(error.status))
        else:
            traceback.print_exception(error)
            found = Ending(f"{me}{type(error).__name__}: {error}".splitlines()[0])
        self._leave(self._publish(found))

    def why(self) -> Ending | None:
        """What has ended another process: its own reason, or that its heart stands still; None if all are well. Takes up to NAMING."""
        try:
            ranks = [r for r in range(self.size) if r != self.rank]
            before = self._beats(ranks)
            if found := self._wait_for_ending(NAMING):
                return found
            after = self._beats(ranks)
            dead = [r for r in ranks if after.get(r) == before.get(r) != OVER]
        except RuntimeError:
            return Ending(GONE)
        if not dead:
            return None
        return self._publish(Ending(f"{', '.join(self._name(r) for r in dead)} died without a word (killed, or its machine failed)"))

    def _wait_for_ending(self, seconds: float) -> Ending | None:
        """The reason that somebody has left, or leaves within so many seconds."""
        until = time.monotonic() + seconds
        while (found := self._ending()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _watch(self) -> None:
        """Beat; end this process where there is a reason to and the main thread does not do it."""
        last: dict[int, str] = {}
        missed = dict.fromkeys(self.others, 0)
        beat = 0
        while not self.over.wait(BEAT):
            beat += 1
            reason, beats = self._exchange(beat)
            for r, sign in beats.items():
                missed[r] = 0 if sign == OVER or sign != last.get(r) else missed[r] + 1
                last[r] = sign
            silent = [r for r, n in missed.items() if n >= SILENT]
            if silent and reason is None:
                reason = self._publish(Ending(f"{self._name(silent[0])} gave no sign of life for {SILENT * BEAT:.0f} s"))
            if reason is not None and not self.over.wait(PATIENCE):
                self._leave(reason)

    def _exchange(self, beat: int) -> tuple[Ending | None, dict[int, str]]:
        """Beat once; the reason to end, if there is one, and the others' newest beats."""

        def ask() -> tuple[Ending | None, dict[int, str]]:
            self.store.set(f"beat/{self.rank}", str(beat))
            return self._ending(), self._beats(self.others)

        try:
            return self.asker.submit(ask).result(SILENT * BEAT)
        except (RuntimeError, TimeoutError):  # of the store, or of this process's own end
            return None if self.over.is_set() else Ending(GONE), {}

    def _beats(self, ranks: list[int]) -> dict[int, str]:
        """The newest beats; {} while not all have come."""
        keys = [f"beat/{r}" for r in ranks]
        if not self.store.check(keys):
            return {}
        return {r: value.decode() for r, value in zip(ranks, self.store.multi_get(keys), strict=True)}

    def _name(self, rank: int) -> str:
        key = f"host/{rank}"
        return f"process {rank} of {self.size}" + (f" (on {self.store.get(key).decode()})" if self.store.check([key]) else "")

    def _ending(self) -> Ending | None:
        return self._read(self.store.get("end")) if self.store.check(["end"]) else None

    def _publish(self, ending: Ending) -> Ending:
        """Leave a reason for all; the first one stands, and is returned."""
        try:
            return self._read(self.store.compare_set("end", "", json.dumps([ending.line, ending.status])))
        except RuntimeError:
            return ending

    @staticmethod
    def _read(value: bytes) -> Ending:
        line, status = json.loads(value)
        return Ending(line, status)

    def _leave(self, ending: Ending) -> NoReturn:
        """Say the reason, if nobody on this machine has, and end: without clean-up, which would wait for the others."""
        try:
            first = ending.line == GONE or self.store.add(f"said/{self.machine}", 1) == 1  # a store behind a dead link answers never
        except RuntimeError:
            first = True
        if first:
            Log().say(f"pixelkiln: {ending.line}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending.status)
