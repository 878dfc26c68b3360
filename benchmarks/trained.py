"""What the programs share that train recipes for so many minutes: train, sample, score, each in a process of its own; what is in the work folder already is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pixelkiln.core.images import grid, save_png
from pixelkiln.core.listing import listing
from pixelkiln.engine.where import processor

HERE = Path(__file__).resolve().parent
THREADS = os.environ.get("OMP_NUM_THREADS", "2")

__all__ = ["HERE", "THREADS", "Failed", "arrays", "call", "each", "family", "kept", "sampled", "sheet", "trained", "with_threads"]

Job, Row = TypeVar("Job"), TypeVar("Row")


class Failed(RuntimeError):
    """A command that ended with an error; the message is its last line."""


def family(name: str) -> list[str]:
    """The recipes of a family that train from images alone (no parent)."""
    return [recipe for recipe, facts in listing().items() if facts["family"] == name]


def call(words: Sequence[str], log: Path) -> str:
    """`pixelkiln WORDS` with its output in a file and returned. Raises `Failed`."""
    command = [sys.executable, "-m", "pixelkiln", *words]
    done = subprocess.run(command, env={"OMP_NUM_THREADS": THREADS} | os.environ, capture_output=True, text=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise Failed(lines[-1].removeprefix("pixelkiln: "))
    return done.stdout


def with_threads(workers: int) -> str:
    """Gives each of so many workers an equal part of the threads; says so, with the processor, in words."""
    os.environ["OMP_NUM_THREADS"] = threads = str(max(1, int(THREADS) // workers))
    return f"{processor()}, {threads} thread{'s' * (threads != '1')}" + f" each of {workers} runs at a time" * (workers > 1)


def each(run: Callable[[Job], Row], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Row | str]]:
    """Every job with its row, or with why it failed in words, in their order; so many are done at a time."""
    with ThreadPoolExecutor(workers) as pool:
        for job, done in [(job, pool.submit(run, job)) for job in jobs]:
            try:
                yield job, done.result()
            except (Failed, ValueError) as e:
                yield job, str(e)


def trained(recipe: str, data: Path, folder: Path, minutes: float, seed: int, more: Sequence[str] = (), steps: int = 0) -> dict[str, Any]:
    """Train into a folder for so many minutes, or so many steps if any, or go on with what is there; steps, images (those of the discriminator's step counted once), seconds, images of training a second."""
    log = folder.with_name(f"{folder.name}.train.log")
    if not (folder / "report.html").exists():
        call(["train", recipe, "--data", str(data), "--out", str(folder), *(["--steps", str(steps)] if steps else ["--budget", f"{60 * minutes:g}s"]), "--seed", str(seed), "--resume", *more], log)
    facts = json.loads((folder / "recipe.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(r["images_per_s"] for r in records if "images_per_s" in r)
    stage = facts["stages"][-1]
    return {"steps": facts["total"], "batch": stage["train"]["batch"], "seconds": max((r.get("seconds", 0.0) for r in records), default=0.0),
            "images_per_s": rates[len(rates) // 2] if rates else None}


def sampled(folder: Path, n: int, seed: int = 0) -> tuple[Path, float]:
    """The file of n samples of a run, and its wall-clock seconds where it is made now (0 where it was there)."""
    out = folder.with_name(f"{folder.name}-{n}.npz")
    begin = time.perf_counter()
    if out.exists():
        return out, 0.0
    call(["sample", str(folder), "-n", str(n), "--seed", str(seed), "--out", str(out)], folder.with_name(f"{folder.name}.sample.log"))
    return out, time.perf_counter() - begin


def arrays(file: Path) -> tuple[Tensor, Tensor | None]:
    """Images uint8 (N, C, H, W) and labels (N,), where there are any, of a file of samples."""
    with np.load(file, allow_pickle=False) as found:
        return torch.from_numpy(found["images"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(found["labels"]) if "labels" in found.files else None


def sheet(images: Tensor, labels: Tensor | None, out: Path, rows: int = 8, columns: int = 10) -> None:
    """A grid of some samples; with labels a class is a column, as far as there are samples of it."""
    if labels is None:
        save_png(out, grid(images[: rows * columns], columns))
        return
    num = min(columns, int(labels.max()) + 1)
    picked = torch.full((rows, num, *images.shape[1:]), 255, dtype=torch.uint8)
    for k in range(num):
        some = images[labels == k][:rows]
        picked[: len(some), k] = some
    save_png(out, grid(picked.flatten(0, 1), num))


def kept(file: Path) -> dict[str, Any] | None:
    """What an earlier run has found."""
    return json.loads(file.read_text()) if file.exists() else None
