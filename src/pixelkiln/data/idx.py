"""IDX folders as MNIST is distributed: `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]`, `t10k-...`.

The format (Y. LeCun, C. Cortes, C. Burges, yann.lecun.com/exdb/mnist): bytes 0 0, dtype (8 = unsigned byte), number of dimensions;
one big-endian uint32 a dimension; the data.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from itertools import product
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..core.recipe import DataConfig
from ..core.types import UserError
from .images import ImageSet, Split, code_labels, hold_out
from .prepare import prepare

__all__ = ["has_idx", "open_idx", "read_idx"]

PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
GZIP_RATIO = 1032  # deflate expands no more than this: what a header promises beyond it is not there


def _find(folder: Path, split: str, what: str) -> Path | None:
    kind = {"images": "idx3", "labels": "idx1"}[what]
    for prefix, joint, end in product(PREFIXES[split], "-.", ("", ".gz")):
        path = folder / f"{prefix}-{what}{joint}{kind}-ubyte{end}"
        if path.is_file():
            return path
    return None


def has_idx(folder: Path) -> bool:
    """Whether the folder holds IDX images."""
    return _find(folder, "train", "images") is not None or _find(folder, "test", "images") is not None


def read_idx(path: Path, ndim: int) -> np.ndarray[Any, Any]:
    """The unsigned bytes of an IDX file with `ndim` dimensions.

    Errors: `UserError` on a wrong magic number, dtype or number of dimensions, and on a file that is too short or too long.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            return _parse(file, path, ndim)
    except UserError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): fetch it again") from error


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path, ndim: int) -> np.ndarray[Any, Any]:
    head = file.read(4)
    if head[:2] != b"\0\0" or len(head) < 4:
        raise UserError(f"{path} does not begin as an IDX file (bytes {head.hex() or 'none'}): fetch it again")
    if head[2] != 8 or head[3] != ndim:
        raise UserError(f"{path} has dtype code {head[2]:#04x} and {head[3]} dimensions: 0x08 (unsigned byte) and {ndim} are expected")
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise UserError(f"{path} is cut short in its header: fetch it again")
    shape = struct.unpack(f">{ndim}I", sizes)
    num = prod(shape)
    most = path.stat().st_size * (GZIP_RATIO if path.suffix == ".gz" else 1)
    data = file.read(num + 1) if num <= most else b""
    if len(data) != num or num == 0:
        found = "more" if len(data) > num else f"{len(data):,}"
        raise UserError(f"{path} promises {' x '.join(map(str, shape))} bytes but holds {found}: fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def open_idx(folder: Path, config: DataConfig, split: Split) -> ImageSet:
    """An IDX folder; labels are optional, classes are the digits 0.. up to the largest label of both splits.

    Errors: `UserError` as `read_idx`, where images and labels differ in number, and where only one split has labels.
    """
    explicit = all(_find(folder, part, "images") is not None for part in PREFIXES)
    if explicit and split == "all":
        raise UserError(f"{folder} has a train and a test split: ask for one of them")
    chosen = split if explicit else next(part for part in PREFIXES if _find(folder, part, "images"))
    path = _find(folder, chosen, "images")
    assert path is not None
    values: dict[str, list[int]] = {}
    for part in PREFIXES if explicit else (chosen,):
        label_path = _find(folder, part, "labels")
        if label_path is not None:
            values[part] = read_idx(label_path, 1).tolist()
    if explicit and len(values) == 1:
        raise UserError(f"{folder} has labels for {next(iter(values))} only: add the labels of the other split")
    _, classes = code_labels([v for part in values.values() for v in part], str(folder)) if values else (None, ())
    images = read_idx(path, 3)
    labels = torch.tensor(values[chosen], dtype=torch.int64) if values else None
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{path} holds {len(images)} images but its labels are {len(labels)}: fetch both again")
    rows = torch.arange(len(images)) if explicit else hold_out(len(images), split, str(folder))
    data = torch.from_numpy(images[rows.numpy()])[:, None]  # (n, 1, H, W)
    return ImageSet(prepare(data, config), None if labels is None else labels[rows], classes, name=folder.resolve().name, split=split)
