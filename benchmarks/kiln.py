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


def trainer_for(stage: Stage, data: ImageSet, where: Where, graphs: bool = False) -> Trainer:
    """A method placed and fed as `pixelkiln train` does it."""
    method = make(stage, data.info, {}, 0)
    where.place(method)
    if graphs:  # CUDA graphs by torch.compile
        for net in method.children():
            net.compile(mode="reduce-overhead")
    feed = Feed(data, stage.train.batch, stage.data, 0, where.device, where.layout == "channels-last")
    return Trainer(method, stage.train, feed.batch, 0, stage.train.steps, where)


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
    trainer = trainer_for(stage, data, where, args.graphs)
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
