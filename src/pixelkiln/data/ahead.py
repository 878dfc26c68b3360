"""Batches of streamed images, decoded ahead of the time by processes, into memory that they share.

What is asked for is told by a key (draw, part, parts); what comes next is guessed from that, and a guess that is wrong costs time, never
another image: the pixels of a key are a function of the rows that the caller says for it. A worker that dies is replaced and its task
given out again; a task that kills TRIES workers, or an image that cannot be decoded, is one line.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.types import UserError
from .encoded import Encoded
from .stream import Streamed
from .worker import order, setup

__all__ = ["Ahead", "Key"]

DRAWS = 4  # that there is memory for: the one that is asked for, and those that follow
PIECE = 64  # images of one task at most
TRIES = 3  # workers that a task may cost
STUCK = 300.0  # seconds without any answer after which workers count as dead
CODE = "import signal, sys; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); sys.path.insert(0, sys.argv[2]); " \
       "from pixelkiln.data.worker import main; main()"


class Key(NamedTuple):
    """Part number `part` of `parts` equal ones of draw `draw`."""

    draw: int
    part: int = 0
    parts: int = 1


class _Task:
    """Images of one key that one worker decodes: into the rows of the shared memory from `start` on."""

    def __init__(self, number: int, key: Key, start: int, items: list[Encoded]) -> None:
        self.key, self.items, self.tries, self.line, self.number = key, items, 0, order(number, start, items), number


class _Worker:
    """A process, and the tasks that it has been given, oldest first."""

    def __init__(self, facts: str, memory: int) -> None:
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-P", "-c", CODE, facts, root]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=(memory,), env=env, start_new_session=True)
        except OSError as error:
            raise UserError(f"no process can be started to decode images ({error.strerror}): try --workers 0") from error
        with suppress(ImportError, OSError, AttributeError):  # room for the tasks of several draws: handing them over must not wait
            import fcntl

            fcntl.fcntl(self.process.stdin, fcntl.F_SETPIPE_SZ, 2**20)  # type: ignore[arg-type]
        self.tasks: deque[_Task] = deque()
        self.text = b""

    def give(self, task: _Task) -> None:
        """One more task; if the process is gone, that shows when it is listened to."""
        self.tasks.append(task)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(task.line)
            self.process.stdin.flush()

    def hush(self) -> None:
        """Close the pipes, upon which the process ends by itself."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def end(self, patience: float = 2.0) -> None:
        """Wait for the end of the process; kill it when patience is over."""
        self.hush()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@final
