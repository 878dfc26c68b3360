"""What keeping a discriminator smooth costs: images/s of one pair of nets under every rule, side by side; and pixelkiln beside a textbook's DCGAN and WGAN-GP.

    python benchmarks/adversaries.py --data ../shared/data/mnist [--seconds 6] [--rounds 3]

The programs of a contest are started, then take turns, as in speed.py: a rate is the median of a program's turns, a ratio the median of the ratios within a turn. Nothing else may run on the
machine. (The share of the matrix rate is of the first step's operations, which are not the average ones where a penalty is lazy.) The nets are those of `dcgan` (small, batches of 64), the discriminator without a norm where the name of the row has none; a step of the generator counts as one batch whatever the
discriminator's steps. Writes benchmarks/results/DATE-adversaries.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from speed import Contest, Program, contest, load_average

from pixelkiln.engine.where import processor

HERE = Path(__file__).resolve().parent
WIDTH = 32  # of both nets of dcgan and wgan-gp at size small, and so of the textbook's
RULES: dict[str, tuple[str, ...]] = {  # options of dcgan by name of the row; the discriminator has no norm unless a row says so
    "nothing": (),
    "BatchNorm (dcgan itself)": ("model.nets.norm=batch",),
    "layer norm": ("model.nets.norm=layer",),
    "spectral norm": ("model.nets.norm=spectral",),
    "gradient penalty": ("model.rules.gradient=10",),
    "R1, every step": ("model.rules.r1=1",),
    "R1, every 16th step": ("model.rules.r1=1", "model.rules.r_every=16"),
    "R1 by differences": ("model.rules.r1=1", "model.rules.r_sigma=0.01"),
    "R1 + R2, every step": ("model.rules.r1=1", "model.rules.r2=1"),
    "R1 + R2 by differences": ("model.rules.r1=1", "model.rules.r2=1", "model.rules.r_sigma=0.01"),
    "orthogonal": ("model.rules.orthogonal=1e-4",),
    "consistency": ("model.rules.consistency=10",),
    "consistency, generated images, too": ("model.rules.consistency=10", "model.rules.consistency_fake=10"),
    "DiffAugment": ("model.rules.augment=diffaugment",),
    "ADA": ("model.rules.augment=ada",),
    "5 steps of D": ("model.rules.critic_steps=5",),
}


def contests(args: argparse.Namespace) -> list[Contest]:
    """The rules beside each other; ours beside the textbook's, each with the recipe's own settings."""

    def kiln(name: str, recipe: str, *changes: str) -> Program:
        return Program(name, (sys.executable, str(HERE / "kiln.py"), recipe, "--data", args.data, "--batch", "64", "--device", args.device, "--set", *changes))

    def textbook(game: str) -> Program:
        return Program("textbook", (sys.executable, str(HERE / "peers" / "textbook_gan.py"), "--game", game, "--data", args.data, "--batch", "64", "--width", str(WIDTH), "--slices", "--device", args.device))

    rules = tuple(kiln(name, "dcgan", "model.nets.norm=none", *changes) for name, changes in RULES.items())  # a later option counts
    beside = (Contest("textbook: dcgan", (kiln("pixelkiln dcgan", "dcgan"), textbook("dcgan"))), Contest("textbook: wgan-gp", (kiln("pixelkiln wgan-gp", "wgan-gp"), textbook("wgan-gp"))))
    return [Contest("rules", rules), *beside]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="MNIST or CIFAR-10")
    p.add_argument("--device", default="cpu")
    p.add_argument("--seconds", type=float, default=6, help="of a turn")
    p.add_argument("--warm", type=float, default=1, help="of warm-up before each turn")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default="", help="contests whose name holds this (no result is written then, unless --out)")
    p.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    machine: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, "python": platform.python_version(),
                               "device": args.device, "load_before": load_average()}
    begin = time.perf_counter()
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine, "data": Path(args.data).name}
    found["settings"] = {k: getattr(args, k) for k in ("seconds", "warm", "rounds")}
    found["contests"] = [contest(c, args, env) for c in contests(args) if args.only in c.name]
    machine["load_after"], found["minutes"] = load_average(), round((time.perf_counter() - begin) / 60, 1)
    if args.only and not args.out:
        return
    target = args.out or HERE / "results" / f"{found['date']}-adversaries.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
