"""Parquet in the Hugging Face Hub layout: an image column (struct of `bytes` and `path`), a label column, class names in the schema.

The schema's metadata "huggingface" is JSON {"info": {"features": {column: {"_type": "ClassLabel", "names": [...]}, ...}}}.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .decode import Encoded, decode_all
from .folder import TEST_NAMES
from .images import ImageSet, Split, check_labels, code_labels, hold_out

__all__ = ["has_parquet", "open_parquet"]


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
    named = {split: [f for f in files if re.match(rf"{split}([-_.]|$)", f.stem)] for split in ("train", *TEST_NAMES)}
    if not named["train"]:
        return files, []
    return named["train"], next((named[split] for split in TEST_NAMES if named[split]), [])


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


def _encoded(files: list[Path], column: str) -> list[Encoded]:
    import pyarrow.compute as pc

    items = []
    for path in files:
        for row, data in enumerate(pc.struct_field(_column(path, column), "bytes").to_pylist()):
            if data is None:
                raise UserError(f"{path} row {row}: column {column!r} holds no bytes: embed the images in the Parquet file")
            items.append(Encoded(f"{path} row {row}", data))
    return items


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


def open_parquet(path: Path, config: DataConfig, split: Split) -> ImageSet:
    """A Parquet file, or a folder of train-*.parquet and test-*.parquet (or in data/); without a test part each tenth row is held out.

    Errors: `UserError` on a broken file or image, on a missing image column, and on a label outside the names of the classes.
    """
    train, test = _parts(path)
    if test and split == "all":
        raise UserError(f"{path} has a train and a test split: ask for one of them")
    heads = {file: _head(file) for file in train + test}
    columns = _Columns(heads[train[0]][0], train[0])
    labels, classes = _labels(columns, train + test, path)
    num_train, num_test = (sum(heads[file][1] for file in part) for part in (train, test))
    if num_train == 0:
        raise UserError(f"{path} holds no rows: name a file that does")
    files, start = (test, num_train) if test and split == "test" else (train, 0)  # start: where these files begin among the labels
    rows = torch.arange(num_train if files is train else num_test) if test else hold_out(num_train, split, str(path))
    items, texts = _encoded(files, columns.image), _texts(columns, files)
    return ImageSet(
        decode_all([items[i] for i in rows.tolist()], config),
        None if labels is None else labels[rows + start],
        classes,
        None if texts is None else tuple(texts[i] for i in rows.tolist()),
        name=path.resolve().stem,
        split=split,
    )
