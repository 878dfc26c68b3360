"""What the cache of `code-prior` saves: 256 codes drawn with keys and values kept, and with the whole sequence read anew for every code; the same weights, fp32.

    taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/cached.py [--turns 3] [--batches 1 16 64]
    python benchmarks/tables.py

The transformer is 192 wide and 6 deep, over the 16 x 16 codes of a `vqvae` of 64 x 64 images; its weights are random ones, made large enough for every code to matter. The
uncached sampler reads the places up to the next code, no padding, and both halves of guidance in one batch, as the cached one does. Before any time is taken, the
logits of all places are compared, under the codes that the cached sampler drew: the largest difference must be below --tolerance (the logits' own spread is in the result).

The two samplers take turns. Reading anew takes minutes for large batches: there every --stride-th place is timed, and counted so many times. A ratio is the median of the turns' ratios,
of processor time (what else runs on the machine disturbs it less); the wall clock is in the result, too. Writes benchmarks/results/DATE-cached.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from speed import load_average
from torch import Tensor

from pixelkiln.core.catalog import find
from pixelkiln.core.types import Condition, DataInfo, ImageShape, Request
from pixelkiln.engine.build import make
from pixelkiln.engine.where import processor
from pixelkiln.methods.code_prior import CodePrior
from pixelkiln.nets.causal import Cache, CausalConfig
from pixelkiln.solvers.categorical import guided_logits, pick, probabilities

HERE = Path(__file__).resolve().parent
INFO = DataInfo(ImageShape(1, 64, 64), tuple("0123456789"))
NET = CausalConfig(width=192, depth=6, heads=3)  # 2.9 M weights
SPREAD = 0.05  # added to the weights, so that logits differ by place, code and class


def prior() -> CodePrior:
    """The recipe's model on an untrained codec."""
    codec = make(find("vqvae")("small").last, INFO, {}, 1)
    stage = find("code-prior")("small").last
    made = make(replace(stage, model=replace(stage.model, net=NET)), INFO, {"codec": codec}, 0).eval()
    assert isinstance(made, CodePrior)
    torch.manual_seed(0)
    for p in made.parameters():
        p.add_(SPREAD * torch.randn_like(p))
    return made


def vectors(made: CodePrior, batch: int, guided: bool) -> Tensor:
    """What stands for the condition, (batch, E), or (2 batch, E): of the classes, then of none."""
    told = made.condition(Condition(label=torch.arange(batch) % 10), batch).vec
    return torch.cat([told, made.condition(Condition(), batch).vec]) if guided else told


def apart(made: CodePrior, tokens: Tensor, guided: bool) -> dict[str, float]:
    """The largest difference of cached logits to those of the whole sequence, under given codes (B, N); and the deviation of the logits."""
    vec, both = vectors(made, len(tokens), guided), tokens.repeat(1 + guided, 1)
    whole, cache = made.net(both, vec), Cache(made.config.net.depth, made.net.total)
    steps = torch.stack([made.net.step(both[:, i - 1] if i else None, vec, cache) for i in range(made.net.total)], dim=1)
    return {"difference": float((steps - whole).abs().max()), "deviation": float(whole.std())}


def anew(made: CodePrior, u: Tensor, drawn: Tensor, weight: float, stride: int) -> tuple[float, float, int]:
    """Seconds of the wall and of the processor in which the uncached sampler draws all codes, from every stride-th place (in the middle of its stretch); and how many of
    these are other codes than were drawn with the cache. Codes (B, N) before a place are those that were drawn."""
    guided = weight != 1
    vec, both = vectors(made, len(u), guided), drawn.repeat(1 + guided, 1)
    wall = used = 0.0
    others = 0
    for i in range(stride // 2, made.net.total, stride):
        begin, busy = time.perf_counter(), time.process_time()
        logits = made.net(both[:, : i + 1], vec)[:, i]
        if guided:
            logits = guided_logits(*logits.chunk(2), weight)
        code = pick(probabilities(logits), u[:, i])
        wall, used = wall + stride * (time.perf_counter() - begin), used + stride * (time.process_time() - busy)
        others += int((code != drawn[:, i]).sum())
    return wall, used, others


def measure(made: CodePrior, batch: int, weight: float, args: argparse.Namespace) -> dict[str, Any]:
    """One row: equality first, then the turns."""
    u = torch.rand(batch, made.net.total, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    request = Request(tuple(range(batch)), Condition(label=torch.arange(batch) % 10), guidance=weight)
    drawn = made.write(u, request)
    row: dict[str, Any] = {"batch": batch, "guidance": weight, "codes": made.net.total, "stride": args.stride if batch > 1 else 1, **apart(made, drawn, weight != 1)}
    assert row["difference"] < args.tolerance, f"batch {batch}: the cached logits are {row['difference']:.1e} from the others"
    turns: list[dict[str, float]] = []
    for _ in range(args.turns):
        begin, busy = time.perf_counter(), time.process_time()
        again = made.write(u, request)
        turn = {"cached_wall": time.perf_counter() - begin, "cached": time.process_time() - busy}
        assert torch.equal(again, drawn), "the same numbers give the same codes"
        turn["anew_wall"], turn["anew"], row["other_codes"] = anew(made, u, drawn, weight, row["stride"])
        turns.append(turn)
    row |= {name: round(statistics.median(t[name] for t in turns), 4) for name in turns[0]}
    row |= {"ratio": statistics.median(t["anew"] / t["cached"] for t in turns), "wall_ratio": statistics.median(t["anew_wall"] / t["cached_wall"] for t in turns)}
    row["ratios"] = [round(t["anew"] / t["cached"], 2) for t in turns]
    print(f"batch {batch:>3}, guidance {weight:g}: cached {row['cached']:.3f} s, anew {row['anew']:.2f} s, x{row['ratio']:.1f} (wall x{row['wall_ratio']:.1f}); "
          f"logits within {row['difference']:.1e} of a deviation of {row['deviation']:.2f}; {row['other_codes']} other codes", flush=True)
    return row


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    p.add_argument("--weights", type=float, nargs="+", default=[1.0, 2.0], help="of guidance")
    p.add_argument("--stride", type=int, default=16, help="places of which one is timed without the cache, for batches above 1")
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    made = prior()
    machine: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "pinned": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
                               "torch": torch.__version__, "python": platform.python_version(), "load_before": load_average()}
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine, "parameters": sum(q.numel() for q in made.parameters())}
    found["settings"] = {k: getattr(args, k) for k in ("turns", "stride", "tolerance")}
    found["rows"] = [measure(made, batch, weight, args) for batch in args.batches for weight in args.weights]
    machine["load_after"] = load_average()
    target = args.out or HERE / "results" / f"{found['date']}-cached.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
