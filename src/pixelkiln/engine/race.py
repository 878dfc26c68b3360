"""A short race at the start: in which precision and layout, and with how many threads, a convolutional net runs fastest here.

The entries take turns, so that a disturbance meets all of them, and each counts with its best time. Results are kept in the cache
folder by device, torch version, instruction set and number of threads, so that a machine is raced once.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.cache import recall, settle

__all__ = ["LAYOUTS", "PRECISIONS", "Entry", "fewer_threads", "processor", "race", "times"]

PRECISIONS, LAYOUTS = ("fp32", "bf16"), ("channels-last", "contiguous")
SECONDS = 0.8  # of a race, warm-up aside
BEHIND = 2.0  # an entry that takes so many times as long as the best one drops out
ISA = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}  # by flag, the best first
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def processor() -> str:
    """The processor's model name, as the operating system gives it, and the widest instructions that decide how fast it multiplies: "AMD EPYC (AVX512-BF16)"."""
    with suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        words = {key.strip(): value.strip() for key, _, value in lines}
        if name := words.get("model name"):
            flags = words.get("flags", "").split()
            return name + next((f" ({said})" for flag, said in ISA.items() if flag in flags), "")
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Entry:
    """One way to compute: precision, layout, number of threads."""

    precision: str
    layout: str
    threads: int


def runner(device: torch.device, layout: str) -> tuple[nn.Module, Tensor]:
    """What is run: convolution, norm and activation twice, as in a U-Net's and in a GAN's layers, on (16, 64, 16, 16)."""
    net = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(1, 64), nn.SiLU(),
        nn.Conv2d(64, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
    )  # fmt: skip
    x = torch.ones(16, 64, 16, 16, device=device).to(memory_format=FORMATS[layout]).requires_grad_()
    return net.to(device).to(memory_format=FORMATS[layout]), x  # type: ignore[call-overload]


def lap(net: nn.Module, x: Tensor, precision: str) -> float:
    """Seconds of the faster of two forward and backward passes."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(x.device.type, lambda: None)
    best = math.inf
    for _ in range(2):
        wait()
        start = time.perf_counter()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = net(x).float().square().mean()
        loss.backward()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def race(device: torch.device, entries: Sequence[Entry], seconds: float = SECONDS) -> dict[Entry, float]:
    """The best time (s) of each entry; one that this device cannot run is left out. Leaves torch's generators and threads as they were."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    parts = {layout: runner(device, layout) for layout in LAYOUTS}
    best: dict[Entry, float] = {}
    running, laps, begin = list(entries), 0, time.perf_counter()
    try:
        while laps < 4 or (time.perf_counter() - begin < seconds and laps < 40):  # the first lap warms up
            for entry in list(running if laps % 2 else reversed(running)):
                torch.set_num_threads(entry.threads)
                try:
                    took = lap(*parts[entry.layout], entry.precision)
                except RuntimeError:  # bf16 on a device without it
                    running.remove(entry)
                    continue
                if laps:
                    best[entry] = min(best.get(entry, math.inf), took)
            laps += 1
            if best:
                running = [e for e in running if best[e] <= BEHIND * min(best.values())]
            else:
                begin = time.perf_counter()
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    return best


def _slot(device: torch.device, threads: int) -> str:
    """What the result depends on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} / torch {torch.__version__}"
    isa = " ".join([torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]).strip()
    return f"{device.type} {processor()} {isa} / torch {torch.__version__} / {threads} threads"


def times(device: torch.device, threads: int) -> Mapping[tuple[str, str], float]:
    """Seconds by (precision, layout), raced once a machine and kept."""
    slot, known = _slot(device, threads), recall("race")
    if slot not in known:
        found = race(device, [Entry(p, q, threads) for p in PRECISIONS for q in LAYOUTS])
        known[slot] = settle("race", slot, {f"{e.precision} {e.layout}": round(t, 7) for e, t in found.items()})
    return {(p, q): t for name, t in known[slot].items() for p, q in [name.split(" ")]}


def fewer_threads(device: torch.device, precision: str, layout: str, most: int) -> int:
    """`most`, or half of it, a quarter, ... where that is faster by a twentieth (small nets on many cores, a container's quota).

    On a machine that is busy with something else the question has no answer that lasts: `most`, and nothing is kept.
    """
    counts = [c for k in range(4) if (c := most >> k) >= 1]
    slot, known = f"{_slot(device, most)} / {precision} {layout}", recall("threads")
    if slot not in known:
        if len(counts) == 1 or _busy(most):
            return most
        found = race(device, [Entry(precision, layout, c) for c in counts])
        quick = min(found, key=lambda e: found[e]).threads
        known[slot] = settle("threads", slot, quick if found[Entry(precision, layout, quick)] * 1.05 < found[Entry(precision, layout, most)] else most)
    return int(known[slot])


def _busy(threads: int) -> bool:
    """Whether other programs have had more than a quarter of these cores in the last minute."""
    load = getattr(os, "getloadavg", partial(tuple, (0.0,)))()
    return load[0] > 0.25 * threads + 0.5
