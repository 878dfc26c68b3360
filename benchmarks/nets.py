"""Training steps of the networks of diffusion beside each other: same images, batch, width, optimizer and precision, in turns.

    python benchmarks/nets.py [--threads 2] [--turns 7] [--steps 8] [--profile mpunet]

A turn is some steps (forward, backward, Adam) of one network while the others wait; a rate is the median over the turns, a ratio the median of the
ratios within a turn. Times are of the processor, summed over threads, so that a busy machine's other programs count little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pixelkiln.core.types import ImageShape
from pixelkiln.engine.memory import keep_memory
from pixelkiln.nets.backbone import DiTConfig, MPUNetConfig, NetConfig, UNetConfig, backbone

SHAPE, BATCH, DIM = ImageShape(1, 28, 28), 64, 256


def configs(width: int, patch: int) -> dict[str, NetConfig]:
    """The U-Nets of one size, and the transformer of about as many FLOP."""
    same = {"width": width, "mults": (1, 2), "blocks": 1, "attention": (1,), "patch": patch}
    return {"unet": UNetConfig(**same), "mpunet": MPUNetConfig(**same), "dit": DiTConfig(width=128, depth=4, heads=2, patch=patch)}  # type: ignore[arg-type]


def stepper(net: nn.Module, bf16: bool) -> Callable[[], None]:
    """One training step."""
    for p in net.parameters():
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    opt = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    x, t, vec = torch.randn(BATCH, *SHAPE), torch.rand(BATCH), torch.randn(BATCH, DIM)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = (net(x, t, vec).float() - x).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    return step


def facts(net: nn.Module) -> dict[str, float]:
    """Parameters, and FLOP an image of a forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, *SHAPE), torch.rand(2), torch.randn(2, DIM)).sum().backward()
    net.zero_grad()
    return {"parameters": sum(p.numel() for p in net.parameters()), "mflop": counter.get_total_flops() / 2e6}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--profile", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    nets = {name: backbone(SHAPE, DIM, config).train() for name, config in configs(args.width, args.patch).items()}
    known = {name: facts(net) for name, net in nets.items()}
    steps = {name: stepper(net, args.precision == "bf16") for name, net in nets.items()}
    for step in steps.values():
        for _ in range(3):
            step()
    if args.profile:
        with torch.profiler.profile() as prof:
            for _ in range(5):
                steps[args.profile]()
        print(prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=28, max_name_column_width=60))
        return
    load, took = os.getloadavg()[0], {name: [] for name in steps}
    for turn in range(args.turns):
        for name in list(steps) if turn % 2 else reversed(list(steps)):
            start = time.process_time()
            for _ in range(args.steps):
                steps[name]()
            took[name].append((time.process_time() - start) / args.steps)
    for name, times in took.items():
        ratio = statistics.median(a / b for a, b in zip(took["unet"], times, strict=True))
        known[name] |= {"cpu ms": round(1e3 * statistics.median(times), 2), "images a cpu second": round(BATCH / statistics.median(times), 1), "unet=1": round(ratio, 3)}
        print(name, json.dumps(known[name]))
    print(f"load {load:.2f} before, {os.getloadavg()[0]:.2f} after; {args}")


if __name__ == "__main__":
    main()
