"""pixelkiln itself as a program that speed.py times: what `pixelkiln train` and `pixelkiln sample` do, without what they write.

    python benchmarks/kiln.py ddpm --data ../shared/data/mnist --batch 64 --set model.net.patch=1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from common import Slices, memory

import pixelkiln
from pixelkiln.core.catalog import find, override
from pixelkiln.core.recipe import Stage
from pixelkiln.core.types import Ability, Condition, Request
from pixelkiln.data import Feed, ImageSet
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.sample import generate, seeds_for
from pixelkiln.engine.where import Where


def trainer_for(stage: Stage, data: ImageSet, where: Where, graphs: bool = False, seed: int = 0) -> Trainer:
    """A method placed and fed as `pixelkiln train` does it."""
    method = make(stage, data.info, {}, seed)
    where.place(method)
    if graphs:  # CUDA graphs by torch.compile
        for net in method.children():
            net.compile(mode="reduce-overhead")
    feed = Feed(data, stage.train.batch, stage.data, seed, where.device, where.layout == "channels-last")
    return Trainer(method, stage.train, feed.batch, seed, stage.train.steps, where)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe")
    p.add_argument("--data", required=True)
    p.add_argument("--size", default="small")
    p.add_argument("--batch", type=int)
    p.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of the recipe")
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", default="auto")
    p.add_argument("--layout", default="auto")
    p.add_argument("--compile", default="auto")
    p.add_argument("--graphs", action="store_true", help="CUDA graphs (compiles, too)")
    p.add_argument("--sampling", action="store_true", help="time sampling instead of training")
    p.add_argument("--flat", type=int, metavar="STEPS", help="no slices: this many steps, and the memory on the way")
    p.add_argument("--epochs", type=float, help="no slices: train for so long, and write the weights that it samples with")
    p.add_argument("--images", type=int, help="with --epochs: of the first so many images only")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="with --epochs: weights, .npz")
    return p.parse_args()


def main() -> None:
    args = arguments()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)
    recipe = override(find(args.recipe)(args.size), dict(pair.split("=", 1) for pair in args.set))
    stage = recipe.last
    if args.batch:
        stage = replace(stage, train=replace(stage.train, batch=args.batch))
    where = Where.choose(args.device, args.precision, args.compile, args.layout)
    data = pixelkiln.open_source(args.data, stage.data, "train")
    if args.epochs:
        data = replace(data, images=data.images[: args.images], labels=None, classes=())
        stage = replace(stage, train=replace(stage.train, steps=round(args.epochs * len(data) / stage.train.batch)))
    trainer = trainer_for(stage, data, where, args.graphs, args.seed)
    if args.epochs:
        whole(trainer, args.out, stage.train.log_every)
        return
    method, batch = trainer.method, stage.train.batch
    if args.flat:
        flat(trainer, args.flat, stage.train.log_every)
        return
    count = sum(p.numel() for p in method.parameters())
    clock = Slices(where.device, parameters=count, threads=where.threads, where=str(where), precision=where.precision)
    if args.sampling:
        n, classes = 250, data.info.classes
        cond = Condition(label=torch.arange(n) % len(classes)) if Ability.LABEL in method.abilities and classes else Condition()
        while not clock.over:
            generate(method, Request(seeds_for(0, n), cond), where, n)
            clock.tick(n)
        return
    k = 0
    while not clock.over:
        trainer.step(k)
        k += 1
        if k % stage.train.log_every == 0:
            trainer.look()
        clock.tick(batch)


def whole(trainer: Trainer, out: Path, log_every: int) -> None:
    """Train to the end; write the weights that it samples with, and print what it took, one JSON line."""
    begin, used = time.perf_counter(), time.process_time()
    for k in range(trainer.total):
        trainer.step(k)
        if (k + 1) % log_every == 0:
            trainer.look()
    took = {"seconds": round(time.perf_counter() - begin, 2), "processor_seconds": round(time.process_time() - used, 2)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with trainer.sampling():
        np.savez(out, **{name: value.float().numpy() for name, value in trainer.method.state_dict().items()})
    count = sum(p.numel() for p in trainer.method.parameters())
    print(json.dumps({"parameters": count, "steps": trainer.total, "images": trainer.total * trainer.config.batch, **took, "where": str(trainer.where)}))


def flat(trainer: Trainer, steps: int, log_every: int) -> None:
    """Print the resident memory after every tenth of the steps, one JSON line."""
    found = []
    for k in range(steps):
        trainer.step(k)
        if (k + 1) % log_every == 0:
            trainer.look()
        if (k + 1) % max(1, steps // 10) == 0:
            found.append({"step": k + 1, **memory(), "time": time.time()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
