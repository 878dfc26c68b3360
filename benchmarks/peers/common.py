"""What the peers share: arguments, reading images, the training clock, and the file of samples with its line of figures."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Clock", "Items", "finish", "labels_for", "load", "parser", "to_tensor"]


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that every peer takes; also fixes the number of threads at two."""
    torch.set_num_threads(2)
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="IDX folder (MNIST) or Parquet folder in the Hub layout (CIFAR-10)")
    p.add_argument("--out", type=Path, required=True, help="samples, .npz with images uint8 (N, H, W, C) and labels where there are any")
    p.add_argument("--minutes", type=float, default=10.0, help="wall-clock of training; reading, sampling and saving are not counted")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-n", type=int, default=2000, help="number of samples")
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
    import pyarrow.parquet as pq  # only CIFAR-10 needs these two
    from PIL import Image

    rows = [row for file in parquet for row in pq.read_table(file).to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    return np.stack(images), np.array([row["label"] for row in rows], np.int64)


def to_tensor(image: np.ndarray) -> Tensor:
    """What torchvision's ToTensor does to one image: uint8 (H, W, C) -> float (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div(255)


class Items(Dataset):
    """A data set as torchvision's are: every item is transformed by itself, each time that it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


class Clock:
    """Counts steps and images until the minutes are over."""

    def __init__(self, minutes: float) -> None:
        self.limit, self.steps, self.images = 60 * minutes, 0, 0
        self.start = time.perf_counter()

    def tick(self, images: int) -> bool:
        """One more step; True when the time is up."""
        self.steps, self.images = self.steps + 1, self.images + images
        self.seconds = time.perf_counter() - self.start
        return self.seconds >= self.limit


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
