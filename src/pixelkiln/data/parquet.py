"""Parquet in the Hugging Face Hub layout: an image column (struct of `bytes` and `path`), a label column, class names in the schema.

The schema's metadata "huggingface" is JSON {"info": {"features": {column: {"_type": "ClassLabel", "names": [...]}, ...}}}.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.types import UserError
from .encoded import Encoded
from .folder import split_files
from .images import Split, check_labels, code_labels, hold_out
from .listing import Listing

__all__ = ["has_parquet", "list_files", "list_parquet"]

GROUPS = 8  # row groups of a file that are kept, so that threads which decode neighboring rows share them


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def has_parquet(folder: Path) -> bool:
    """Whether the folder, or its subfolder data/, holds Parquet files."""
    return bool(_files(folder))


def _parts(path: Path) -> tuple[list[Path], list[Path]]:
    """Files of the train and of the test split; the second is empty where there is none."""
    if path.is_file():
        return [path], []
    files = _files(path)
    return split_files(files, files[0].parent)


class _Columns:
    """Which columns of a schema hold image, label and caption, and the class names that the schema gives."""

    def __init__(self, schema: Any, where: Path) -> None:
        import pyarrow.types as kinds

        structs = [f.name for f in schema if kinds.is_struct(f.type) and "bytes" in [part.name for part in f.type]]
        if not structs:
            raise UserError(f"{where} has no image column (a struct with 'bytes') among {', '.join(schema.names)}: use the Hub's layout")
        self.image = next((name for name in ("image", "img") if name in structs), structs[0])
        try:
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            coded = [name for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel" and name in schema.names]
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{where}: the schema's 'huggingface' metadata is not the JSON of a Hub data set: write it again") from None
        self.label = next((name for name in ("label", "labels", *coded) if name in schema.names), None)
        self.names: tuple[str, ...] = tuple(features[self.label].get("names") or ()) if self.label in coded else ()
        strings = [f.name for f in schema if kinds.is_string(f.type) or kinds.is_large_string(f.type)]
        self.text = next((name for name in ("text", "caption") if name in strings), None)


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:120]}): fetch it again")


def _column(path: Path, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name], partitioning=None)[name]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _broken(path, error) from error


def _head(path: Path) -> tuple[Any, int]:
    """Schema and number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path), int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


class _Images:
    """The image column of a Parquet file. Row groups are read when a row of theirs is asked for; the last few are kept."""

    def __init__(self, path: Path, column: str) -> None:
        import pyarrow.parquet as pq

        meta = pq.read_metadata(path)
        facts = path.stat()
        self.path, self.column, self.size, self.changed = path, column, facts.st_size, facts.st_mtime_ns
        self.ends = list(accumulate(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))
        self.lock, self.groups = Lock(), OrderedDict[int, Any]()

    def __repr__(self) -> str:
        return repr((self.path, self.column, self.size, self.changed))

    def row(self, row: int) -> bytes:
        """The bytes of one row."""
        group = bisect(self.ends, row)
        with self.lock:
            if group not in self.groups:
                self.groups[group] = self._group(group)
            self.groups.move_to_end(group)
            while len(self.groups) > GROUPS:
                self.groups.popitem(last=False)
            data = self.groups[group][row - (self.ends[group - 1] if group else 0)].as_py()
        if data is None:
            raise UserError(f"{self.path} row {row}: column {self.column!r} holds no bytes: embed the images in the Parquet file")
        return bytes(data)

    def _group(self, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                return pc.struct_field(file.read_row_group(group, columns=[self.column])[self.column], "bytes")
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _broken(self.path, error) from error


class _Row(NamedTuple):
    """One image of a Parquet file."""

    images: _Images
    row: int

    @property
    def path(self) -> Path:
        """The Parquet file."""
        return self.images.path

    @property
    def size(self) -> int:
        """Of the whole file: the rows' own sizes are known only once they are read."""
        return self.images.size

    def read(self) -> bytes:
        """The encoded image."""
        return self.images.row(self.row)


def _labels(columns: _Columns, files: list[Path], where: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels of all rows of the files, in order, and the names of the classes."""
    if columns.label is None:
        return None, ()
    values = [_column(path, columns.label).to_pylist() for path in files]
    for path, part in zip(files, values, strict=True):
        if columns.names and part and all(isinstance(value, int) for value in part):
            check_labels(torch.tensor(part), len(columns.names), str(path))
    labels, classes = code_labels([value for part in values for value in part], f"{where} column {columns.label!r}")
    return labels, columns.names or classes


def _texts(columns: _Columns, files: list[Path]) -> list[str] | None:
    if columns.text is None:
        return None
    texts: list[str] = []
    for path in files:
        part = _column(path, columns.text).to_pylist()
        if None in part:
            raise UserError(f"{path} row {part.index(None)} has no {columns.text}: give every image a caption, or none")
        texts += part
    return texts


def list_parquet(path: Path, split: Split) -> Listing:
    """A Parquet file, or a folder of train-*.parquet and test-*.parquet (or in data/); without a test part each tenth row is held out.

    Errors: `UserError` on a broken file, on a missing image column, and on a label outside the names of the classes.
    """
    return list_files(*_parts(path), path, split)


def list_files(train: list[Path], test: list[Path], path: Path, split: Split) -> Listing:
    """The rows of one split of Parquet files that lie at `path` or below. Errors: as `list_parquet`."""
    if test and split == "all":
        raise UserError(f"{path} has a train and a test split: ask for one of them")
    heads = {file: _head(file) for file in train + test}
    columns = _Columns(heads[train[0]][0], train[0])
    labels, classes = _labels(columns, train + test, path)
    num_train, num_test = (sum(heads[file][1] for file in part) for part in (train, test))
    if num_train == 0:
        raise UserError(f"{path} holds no rows: name a file that does")
    files, start = (test, num_train) if test and split == "test" else (train, 0)  # start: where these files begin among the labels
    num = num_train if files is train else num_test
    texts = _texts(columns, files)
    items = [Encoded(f"{file} row {row}", _Row(images, row)) for file in files for images in [_Images(file, columns.image)]
             for row in range(heads[file][1])]
    labels = None if labels is None else labels[start : start + num]
    every = Listing(items, labels, classes, None if texts is None else tuple(texts), path, split)
    return every if test else every.take(hold_out(num_train, split, str(path)))
