"""A process that decodes: tasks come in as lines of JSON, pixels go into memory shared with the parent, answers go out as lines.

It ignores SIGINT and SIGTERM, for the parent to save in peace, and ends when the parent closes the pipe or is gone.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from dataclasses import astuple
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from ..core.config import from_json, to_json
from ..core.recipe import DataConfig
from ..core.types import UserError
from .encoded import Encoded, Span
from .stream import Streamed, decode_like
from .zips import Zipped

__all__ = ["main", "order", "setup"]


def setup(images: Streamed, memory: int, size: int) -> str:
    """What a worker must know: how to prepare, the shape of an image, the file descriptor of the shared memory and its size in bytes."""
    return json.dumps({"config": to_json(images.config), "shape": list(images.shape[1:]), "memory": memory, "size": size})


def order(number: int, start: int, items: list[Encoded]) -> bytes:
    """The line for a task: images to decode, and the row of the shared memory where the first one goes."""
    return (json.dumps({"task": number, "start": start, "items": [_written(item) for item in items]}) + "\n").encode()


def _written(item: Encoded) -> list[Any]:
    where, source = item
    assert isinstance(source, Path | Span | Zipped), "workers read images one by one"
    if isinstance(source, Path):
        return [where, str(source)]
    kind, (path, *rest) = type(source).__name__, astuple(source)
    return [where, str(path), kind, *rest]


def _read(row: list[Any]) -> Encoded:
    where, path, *rest = row
    if not rest:
        return Encoded(where, Path(path))
    kind = {"Span": Span, "Zipped": Zipped}[rest[0]]
    return Encoded(where, kind(Path(path), *rest[1:]))


def main() -> None:
    """Work until the parent closes the pipe; the first argument is what `setup` says."""
    torch.set_num_threads(1)
    facts = json.loads(sys.argv[1])
    shape = facts["shape"]
    config = from_json(DataConfig, facts["config"])
    memory = torch.frombuffer(mmap.mmap(facts["memory"], facts["size"]), dtype=torch.uint8)
    rows = memory[: memory.numel() // torch.Size(shape).numel() * torch.Size(shape).numel()].view(-1, *shape)
    tasks: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        task = tasks.get()
        answer: dict[str, Any] = {"task": task["task"]}
        try:
            items = [_read(row) for row in task["items"]]
            rows[task["start"] : task["start"] + len(items)] = decode_like(items, config, shape)
        except UserError as error:
            answer["error"] = str(error)
        except Exception as error:  # said by the parent, in one line
            answer["error"] = f"{task['items'][0][0]}: {type(error).__name__}: {' '.join(str(error).split())}"
        os.write(sys.stdout.fileno(), (json.dumps(answer) + "\n").encode())


def _listen(tasks: SimpleQueue[dict[str, Any]]) -> None:
    """Take tasks off the pipe at once, so that the parent never waits to hand one over; end the process where the pipe ends."""
    for line in sys.stdin.buffer:
        tasks.put(json.loads(line))
    os._exit(0)
