"""Where a run happens: device, precision, compilation, threads. Arguments of the command, never part of the recipe."""

from __future__ import annotations

import contextlib
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from ..core.files import cache_dir, read_json, write_json
from ..core.protocols import Method
from ..core.types import UserError
from .parallel import ALONE, Team, joined

__all__ = ["Precision", "Where", "bf16_gain", "processor"]

Precision = Literal["auto", "fp32", "bf16"]
WORTH = 1.15  # bf16 is chosen when it is at least so many times as fast


def processor() -> str:
    """The processor's model name, as the operating system gives it."""
    with contextlib.suppress(OSError):
        from pathlib import Path

        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _race(device: torch.device) -> float:
    """Time of a small convolution block's forward and backward pass, fp32 over bf16: the best of several, taken in turns."""
    net = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(2)]).to(device)
    x = torch.randn(32, 64, 16, 16, device=device).to(memory_format=torch.channels_last)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    best = {False: float("inf"), True: float("inf")}
    for _ in range(8):
        for fast in best:
            wait()
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
                loss = net(x).float().square().mean()
            loss.backward()
            wait()
            best[fast] = min(best[fast], time.perf_counter() - start)
    return best[False] / best[True]


def bf16_gain(device: torch.device) -> float:
    """How many times as fast bf16 is as fp32 here: a micro-benchmark, cached by processor, torch version and threads."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    slot = f"{name} / torch {torch.__version__} / {torch.get_num_threads()} threads"
    file = cache_dir() / "precision.json"
    known: dict[str, float] = {}
    with contextlib.suppress(UserError):
        known = read_json(file)
    if slot not in known:
        state = torch.get_rng_state()
        known[slot] = round(_race(device), 3)
        torch.set_rng_state(state)
        with contextlib.suppress(OSError):
            write_json(file, known)
    return known[slot]


@dataclass(frozen=True)
class Where:
    """Device, precision ("fp32" or "bf16"), compilation, number of processor threads, and the processes that share the work."""

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    team: Team = field(default=ALONE, repr=False, compare=False)

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto", compile: bool = False) -> Where:
        """What this machine can do: CUDA or MPS where there is one, bf16 where it is faster (process 0 says so for all)."""
        team = joined()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"--device {device}: not available here ({str(e).splitlines()[0]}); try --device cpu") from None
        if team.size > 1 and ":" in device:
            raise UserError(f"--device {device}: each of {team.size} processes takes its own device; leave the number out")
        if device.startswith("cuda"):
            torch.set_float32_matmul_precision("high")
        if precision == "auto":
            precision = team.agree(lambda: "bf16" if bf16_gain(torch.device(device)) >= WORTH else "fp32")
        return cls(device, precision, compile, torch.get_num_threads(), team)

    def alone(self) -> Where:
        """The same for this process by itself, while the others do something else."""
        return replace(self, team=ALONE)

    def facts(self) -> dict[str, Any]:
        """What a run records of it."""
        return {"device": self.device, "precision": self.precision, "compile": self.compile, "threads": self.threads,
                "processes": self.team.size, "processor": processor()}

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast, or nothing."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()

    def place(self, method: Method) -> None:
        """Move the method and its parents here, convolutions channels-last; compile its networks if asked."""
        for parent in method.parents.values():
            self.place(parent)
        method.to(self.device)
        for p in method.parameters():
            if p.ndim == 4:
                p.data = p.data.to(memory_format=torch.channels_last)
        if self.compile:
            for net in method.children():
                net.compile()
