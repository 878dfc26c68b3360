"""Where a pipeline runs and how it fits there: device, precision, and a ladder of settings that take less memory and more time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..core.errors import UserError
from .order import Precision

__all__ = ["LEVELS", "apply", "choose_device", "choose_level", "choose_precision", "free_memory", "is_full", "next_level"]

LEVELS = {  # each one includes those before it; only an accelerator has the last two
    "none": "everything on the device",
    "tiling": "the VAE by tiles and one image at a time",
    "slicing": "tiling, and attention by slices",
    "offload": "slicing, and one model at a time on the device",
    "sequential": "slicing, and one layer at a time on the device",
}
BYTES = 2048  # a pixel and byte of precision: what a U-Net and a VAE need beside their weights, from above


def choose_device(device: str) -> str:
    """CUDA or MPS where there is one, or what the user says. Errors: `UserError` where that is not available."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not available here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device


def choose_precision(precision: str, device: str) -> Precision:
    """bf16 where the graphics processor computes in it, fp16 on older ones and MPS, fp32 on a CPU; or what the user says."""
    if precision in ("fp32", "fp16", "bf16"):
        return precision  # type: ignore[return-value]
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "fp16" if device.startswith("mps") else "fp32"


def free_memory(device: str) -> int:
    """Bytes that are free there."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pages = os.sysconf_names.get("SC_AVPHYS_PAGES")
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else 2**62


def levels(device: str) -> list[str]:
    """The ladder on this device."""
    return [name for name in LEVELS if name not in ("offload", "sequential") or not device.startswith("cpu")]


def choose_level(pipe: Any, device: str, pixels: int, free: int) -> str:
    """The first of the ladder that should fit: weights, largest model and pixels of a batch against the free bytes."""
    sizes = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    width = max((p.element_size() for m in pipe.components.values() if isinstance(m, torch.nn.Module) for p in m.parameters()), default=4)
    weights, largest, work = sum(sizes), max(sizes, default=0), pixels * BYTES * width
    if device.startswith("cpu"):  # they are there already
        weights = 0
    need = {"none": weights + work, "tiling": weights + work // 2, "slicing": weights + work // 4, "offload": largest + work // 4}
    known = levels(device)
    return next((name for name in known if name in need and need[name] <= free), known[-1])


def next_level(level: str, device: str) -> str | None:
    """The next cheaper one, or None."""
    known = levels(device)
    i = known.index(level) + 1
    return known[i] if i < len(known) else None


def apply(pipe: Any, level: str, device: str) -> None:
    """Put the pipeline on the device in this way. Errors: `UserError` for an offloading without an accelerator."""
    if level not in levels(device):
        raise UserError(f"--memory {level}: {'no such setting' if level not in LEVELS else 'a CPU has nowhere to move models to'}; "
                        f"choose auto, {', '.join(levels(device))}")
    vae = getattr(pipe, "vae", None)
    if level != "none" and vae is not None:
        for name in ("enable_tiling", "enable_slicing"):
            getattr(vae, name, lambda: None)()
    if level not in ("none", "tiling"):
        pipe.enable_attention_slicing()
    if level == "offload":
        pipe.enable_model_cpu_offload(device=device)
    elif level == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def is_full(error: BaseException) -> bool:
    """Whether this says that the memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and (
        "out of memory" in str(error).lower() or "not enough memory" in str(error) or "DefaultCPUAllocator" in str(error)))
