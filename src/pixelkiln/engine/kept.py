"""What can be made again is kept beside a card with its SHA-256; what does not match its card counts as not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.files import read_json, read_tensors, sha256, write_json, write_tensors
from ..core.types import UserError

__all__ = ["keep", "recall", "writable"]


def keep(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, and a JSON card beside them: the facts, and the file's hash."""
    write_tensors(file, tensors)
    write_json(file.with_suffix(".json"), {**facts, "sha256": sha256(file)})


def recall(file: Path) -> dict[str, Tensor] | None:
    """What `keep` wrote, None if it is not there or not what its card says."""
    try:
        return read_tensors(file) if read_json(file.with_suffix(".json"))["sha256"] == sha256(file) else None
    except (UserError, OSError, KeyError, TypeError):
        return None


def writable(folder: Path) -> None:
    """Make a folder of the cache. Errors: `UserError` where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder} cannot be made ({e.strerror}): set PIXELKILN_CACHE to a folder that can be written") from None
