"""A streamed set against the same set in memory: images a second that a feed gives by itself, and speed and idle share of a training.

    python benchmarks/stream.py [--source SRC] [--recipe ddpm] [--size tiny] [--resolution 64] [--steps 60] [--rounds 3] [--out FILE]
    python benchmarks/tables.py                  # the newest result into docs/data.md

Without a source, 2,000 JPEGs of 256 x 256 pixels are made first (low-frequency noise, quality 90). Rows alternate within one run;
medians are printed, and written to benchmarks/results/DATE-stream.json with the machine. The idle share is the part of the time of the steps in which the loop waited for `Feed.batch`.
"""

from __future__ import annotations

import argparse
import datetime
import json
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

HERE = Path(__file__).resolve().parent
DRAWS, BATCH = 24, 64


def jpegs(folder: Path, num: int) -> Path:
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
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source")
    parser.add_argument("--recipe", default="ddpm")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000, help="JPEGs to make, without a source")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"{datetime.date.today()}-stream.json")
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    kinds = {"in memory": Access(memory=2**40)} | {f"streamed, {n} workers": Access(memory=0, workers=n) for n in (0, 1, 2)}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or str(jpegs(Path(folder) / "set", args.images))
        config = DataConfig(resolution=args.resolution)
        num = len(open_source(source, config, memory=0))
        for turn in range(args.rounds):
            for i, (name, access) in enumerate(kinds.items()):
                found[name].append((bare(source, config, access), *trained(args, source, access, Path(folder) / f"run{turn}-{i}")))
    rows = [{"name": name} | {what: statistics.median(turn[k] for turn in turns) for k, what in enumerate(("feed", "training", "idle"))} for name, turns in found.items()]
    machine = {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads(), "load_before": load}
    settings = {"source": args.source, "recipe": args.recipe, "size": args.size, "resolution": args.resolution, "steps": args.steps, "batch": BATCH, "rounds": args.rounds}
    args.out.write_text(json.dumps({"date": str(datetime.date.today()), "machine": machine, "settings": settings, "images": num, "rows": rows}, indent=1) + "\n")
    print(f"{num} images to {args.resolution} pixels, {args.recipe} {args.size}, batch {BATCH}; {processor()}, {os.cpu_count()} cores, "
          f"torch {torch.__version__} with {torch.get_num_threads()} threads, load {load} before")
    print(f"{'':22}{'feed, images/s':>16}{'training, images/s':>20}{'idle':>8}")
    for row in rows:
        print(f"{row['name']:22}{row['feed']:16.0f}{row['training']:20.1f}{100 * row['idle']:7.1f} %")


if __name__ == "__main__":
    main()
