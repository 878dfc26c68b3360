"""Where a run happens: device, precision, layout, compilation, threads. Arguments of the command, never part of the recipe."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ..core.protocols import Method
from ..core.types import UserError
from .parallel import ALONE, Team, joined
from .race import FORMATS, LAYOUTS, PRECISIONS, fewer_threads, processor, times

__all__ = ["Precision", "Where", "compilable", "processor"]

Precision = Literal["auto", "fp32", "bf16"]
WORTH = 1.15  # bf16 is chosen when it is at least so many times as fast
COMPILE = "off, since it pays in long runs on some machines only: try --compile on"


@dataclass(frozen=True)
class Where:
    """Device, precision ("fp32" or "bf16"), compilation, number of processor threads, layout ("channels-last" or "contiguous"), the reasons
    (`why`) for each of these that was chosen here and not by the user, and the processes that share the work."""

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    layout: str = "channels-last"
    why: Mapping[str, str] = field(default_factory=dict, compare=False)
    team: Team = field(default=ALONE, repr=False, compare=False)

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto", compile: str = "auto", layout: str = "auto", threads: int | str | None = None) -> Where:
        """What is fastest here of what was left open ("auto"): CUDA or MPS where there is one, then by a race that is kept (of process 0, for all).

        threads: None leaves torch's number alone; "auto" does so too where OMP_NUM_THREADS says it, or a race finds no smaller one faster.
        """
        team = joined()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            at = torch.device(device)
            torch.empty(0, device=at)
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"--device {device}: not available here ({str(e).splitlines()[0]}); try --device cpu") from None
        if team.size > 1 and ":" in device:
            raise UserError(f"--device {device}: each of {team.size} processes takes its own device; leave the number out")
        if at.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if isinstance(threads, int):
            torch.set_num_threads(threads)
        if compile == "on":
            _check_compiler(at)
        found = team.agree(lambda: _raced(at, precision, layout, threads))
        if compile == "auto":
            found["why"]["compile"] = COMPILE
        return cls(device, compile=compile == "on", team=team, **found)

    def alone(self) -> Where:
        """The same for this process by itself, while the others do something else."""
        return replace(self, team=ALONE)

    def facts(self) -> dict[str, Any]:
        """What a run records of it."""
        return {"device": self.device, "precision": self.precision, "compile": self.compile, "threads": self.threads, "layout": self.layout,
                "why": dict(self.why), "processes": self.team.size, "processor": processor()}

    def __str__(self) -> str:
        """In one line, with the reasons."""
        what = {"device": self.device, "precision": self.precision, "layout": self.layout, "threads": f"{self.threads} threads",
                "compile": "compiled" if self.compile else "not compiled"}
        return ", ".join(words + (f" ({self.why[name]})" if name in self.why else "") for name, words in what.items())

    def kept(self, begun: Mapping[str, Any]) -> Where:
        """This machine, with everything that a run was begun with (its recipe.json's "where"): precision, layout, compilation, and, on a
        processor of the same name unless the user says otherwise, threads."""
        threads = self.threads
        if "threads" in self.why and begun["device"] == self.device and begun.get("processor") == processor():
            threads = int(begun["threads"])
        same = {"precision": begun["precision"], "layout": begun.get("layout", "channels-last"), "compile": bool(begun["compile"])}
        return replace(self, threads=threads, why={k: v for k, v in begun.get("why", {}).items()}, **same)

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast, or nothing."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()

    def eager(self) -> AbstractContextManager[object]:
        """Inside, compiled networks run as they are written: sampling has other shapes, each of which would be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self.compile else contextlib.nullcontext()

    def place(self, method: Method) -> None:
        """Move the method and its parents here, convolutions in the layout; compile its networks if asked."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        for parent in method.parents.values():
            self.place(parent)
        method.to(self.device)
        for p in method.parameters():
            if p.ndim == 4:
                p.data = p.data.to(memory_format=FORMATS[self.layout])
        if self.compile:
            for net in method.children():
                net.compile()


@contextlib.contextmanager
def compilable(where: Where, what: str) -> Iterator[None]:
    """Inside, what compiled networks cannot do is a `UserError`: differentiate a gradient, as the penalties of some GANs do."""
    try:
        yield
    except RuntimeError as e:
        if where.compile and "double backward" in str(e):
            raise UserError(f"--compile on: {what} differentiates a gradient, which compiled networks cannot; train anew without it, with another --out") from None
        raise


def _raced(device: torch.device, precision: str, layout: str, threads: int | str | None) -> dict[str, Any]:
    """Precision, layout and threads, by a race where they are left open, and the reasons: JSON values."""
    count = torch.get_num_threads()
    why: dict[str, str] = {}
    if "auto" in (precision, layout):
        precision, layout = _quickest(times(device, count), precision, layout, why)
    if threads == "auto":
        why["threads"] = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else f"of {count}"
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            count = fewer_threads(device, precision, layout, count)
    return {"precision": precision, "layout": layout, "threads": count, "why": why}


def _quickest(took: Mapping[tuple[str, str], float], precision: str, layout: str, why: dict[str, str]) -> tuple[str, str]:
    """The precision and the layout that the race's times speak for, among those that are left open; the reasons go into `why`."""
    layouts = LAYOUTS if layout == "auto" else (layout,)
    if precision == "auto":
        best = {p: min(took.get((p, q), math.inf) for q in layouts) for p in PRECISIONS}
        gain = best["fp32"] / best["bf16"]
        precision = "bf16" if gain >= WORTH else "fp32"
        why["precision"] = f"bf16 takes {1 / gain:.2f} of the time of fp32" if gain else "bf16 does not run here"
    if layout == "auto":
        first, second = (took.get((precision, q), math.inf) for q in LAYOUTS)
        layout = LAYOUTS[0] if first <= 1.05 * second else LAYOUTS[1]
        why["layout"] = f"channels-last takes {first / second:.2f} of the time of contiguous"
    return precision, layout


def _check_compiler(device: torch.device) -> None:
    """Errors: `UserError` where torch.compile does not work (no C++ compiler, no Python headers, an unsupported Python)."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as e:  # dynamo and inductor raise all kinds
        lines = [line for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        raise UserError(f"--compile on: torch.compile does not work here ({lines[0][:160]}); install a C++ compiler, or leave it out") from None
