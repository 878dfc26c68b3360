"""Files that are never half-written: everything is written aside, fsynced and renamed; tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cache_dir", "fsync_dir", "read_json", "read_meta", "read_tensors", "refuse_pickle", "sha256", "write_bytes", "write_json", "write_tensors"]

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


def refuse_pickle(path: Path) -> None:
    """Refuse files that would execute code when read (UserError)."""
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: {path.suffix} files are pickles, which run code when they are opened; give a run folder or a .safetensors file")


def fsync_dir(path: Path) -> None:
    """Make the folder's entries durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Write aside, fsync, rename: the file is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_dir(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write JSON, readable by people."""
    write_bytes(path, (json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a UserError that names it."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e}); the file is damaged") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors."""
    from safetensors.torch import save  # here, so that commands that only read JSON need no torch

    flat = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(path, save(flat, dict(meta or {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a UserError that names it."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a readable safetensors file ({e})") from None


def read_meta(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        return dict(f.metadata() or {})


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where things that can be made again are kept: $PIXELKILN_CACHE, or ~/.cache/pixelkiln."""
    return Path(os.environ.get("PIXELKILN_CACHE") or Path.home() / ".cache" / "pixelkiln")
