"""Averages by a power of the time: how exact they are afterwards, by number and precision of snapshots, and what they cost in training.

    python benchmarks/ema.py [--threads 2] [--turns 5]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from pixelkiln.core.catalog import builtin
from pixelkiln.core.recipe import EmaConfig
from pixelkiln.core.types import DataInfo, ImageShape
from pixelkiln.engine.build import make
from pixelkiln.engine.ema import Average
from pixelkiln.engine.posthoc import coefficients, exponent

STEPS, TRACKED, WANTED = 960, (0.05, 0.1), (0.02, 0.03, 0.07, 0.13, 0.2)


def walk() -> Tensor:
    """1,025 weights over STEPS steps, float64: they go somewhere, with noise that becomes smaller (as in tests/test_ema.py)."""
    gen = torch.Generator().manual_seed(0)
    start, end = (torch.randn(1025, generator=gen, dtype=torch.float64) for _ in range(2))
    share = torch.linspace(0, 1, STEPS, dtype=torch.float64)[:, None]
    steps = torch.randn(STEPS, 1025, generator=gen, dtype=torch.float64).cumsum(0) / STEPS**0.5
    return end + (start - end) * torch.exp(-6 * share) + 0.2 * steps * (1.2 - share)


def average(weights: Tensor, std: float) -> Tensor:
    """The average after the last of the steps, float64."""
    edges = (torch.arange(len(weights) + 1, dtype=torch.float64) / len(weights)) ** (exponent(std) + 1)
    return edges.diff() @ weights


def exactness() -> None:
    """The table of docs/ema.md."""
    weights = walk()
    print(f"{'snapshots':22} {'bytes a parameter':>18}" + "".join(f"{w:>9}" for w in WANTED))
    for num in (8, 12, 16, 24, 32):
        at = [(-(-STEPS * i // num), std) for i in range(1, num + 1) for std in TRACKED]
        held = torch.stack([average(weights[:t], std) for t, std in at])
        for kind in (torch.float16, torch.float32):
            errors = []
            for std in WANTED:
                x, online = coefficients([t for t, _ in at], [s for _, s in at], STEPS, std), average(weights, std)
                errors.append(float((x @ held.to(kind).double() - online).norm() / online.norm()))
            print(f"{num:3} {kind!s:18} {len(TRACKED) * num * kind.itemsize:18}" + "".join(f"{e:9.1e}" for e in errors))


def cost(turns: int) -> None:
    """Milliseconds of one update of the averages of ddpm, small, turn by turn."""
    stage = builtin()["ddpm"]("small").last
    method = make(stage, DataInfo(ImageShape(1, 28, 28), tuple("0123456789")), {}, 0)
    kinds = {"half-life": EmaConfig(), "power, two lengths": EmaConfig(kind="power")}
    averages = {name: Average(method, method.averaged, config) for name, config in kinds.items()}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns):
        for name, held in averages.items():
            start = time.perf_counter()
            for k in range(20):
                held.update(64, 64 * (20 * turn + k + 1))
            spent[name].append(1e3 * (time.perf_counter() - start) / 20)
    for name, times in spent.items():
        print(f"{name}: {median(times):.2f} ms an update of {sum(p.numel() for p in method.parameters()):,} parameters")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--turns", type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    exactness()
    cost(args.turns)


if __name__ == "__main__":
    main()
