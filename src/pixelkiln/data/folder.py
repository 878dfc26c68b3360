"""Image folders: plain, one folder a class, `train/` and `test/` subfolders, and the Hugging Face imagefolder convention.

In that convention (huggingface.co/docs/datasets/image_dataset) a `metadata.jsonl` or `metadata.csv` lies beside the images; each row
has `file_name`, relative to the metadata, and any of `text` (or `caption`) and `label`; other columns are ignored.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.recipe import DataConfig
from ..core.types import UserError
from .decode import Encoded, decode_all
from .images import ImageSet, Split, code_labels, hold_out

__all__ = ["TEST_NAMES", "open_folder"]

TEST_NAMES = ("test", "val", "validation", "valid")
READ = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NOT_READ = (".avif", ".gif", ".heic", ".jp2", ".pgm", ".ppm", ".psd", ".svg", ".tif", ".tiff")


class Entry(NamedTuple):
    """One image of a folder, not yet read."""

    path: Path
    label: str | int | None = None
    text: str | None = None


def _images(folder: Path) -> list[Path]:
    """Every image below the folder, sorted; what is hidden or no image is passed over."""
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            end = os.path.splitext(name)[1].lower()
            if end in NOT_READ and not name.startswith("."):
                raise UserError(f"{Path(base, name)}: {end[1:]} is not supported: convert it to PNG, JPEG, WebP or BMP, or remove it")
            if end in READ and not name.startswith("."):
                found.append(Path(base, name))
    return sorted(found)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a metadata file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    yield reader.line_num, {name: value for name, value in row.items() if value != ""}
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path} line {number} is not a JSON object: write one object a line")
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except UserError:
        raise
    except (ValueError, csv.Error, RecursionError) as error:  # not JSON, numbers of thousands of digits, brackets without end
        kind = "CSV" if path.suffix == ".csv" else f"JSON (line {number})"
        raise UserError(f"{path} is not valid {kind}: {' '.join(str(error).split())}") from error


def _metadata(root: Path) -> Path | None:
    return next((root / name for name in ("metadata.jsonl", "metadata.csv") if (root / name).is_file()), None)


def _described(path: Path) -> list[Entry]:
    """The images that a metadata file names, sorted by path."""
    root, entries, numeric = path.parent, [], True
    for number, row in _rows(path):
        name, label, text = row.get("file_name"), row.get("label"), row.get("text", row.get("caption"))
        if not isinstance(name, str):
            raise UserError(f"{path} line {number} has no file_name: name the image of each row")
        relative = os.path.normpath(name)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
            raise UserError(f"{path} line {number} names {name}, which is outside the folder: move the image into it")
        image = root / relative
        if not os.path.isfile(image):  # False as well for a name that no file can have
            raise UserError(f"{path} line {number} names {name}, which does not exist: add the image or remove the row")
        if not isinstance(label, str | int | None) or isinstance(label, bool):
            raise UserError(f"{path} line {number}: label {label!r} is neither a string nor an integer")
        if not isinstance(text, str | None):
            raise UserError(f"{path} line {number}: text {text!r} is not a string")
        numeric = numeric and (label is None or (isinstance(label, str) and label.isascii() and label.isdigit()))
        entries.append(Entry(image, label, text))
    if path.suffix == ".csv" and numeric:  # CSV has strings only
        entries = [entry._replace(label=None if entry.label is None else int(entry.label)) for entry in entries]
    return sorted(entries, key=lambda entry: entry.path)


def _entries(root: Path) -> list[Entry]:
    """The images of one folder: by its metadata, else by class subfolder, else plain."""
    paths, metadata = _images(root), _metadata(root)
    if metadata is not None:
        entries = _described(metadata)
        extra = set(paths) - {entry.path for entry in entries}
        if extra:
            raise UserError(f"{min(extra)} is not named in {metadata.name}: add a row for it or remove it")
        return entries
    nested = [path for path in paths if path.parent != root]
    if nested and len(nested) < len(paths):
        loose = next(path for path in paths if path.parent == root)
        raise UserError(f"{loose} lies beside class folders: give every image a class folder, or none")
    return [Entry(path, path.relative_to(root).parts[0] if nested else None) for path in paths]


def _parts(folder: Path) -> tuple[list[Entry], list[Entry]]:
    """All images of the train part and of the test part; the second is empty where the folder has none of its own."""
    below = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    test = next((name for name in TEST_NAMES if name in below), None)
    if "train" not in below or (test is None and below != {"train"}):  # a lone "train" among others is a class
        return _entries(folder), []
    if _metadata(folder) is None:
        return _entries(folder / "train"), [] if test is None else _entries(folder / test)
    entries = _entries(folder)
    first = [entry.path.relative_to(folder).parts[0] for entry in entries]
    train_part, test_part = ([e for e, part in zip(entries, first, strict=True) if part == name] for name in ("train", test))
    return train_part, test_part


def _texts(entries: Sequence[Entry]) -> tuple[str, ...] | None:
    texts = [entry.text for entry in entries]
    if all(text is None for text in texts):
        return None
    for entry in entries:
        if entry.text is None:
            raise UserError(f"{entry.path} has no text but others do: give every image a caption, or none")
    return tuple(str(text) for text in texts)


def open_folder(folder: Path, config: DataConfig, split: Split) -> ImageSet:
    """An image folder; without a test part each tenth image, sorted by path, is held out. Classes are those of both splits.

    Errors: `UserError` on an empty folder, a broken or unsupported image, metadata that names a missing file or leaves an image out,
    and labels or captions for some images only.
    """
    train, test = _parts(folder)
    if not train:
        raise UserError(f"{folder} holds no images (PNG, JPEG, WebP, BMP), Parquet or IDX files: name the folder that does")
    if test and split == "all":
        raise UserError(f"{folder} has a train and a test split: ask for one of them")
    labels, classes = code_labels([entry.label for entry in train + test], str(folder))
    texts = _texts(train + test)
    if test:
        rows = torch.arange(len(train)) if split == "train" else torch.arange(len(train), len(train) + len(test))
    else:
        rows = hold_out(len(train), split, str(folder))
    chosen = [(train + test)[i] for i in rows.tolist()]
    images = decode_all([Encoded(str(entry.path), entry.path) for entry in chosen], config)
    return ImageSet(
        images,
        None if labels is None else labels[rows],
        classes,
        None if texts is None else tuple(texts[i] for i in rows.tolist()),
        name=folder.resolve().name,
        split=split,
    )
