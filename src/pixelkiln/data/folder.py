"""Image folders: plain, one folder a class, `train/` and `test/` subfolders, and the Hugging Face imagefolder convention.

In that convention (huggingface.co/docs/datasets/image_dataset) a `metadata.jsonl` or `metadata.csv` lies beside the images; each row
has `file_name`, relative to the metadata, and any of `text` (or `caption`) and `label`; other columns are ignored. What is said here of
folders holds of the tree of files in an archive as well.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.types import UserError
from .encoded import Encoded, Source, content, printable
from .images import Split
from .listing import Entry, Listing, list_entries

__all__ = ["METADATA", "READ", "Tree", "list_tree", "split_files", "tree_parts", "walk"]

TEST_NAMES = ("test", "val", "validation", "valid")
METADATA = ("metadata.jsonl", "metadata.csv")
READ = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NOT_READ = (".avif", ".gif", ".heic", ".jp2", ".pgm", ".ppm", ".psd", ".svg", ".tif", ".tiff")


def split_files(files: Sequence[Path], root: Path) -> tuple[list[Path], list[Path]]:
    """Files of the train and of the test split, told by how their names below the root begin; all and none where none begins with "train"."""
    tops = {file: file.relative_to(root).parts[0] for file in files}
    named = {split: [file for file in files if re.match(rf"{split}([-_.]|$)", tops[file])] for split in ("train", *TEST_NAMES)}
    if not named["train"]:
        return list(files), []
    return named["train"], next((named[split] for split in TEST_NAMES if named[split]), [])


class Tree(NamedTuple):
    """Files by their name below the root, parts joined by "/"; nothing that is hidden."""

    root: Path
    files: Mapping[str, Source]

    def below(self, part: str) -> Tree:
        """The files of a subfolder."""
        return Tree(self.root / part, {name.removeprefix(f"{part}/"): file for name, file in self.files.items() if name.startswith(f"{part}/")})

    def entry(self, name: str, label: str | int | None = None, text: str | None = None) -> Entry:
        """The image of that name."""
        return Entry(Encoded(printable(str(self.root / name)), self.files[name]), label, text)


def walk(root: Path) -> Tree:
    """The files of a folder; links to files are followed, links to folders are not."""
    files: dict[str, Source] = {}
    for base, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        start = Path(base).relative_to(root)
        files |= {(start / name).as_posix(): Path(base, name) for name in names if not name.startswith(".")}
    return Tree(root, files)


def _images(tree: Tree) -> list[str]:
    """Names of all images, in order of their parts; what is no image is passed over."""
    found = []
    for name in tree.files:
        end = os.path.splitext(name)[1].lower()
        if end in NOT_READ:
            raise UserError(f"{printable(str(tree.root / name))}: {end[1:]} is not supported: convert it to PNG, JPEG, WebP or BMP, or remove it")
        if end in READ:
            found.append(name)
    return sorted(found, key=lambda name: name.split("/"))


def _rows(path: Path, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a metadata file."""
    number = 0
    try:
        file = io.StringIO(content(source).decode("utf-8-sig"), newline="")
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


def _metadata(tree: Tree) -> str | None:
    return next((name for name in METADATA if name in tree.files), None)


def _described(tree: Tree, metadata: str) -> dict[str, Entry]:
    """The images that a metadata file names, by name, in order of their parts."""
    path, entries, numeric = tree.root / metadata, {}, True
    for number, row in _rows(path, tree.files[metadata]):
        name, label, text = row.get("file_name"), row.get("label"), row.get("text", row.get("caption"))
        if not isinstance(name, str):
            raise UserError(f"{path} line {number} has no file_name: name the image of each row")
        relative = os.path.normpath(name)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
            raise UserError(f"{path} line {number} names {name}, which is outside the folder: move the image into it")
        if relative not in tree.files:
            raise UserError(f"{path} line {number} names {name}, which does not exist: add the image or remove the row")
        if not isinstance(label, str | int | None) or isinstance(label, bool):
            raise UserError(f"{path} line {number}: label {label!r} is neither a string nor an integer")
        if not isinstance(text, str | None):
            raise UserError(f"{path} line {number}: text {text!r} is not a string")
        numeric = numeric and (label is None or (isinstance(label, str) and label.isascii() and label.isdigit()))
        entries[relative] = tree.entry(relative, label, text)
    if metadata.endswith(".csv") and numeric:  # CSV has strings only
        entries = {name: e._replace(label=None if e.label is None else int(e.label)) for name, e in entries.items()}
    return {name: entries[name] for name in sorted(entries, key=lambda name: name.split("/"))}


def _entries(tree: Tree) -> dict[str, Entry]:
    """The images of one folder by name: by its metadata, else by class subfolder, else plain."""
    names, metadata = _images(tree), _metadata(tree)
    if metadata is not None:
        entries = _described(tree, metadata)
        extra = set(names) - set(entries)
        if extra:
            raise UserError(f"{tree.root / min(extra)} is not named in {metadata}: add a row for it or remove it")
        return entries
    nested = sum("/" in name for name in names)
    if nested and nested < len(names):
        loose = next(name for name in names if "/" not in name)
        raise UserError(f"{tree.root / loose} lies beside class folders: give every image a class folder, or none")
    return {name: tree.entry(name, name.split("/")[0] if nested else None) for name in names}


def tree_parts(tree: Tree) -> tuple[list[Entry], list[Entry]]:
    """All images of the train part and of the test part; the second is empty where the tree has none of its own."""
    below = {name.split("/")[0] for name in tree.files if "/" in name}
    test = next((name for name in TEST_NAMES if name in below), None)
    if "train" not in below or (test is None and below != {"train"}):  # a lone "train" among others is a class
        return list(_entries(tree).values()), []
    if _metadata(tree) is None:
        train_part, test_part = (_entries(tree.below(part)) if part else {} for part in ("train", test))
        return list(train_part.values()), list(test_part.values())
    entries = _entries(tree)
    train, held = ([entry for name, entry in entries.items() if name.split("/")[0] == part] for part in ("train", test))
    return train, held


def list_tree(tree: Tree, split: Split) -> Listing:
    """The images of a tree; without a test part each tenth image, in order of the names, is held out. Classes are those of both splits.

    Errors: `UserError` on an empty tree, an unsupported image, metadata that names a missing file or leaves an image out,
    and labels or captions for some images only.
    """
    train, test = tree_parts(tree)
    if not train:
        raise UserError(f"{tree.root} holds no images (PNG, JPEG, WebP, BMP), Parquet or IDX files: name the folder that does")
    return list_entries(train, test, tree.root, split)