class Ahead:
    """Draws of `size` images each. rows: the rows of the data set of a key, size / parts of them."""

    def __init__(self, images: Streamed, size: int, rows: Callable[[Key], Tensor], pinned: bool = False) -> None:
        assert images.workers > 0, "without workers, images are decoded where they are needed"
        self.images, self.size, self.rows = images, size, rows
        shape = images.shape[1:]
        self.memory, total = _shared(DRAWS * size * shape.numel())
        flat = torch.frombuffer(mmap.mmap(self.memory, total), dtype=torch.uint8)
        self.pinned = pinned and int(torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), total, 0)) == 0  # the device then fetches by itself
        self.buffer = flat[: DRAWS * size * shape.numel()].view(-1, *shape)  # (DRAWS * size, C, H, W)
        self.places: dict[Key, int] = {}  # slots of the keys that are decoded, or will be
        self.open: dict[Key, set[int]] = {}  # tasks of a key that are not done
        self.errors: dict[Key, str] = {}
        self.parts, self.pattern = 1, list[int]()  # parts of a draw, and those of them that are asked for here
        self.count, self.last = 0, -1
        self.facts, self.selector = setup(images, self.memory, total), selectors.DefaultSelector()
        self.workers = [self._start() for _ in range(images.workers)]

    def get(self, key: Key) -> Tensor:
        """The images uint8 (n, C, H, W) of the key; they stay until the next call. Errors: `UserError` as decoding, or where workers die."""
        wanted, slots = self._next(key), DRAWS * key.parts
        self._free(wanted)
        while key not in self.places:
            if len(self.places) < slots:
                self._order(key)
            else:  # a guess was wrong: its slot is free when the workers have done with it
                self._listen()
                self._free(wanted)
        for other in wanted:
            if other not in self.places and len(self.places) < slots:
                self._order(other)
        while self.open[key]:
            self._listen()
        if key in self.errors:
            raise UserError(self.errors[key])
        start, num = self._rows(key)
        return self.buffer[start : start + num]

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.hush()
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        self.selector.close()
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(self.buffer.data_ptr())
            self.pinned = False
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _next(self, key: Key) -> list[Key]:
        """The key and those that will follow it: the parts of a draw that were asked for before, draw after draw."""
        while key.parts != self.parts and any(self.open.values()):
            self._listen()
        if key.parts != self.parts:
            self.parts, self.pattern = key.parts, []
            self._free([])
        if key.part not in self.pattern:
            self.pattern = [*self.pattern, key.part] if key.draw == self.last else [key.part]
        self.last = key.draw
        at, num = self.pattern.index(key.part), len(self.pattern)
        return [Key(key.draw + i // num, self.pattern[i % num], key.parts) for i in range(at, at + (DRAWS - 1) * num + 1)]

    def _rows(self, key: Key) -> tuple[int, int]:
        """Where the images of a key lie in the buffer, and how many they are."""
        num = self.size // key.parts
        return self.places[key] * num, num

    def _free(self, wanted: list[Key]) -> None:
        """Forget what is decoded and not wanted."""
        for key in [k for k in self.places if k not in wanted and not self.open[k]]:
            del self.places[key], self.open[key]
            self.errors.pop(key, None)

    def _order(self, key: Key) -> None:
        """Give out the tasks of a key, to the workers with the least to do."""
        self.places[key] = min(set(range(DRAWS * key.parts)) - set(self.places.values()))
        self.open[key] = set()
        first, num = self._rows(key)
        rows, step = self.rows(key).tolist(), min(PIECE, ceil(num / len(self.workers)))
        assert len(rows) == num
        for start in range(0, num, step):
            self.count += 1
            self.open[key].add(self.count)
            self._give(_Task(self.count, key, first + start, [self.images.items[i] for i in rows[start : start + step]]))

    def _give(self, task: _Task) -> None:
        min(self.workers, key=lambda worker: sum(len(t.items) for t in worker.tasks)).give(task)

    def _start(self) -> _Worker:
        worker = _Worker(self.facts, self.memory)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        return worker

    def _listen(self) -> None:
        """Wait for an answer, and note it; replace workers that are gone, or silent for too long."""
        begin = time.monotonic()
        ready = [event.data for event, _ in self.selector.select(STUCK)]
        if not ready and time.monotonic() - begin >= STUCK:
            for worker in self.workers:
                if worker.tasks:
                    worker.process.kill()
        for worker in ready:
            data = os.read(worker.process.stdout.fileno(), 2**16)
            if not data:
                self._replace(worker)
                continue
            *lines, worker.text = (worker.text + data).split(b"\n")
            for line in lines:
                self._done(worker, json.loads(line))

    def _done(self, worker: _Worker, answer: dict[str, str | int]) -> None:
        task = worker.tasks.popleft()
        assert task.number == answer["task"], "workers answer in order"
        self.open[task.key].discard(task.number)
        if "error" in answer:
            self.errors.setdefault(task.key, str(answer["error"]))

    def _replace(self, worker: _Worker) -> None:
        """A new process in the place of one that is gone; the task that it was at counts one more try."""
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        worker.end()
        self.workers[self.workers.index(worker)] = self._start()
        if worker.tasks:
            worker.tasks[0].tries += 1
        for task in worker.tasks:
            if task.tries < TRIES:
                self._give(task)
                continue
            self.open[task.key].discard(task.number)
            first, last = task.items[0].where, task.items[-1].where
            why = f"status {worker.process.returncode}; out of memory, or a broken image among {len(task.items)} from {first} to {last}"
            self.errors.setdefault(task.key, f"processes that decode images died {TRIES} times at one task ({why}): try --workers 0 or 1")


def _shared(size: int) -> tuple[int, int]:
    """A file descriptor of memory that processes can share and that is gone with the last of them, and its size."""
    size = max(size, mmap.PAGESIZE)
    if hasattr(os, "memfd_create"):  # not /dev/shm, which containers make small
        memory = os.memfd_create("pixelkiln")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory, size
