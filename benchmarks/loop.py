"""What the training loop costs over a step written by hand: same net, batches, loss, optimizer and average; the two take turns.

    python benchmarks/loop.py [--seconds 4] [--json]

By hand means what a script would have: rows of a shuffled index, the loss, backward, clipping, a fused optimizer, a foreach average; for a GAN, the
other net's parameters frozen. Not by hand: seeds for every step, rates by schedule, names, terms to log, batch statistics kept.
Each turn is a few steps; the cost is the median of turns over the median of turns by hand, less one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from kiln import trainer_for
from torch import nn

from pixelkiln.core.catalog import find
from pixelkiln.core.types import Batch, Condition, Moment
from pixelkiln.data import ImageSet, open_source
from pixelkiln.engine.ema import decay
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.where import Where


def by_hand(trainer: Trainer, data: ImageSet) -> Callable[[int], None]:
    """A training step in straight lines, for the same method, optimizers and average (those of another, equal trainer)."""
    method, config, average = trainer.method, trainer.config, trainer.average
    order = torch.randperm(len(data))
    nets = dict(method.named_children())
    frozen = {row.name: [p for name, net in nets.items() if name not in row.nets for p in net.parameters()] for row in trainer.rows}
    live, mean = ([], []) if average is None else ([p.detach() for p in average.live.values()], list(average.mean.values()))
    last = trainer.where.layout == "channels-last"
    memory = torch.channels_last if last else torch.contiguous_format
    method.train()

    def step(k: int) -> None:
        at = k * config.batch % (len(data) - config.batch)
        rows = order[at : at + config.batch]
        x = data.images[rows].to(torch.float32, memory_format=memory).div_(127.5).sub_(1)
        batch = Batch(x, Condition(label=None if data.labels is None else data.labels[rows]), rows)
        for row in trainer.rows:
            opt, settings = trainer.opts[row.opt], config.opts[row.opt]
            for p in frozen[row.name]:
                p.requires_grad_(False)
            with trainer.where.autocast():
                loss = row.loss(batch, Moment(k, trainer.total, k * config.batch))["loss"]
            loss.backward()
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(trainer.owned[row.opt], settings.clip)
            opt.step()
            opt.zero_grad(set_to_none=True)
            for p in frozen[row.name]:
                p.requires_grad_(True)
        if average is not None and config.ema is not None:
            torch._foreach_lerp_(mean, live, 1 - decay(config.ema, config.batch, (k + 1) * config.batch))

    return step


def compare(recipe: str, size: str, where: Where, seconds: float) -> dict[str, float | str | int]:
    """Milliseconds of a step, by the loop and by hand, and what the loop costs. Size small sees digits at MNIST's 28 pixels."""
    stage = find(recipe)(size).last
    if size != "tiny":
        stage = replace(stage, data=replace(stage.data, resolution=28))
    data = open_source("digits", stage.data, "train")
    ours, other = trainer_for(stage, data, where), trainer_for(stage, data, where)
    hand, k, counts = by_hand(other, data), 0, {"loop": [], "hand": []}
    for _ in range(5):
        ours.step(k)
        hand(k)
        k += 1
    begin = time.perf_counter()
    ours.step(k)
    group = max(1, min(20, int(0.02 / (time.perf_counter() - begin))))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, step in (("loop", ours.step), ("hand", hand)) if k % 2 else (("hand", hand), ("loop", ours.step)):
            start = time.perf_counter()
            for i in range(group):
                step(k + i)
            counts[name].append((time.perf_counter() - start) / group)
        k += group + (group % 2 == 0)
        ours.look()
    loop, by = (statistics.median(counts[name]) for name in ("loop", "hand"))
    return {"recipe": recipe, "size": size, "batch": stage.train.batch, "loop_ms": loop * 1e3, "hand_ms": by * 1e3, "cost": loop / by - 1,
            "turns": len(counts["loop"]), "quickest": min(counts["loop"]) / min(counts["hand"]) - 1}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=4.0, help="of each comparison")
    p.add_argument("--only", default="", help="recipes whose name and size hold this")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    where = Where.choose("cpu")
    found = []
    for recipe in ("vae-mlp", "vae", "dcgan", "ddpm"):
        for size in ("tiny", "small"):
            if args.only in f"{recipe} {size}":
                found.append(r := compare(recipe, size, where, args.seconds))
                if not args.json:
                    print(f"{recipe:>8} {size:<6} loop {r['loop_ms']:7.2f} ms  by hand {r['hand_ms']:7.2f} ms  cost {r['cost']:+.1%}  (quickest {r['quickest']:+.1%})", flush=True)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
