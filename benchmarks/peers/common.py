"""What the peers share: arguments, reading images, the training clock, and the file of samples with its line of figures."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Clock", "Items", "Slices", "clock_of", "finish", "labels_for", "load", "parser", "to_tensor"]


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that every peer takes; also fixes the number of threads at two, unless OMP_NUM_THREADS says another."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="IDX folder (MNIST) or Parquet folder in the Hub layout (CIFAR-10)")
    p.add_argument("--out", type=Path, help="samples, .npz with images uint8 (N, H, W, C) and labels where there are any")
    p.add_argument("--minutes", type=float, default=10.0, help="wall-clock of training; reading, sampling and saving are not counted")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-n", type=int, default=2000, help="number of samples")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    p.add_argument("--slices", action="store_true", help="be timed by speed.py: 'WARM SECONDS' lines on standard input, JSON lines back")
    p.add_argument("--sampling", action="store_true", help="with --slices: time sampling instead of training")
    return p


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file behind its header, from PATH or PATH.gz."""
    raw = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return np.frombuffer(bytearray(raw), np.uint8, offset=header)


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 (N, H, W, C) and labels (N,) int64."""
    parquet = sorted(folder.rglob("*train*.parquet"))
    if not parquet:
        labels = read_idx(folder / "train-labels-idx1-ubyte", 8).astype(np.int64)
        return read_idx(folder / "train-images-idx3-ubyte", 16).reshape(len(labels), 28, 28, 1), labels
    import pyarrow.parquet as pq  # only CIFAR-10 needs it

    rows = [row for file in parquet for row in pq.read_table(file).to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    return np.stack(images), np.array([row["label"] for row in rows], np.int64)


def to_tensor(image: Image.Image) -> Tensor:
    """What torchvision's ToTensor does to one image: PIL, 8 bits a channel -> float (C, H, W) in [0, 1]."""
    pixels = np.array(image, np.uint8, copy=True)
    pixels = pixels.reshape(image.size[1], image.size[0], len(image.getbands()))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)


class Items(Dataset):
    """A data set as torchvision's are: every item becomes a PIL image and is transformed by itself, each time that it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i]
        return self.transform(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)), int(self.labels[i])


class Clock:
    """Counts steps and images until the minutes are over."""

    def __init__(self, minutes: float) -> None:
        self.limit, self.steps, self.images, self.over = 60 * minutes, 0, 0, False
        self.start = time.perf_counter()

    def tick(self, images: int) -> bool:
        """One more step; True when the time is up."""
        self.steps, self.images = self.steps + 1, self.images + images
        self.seconds = time.perf_counter() - self.start
        self.over = self.seconds >= self.limit
        return self.over


def matrix_rate(kind: torch.dtype, device: str, seconds: float = 0.15) -> float:
    """FLOP/s of a product of two square matrices, the best of several; smaller ones where a processor takes long (bf16 without instructions for it)."""
    side = 8192 if device.startswith("cuda") else 192
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0:
        a = torch.randn(side, side, device=device).to(kind)  # ones would take less power, and run faster
        start = time.perf_counter()
        torch.mm(a, a)
        if a.is_cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best = max(best, 2 * side**3 / took)
        side = min(2 * side, 1536) if side < 1536 and took < seconds / 16 else side
    return best


def memory() -> dict[str, float]:
    """This process's memory now and at most, MiB (workers of a DataLoader not counted)."""
    found = {"rss_mib": 0.0, "peak_mib": 0.0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            for name, key in (("VmRSS:", "rss_mib"), ("VmHWM:", "peak_mib")):
                if line.startswith(name):
                    found[key] = round(int(line.split()[1]) / 1024, 1)
    if torch.cuda.is_initialized():
        found["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found


class Whole:
    """In place of the counter's own tracker of modules, whose hooks forbid gradients of gradients: all belongs to the whole."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Slices(Clock):
    """The clock of a program that speed.py times against others: they take turns, and wait while another one runs.

    The first step is counted, not timed: its floating-point operations go out in a first line with `facts`. Then each line "W S" on standard
    input asks for W seconds of warm-up and S seconds that count, and is answered by a line with the images of these seconds, the rate of
    matrix products just before, and the memory. With a third word, "processor", they are seconds of this process's processor time. An empty line
    ends the program.
    """

    def __init__(self, device: str = "cpu", **facts: object) -> None:
        super().__init__(math.inf)
        self.device, self.facts = device, facts
        self.counter: FlopCounterMode | None = FlopCounterMode(display=False)
        self.counter.mod_tracker = Whole()
        self.counter.__enter__()

    def tick(self, images: float) -> bool:
        """One more step; True when there is nothing more to do."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            print(json.dumps({**self.facts, "batch": images, "flop_per_image": self.counter.get_total_flops() / images}), flush=True)
            self.counter = None
            return self._order()
        self.images += images
        self.steps += 1
        if (time.process_time() - self.used if self.ours else time.perf_counter() - self.start) < self.until:
            return False
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        if not self.counts:
            self._begin(self.length, True)
            return False
        used = time.process_time() - self.used
        print(json.dumps({"images": self.images, "seconds": self.seconds, "processor_seconds": used, "steps": self.steps, **self.rates, **memory()}), flush=True)
        return self._order()

    def _begin(self, until: float, counts: bool) -> None:
        self.until, self.counts, self.images, self.steps = until, counts, 0, 0
        self.start, self.used = time.perf_counter(), time.process_time()

    def _order(self) -> bool:
        words = sys.stdin.readline().split()
        if len(words) not in (2, 3):
            self.over = True
            return True
        self.ours = len(words) == 3
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
        self.rates = {f"{name}_flops": matrix_rate(kind, self.device) for name, kind in kinds.items()}
        self.length = float(words[1])
        self._begin(float(words[0]), False)
        return False


def clock_of(args: argparse.Namespace, *nets: torch.nn.Module) -> Clock:
    """The clock that the arguments ask for."""
    if not args.slices:
        return Clock(args.minutes)
    precision = "bf16" if getattr(args, "mixed_precision", "no") == "bf16" else "fp32"
    return Slices(args.device, parameters=sum(p.numel() for net in nets for p in net.parameters()), threads=torch.get_num_threads(), precision=precision)


def labels_for(n: int, classes: int = 10) -> Tensor:
    """0, 1, ..., 9, 0, 1, ... (n,) int64: every class equally often."""
    return torch.arange(n) % classes


def finish(name: str, clock: Clock, out: Path, samples: Tensor, labels: Tensor | None, seconds: float) -> None:
    """Write samples (n, C, H, W) in [0, 1], and print one JSON line."""
    images = (samples.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    arrays = {"images": images} if labels is None else {"images": images, "labels": labels.numpy()}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    line = {"name": name, "steps": clock.steps, "images": clock.images, "seconds": round(clock.seconds, 2)}
    line |= {"images_per_s": round(clock.images / clock.seconds, 2), "sample_images_per_s": round(len(images) / seconds, 3)}
    line |= {"n": len(images), "out": str(out), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(line), flush=True)
