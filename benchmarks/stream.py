"""A streamed set against the same set in memory: images a second that a feed gives by itself, and speed and idle share of a training.

    python benchmarks/stream.py [--source SRC] [--recipe ddpm] [--size tiny] [--resolution 64] [--steps 60]

Without a source, 2,000 JPEGs of 256 x 256 pixels are made first (low-frequency noise, quality 90). Rows alternate within one run, three
rounds; medians are printed, and the machine. The idle share is the part of the time of the steps in which the loop waited for `Feed.batch`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from pixelkiln import Budget, Order, Where, open_source, train
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.runs import Run
from pixelkiln.data import Feed
from pixelkiln.engine.access import Access
from pixelkiln.engine.log import Log
from pixelkiln.engine.where import processor

ROUNDS, DRAWS, BATCH = 3, 24, 64


def jpegs(folder: Path, num: int = 2000) -> Path:
    """Images of low-frequency noise, which compress as photographs do."""
    gen = torch.Generator().manual_seed(0)
    folder.mkdir()
    for i in range(num):
        low = torch.rand((1, 3, 24, 24), generator=gen)
        pixels = torch.nn.functional.interpolate(low, (256, 256), mode="bicubic").clamp(0, 1).mul(255).byte()[0].permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:05}.jpg", quality=90)
    return folder


def bare(source: str, config: DataConfig, access: Access) -> float:
    """Images a second of a feed that nothing else is done with, after four draws to warm up."""
    with Feed(access.open(source, config), BATCH, config, 0) as feed:
        for draw in range(4):
            feed.batch(draw)
        begin = time.perf_counter()
        for draw in range(4, 4 + DRAWS):
            feed.batch(draw)
        return DRAWS * BATCH / (time.perf_counter() - begin)


def trained(args: argparse.Namespace, source: str, access: Access, out: Path) -> tuple[float, float]:
    """Images a second and idle share of a training, medians of the log's records but the first."""
    changes = {"data.resolution": str(args.resolution), "train.batch": str(BATCH), "train.log_every": "10"}
    order = Order(args.recipe, source, out, size=args.size, budget=Budget(steps=args.steps), changes=changes)
    train(order, Where.choose(), log=Log(quiet=True), access=access)
    records = Run(out).records()[1:]
    return statistics.median(r["images_per_s"] for r in records), statistics.median(r["idle"] for r in records)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source")
    parser.add_argument("--recipe", default="ddpm")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    kinds = {"in memory": Access(memory=2**40)} | {f"streamed, {n} workers": Access(memory=0, workers=n) for n in (0, 1, 2)}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or str(jpegs(Path(folder) / "set"))
        config = DataConfig(resolution=args.resolution)
        num = len(open_source(source, config, memory=0))
        for turn in range(ROUNDS):
            for i, (name, access) in enumerate(kinds.items()):
                found[name].append((bare(source, config, access), *trained(args, source, access, Path(folder) / f"run{turn}-{i}")))
    print(f"{num} images to {args.resolution} pixels, {args.recipe} {args.size}, batch {BATCH}; {processor()}, {os.cpu_count()} cores, "
          f"torch {torch.__version__} with {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'':22}{'feed, images/s':>16}{'training, images/s':>20}{'idle':>8}")
    for name, rows in found.items():
        feed, speed, idle = (statistics.median(row[k] for row in rows) for k in range(3))
        print(f"{name:22}{feed:16.0f}{speed:20.1f}{100 * idle:7.1f} %")


if __name__ == "__main__":
    main()
