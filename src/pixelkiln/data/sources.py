"""Where images come from: an embedded set by its name, or a path whose kind is told by what lies there."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..core.recipe import DataConfig
from ..core.types import UserError
from .archive import has_archives, is_archive, list_archives
from .digits import open_digits
from .folder import list_tree, walk
from .hub import is_hub, list_hub
from .idx import has_idx, open_idx
from .images import ImageSet, Split
from .listing import Listing
from .npz import open_npz
from .parquet import has_parquet, list_parquet
from .prepare import check_config
from .shapes import open_shapes

__all__ = ["EMBEDDED", "list_source", "open_source"]

EMBEDDED = {"digits": open_digits, "shapes": open_shapes}
AS_IS = DataConfig()
OTHER_ARCHIVES = (".7z", ".rar", ".tar.bz2", ".tar.xz", ".tar.zst", ".tbz2", ".txz")


def open_source(src: str | Path, config: DataConfig = AS_IS, split: Split = "train", bad: list[str] | None = None,
                memory: int | None = None, workers: int | None = None) -> ImageSet:
    """The images of a source, prepared as `config` asks.

    src: `digits`, `shapes`, `hf:owner/name[@revision][:config]`, or a path: an IDX folder, an image folder, Parquet or archives (file or folder), `.npz`. split: "train", "test", or
    "all" for sources without splits of their own; those hold out each tenth image as "test". bad: where given, images that cannot be
    decoded are left out, and one line each is appended; else the first one is an error. memory: encoded images that may take more bytes
    are streamed: decoded whenever they are asked for, by `workers` processes where a feed asks (default: one less than there are cores).
    Errors: `UserError`, one line that names the file and says what to do.
    """
    check_config(config)
    if isinstance(src, str) and src in EMBEDDED:
        return EMBEDDED[src](config, split)
    if is_hub(src):
        return list_hub(str(src), split).load(config, bad, memory, workers)
    path = Path(src).expanduser()
    try:
        if path.is_file() and path.name.lower().endswith(".npz"):
            return open_npz(path, config, split)
        if path.is_dir() and has_idx(path):
            return open_idx(path, config, split)
        return list_source(path, split).load(config, bad, memory, workers)
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read: change its permissions") from error


def list_source(path: Path, split: Split) -> Listing:
    """The encoded images at a path: an image folder, Parquet, or archives."""
    if path.is_dir():
        return _list_dir(path, split)
    if path.is_file():
        return _list_file(path, split)
    near = difflib.get_close_matches(str(path), EMBEDDED, n=1)
    raise UserError(f"{path} does not exist: give a path, or " + (f"did you mean {near[0]!r}?" if near else f"one of {', '.join(EMBEDDED)}"))


def _list_file(path: Path, split: Split) -> Listing:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return list_parquet(path, split)
    if is_archive(path):
        return list_archives(path, split)
    if name.endswith(OTHER_ARCHIVES):
        raise UserError(f"{path}: of archives, .zip, .tar and .tar.gz are read: pack it as .zip or .tar, or unpack it and give the folder")
    if "ubyte" in name or name in ("metadata.jsonl", "metadata.csv"):
        raise UserError(f"{path} is one file of a data set: give the folder that holds it")
    raise UserError(f"{path} is neither .npz nor .parquet nor an archive: give such a file, or a folder of images")


def _list_dir(path: Path, split: Split) -> Listing:
    if has_parquet(path):
        return list_parquet(path, split)
    if has_archives(path):
        return list_archives(path, split)
    return list_tree(walk(path), split)
