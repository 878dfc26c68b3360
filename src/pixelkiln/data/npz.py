"""`.npz` files, the format of samples: images uint8 (N, H, W, C), labels (N,), classes (names). Never pickled objects."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .images import ImageSet, Split, check_labels, code_labels, hold_out
from .prepare import prepare

__all__ = ["open_npz", "write_arrays", "write_npz"]


def write_npz(
    path: str | Path,
    images: Tensor | np.ndarray[Any, Any],
    labels: Tensor | np.ndarray[Any, Any] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write images uint8 (N, H, W, C), labels (N,) and class names. The file is written aside, synced and renamed: whole or absent."""
    parts: dict[str, Any] = {"images": np.asarray(images)}
    assert (parts["images"].dtype, parts["images"].ndim) == (np.uint8, 4), "images are uint8 (N, H, W, C)"
    if labels is not None:
        parts["labels"] = np.asarray(labels).astype(np.int64)
        assert parts["labels"].shape == parts["images"].shape[:1], "one label an image"
    if classes:
        parts["classes"] = np.array(list(classes), dtype=np.str_)
    write_arrays(Path(path), parts)


def write_arrays(path: Path, parts: Mapping[str, Any]) -> None:
    """Write arrays by name. The file is written aside, synced and renamed: whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with open(path, "rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.lib.npyio.NpzFile):
                assert arrays.zip is not None, "it was just opened"
                size = sum(info.file_size for info in arrays.zip.infolist())  # zipfile reads no more than it promises
                if size > memory():
                    raise UserError(f"{path} unpacks to {size / 1e9:,.0f} GB, more than this machine has memory: give a smaller file")
                return {name: arrays[name] for name in ("images", "labels", "classes") if name in arrays}
    except UserError:
        raise
    except (KeyError, NotImplementedError, RuntimeError, OSError, SyntaxError, TypeError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise UserError(f"{path} holds pickled objects, which are never read: save plain arrays") from error
        raise UserError(f"{path} cannot be read as .npz ({' '.join(str(error).split())[:160]}): write it again") from error
    raise UserError(f"{path} is a single array, not an .npz: save it with the key 'images'")


def open_npz(path: Path, config: DataConfig, split: Split) -> ImageSet:
    """Read `images` uint8 (N, H, W, C) or (N, H, W), `labels` integers (N,) and `classes` strings; each tenth image is the test split.

    Errors: `UserError` on another dtype or shape, pickled objects, and labels out of range.
    """
    parts = _read(path)
    images = parts.get("images")
    if images is None:
        raise UserError(f"{path} has no array named 'images': save uint8 (N, H, W, C) under that name")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        found = f"{parts['images'].dtype} {parts['images'].shape}"
        raise UserError(f"{path}: 'images' is {found}: it must be uint8 (N, H, W) or (N, H, W, C) with C = 1 or 3")
    labels, classes = _labels(parts, len(images), str(path))
    rows = hold_out(len(images), split, str(path))
    data = prepare(torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2), config)
    return ImageSet(data, None if labels is None else labels[rows], classes, name=path.stem, split=split)


def _labels(parts: dict[str, np.ndarray[Any, Any]], num: int, where: str) -> tuple[Tensor | None, tuple[str, ...]]:
    if "labels" not in parts:
        return None, ()
    values, names = parts["labels"], parts.get("classes")
    if values.dtype.kind not in "iu" or values.shape != (num,):
        raise UserError(f"{where}: 'labels' is {values.dtype} {values.shape}: it must be integers ({num},), one an image")
    labels, classes = code_labels(values.tolist(), where) if names is None else (torch.from_numpy(values.astype(np.int64)), ())
    if names is not None:
        if names.dtype.kind != "U" or names.ndim != 1:
            raise UserError(f"{where}: 'classes' is {names.dtype} {names.shape}: it must be strings, one a class")
        classes = tuple(names.tolist())
        assert labels is not None
        check_labels(labels, len(classes), where)
    return labels, classes
