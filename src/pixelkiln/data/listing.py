"""What a source of encoded images is before anything is decoded: where each image lies, its label and its caption."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import UserError
from .decode import decode_all
from .encoded import Encoded, codecs
from .images import ImageSet, Split, code_labels, hold_out
from .pack import pack
from .stream import Streamed, find_bad, survey

__all__ = ["Entry", "Listing", "list_entries"]


class Entry(NamedTuple):
    """One image as a source describes it."""

    item: Encoded
    label: str | int | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one split, not yet decoded. labels (N,) int64 or None, classes () if unlabeled, texts N captions or None; root: the
    file or folder that all lie in; title: its name, where it is not that of the root; source: what to open it by again, where that is not
    the path."""

    items: Sequence[Encoded]
    labels: Tensor | None
    classes: tuple[str, ...]
    texts: tuple[str, ...] | None
    root: Path
    split: Split
    title: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def name(self) -> str:
        """The name of the folder, or of the file without its ending."""
        path = self.root.resolve()
        return self.title or (path.name if path.is_dir() else path.name.split(".")[0])

    def take(self, rows: Tensor) -> Listing:
        """The images of the rows (n,) int64, in that order."""
        index = rows.tolist()
        return replace(
            self,
            items=[self.items[i] for i in index],
            labels=None if self.labels is None else self.labels[rows],
            texts=None if self.texts is None else tuple(self.texts[i] for i in index),
        )

    def digest(self, config: DataConfig) -> str:
        """SHA-256 (hex) over how images are prepared and over each image's place below the root, size in bytes, label and caption: what
        identifies a set that is never decoded as a whole. It does not see a change that leaves a file's size as it was."""
        sha = hashlib.sha256(repr((config, self.classes)).encode())
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        root = str(self.root)
        for i, (where, source) in enumerate(self.items):
            size = source.stat().st_size if isinstance(source, Path) else len(source) if isinstance(source, bytes) else source.size
            text = None if self.texts is None else self.texts[i]
            sha.update(repr((where.removeprefix(root), size, labels[i], text)).encode(errors="surrogatepass"))
        return sha.hexdigest()

    def load(self, config: DataConfig, bad: list[str] | None = None, memory: int | None = None, workers: int | None = None) -> ImageSet:
        """The images, decoded; or to be streamed, where they may take more than `memory` bytes. workers: processes that then decode.

        bad: where given, what cannot be decoded is left out, and one line each is appended; a set that is streamed is decoded once for it.
        Errors: `UserError` on the first image that cannot be decoded (of a streamed set: when it is met), and where no image or no common
        size is left.
        """
        if memory is not None and self._bytes(config, skip=bad is not None) > memory:
            return self._streamed(config, bad, workers)
        failed: dict[int, str] | None = None if bad is None else {}
        images = decode_all(self.items, config, failed)
        return self._without(failed)._set(images, config, failed, bad)

    def _streamed(self, config: DataConfig, bad: list[str] | None, workers: int | None) -> ImageSet:
        """The images, to be decoded when they are asked for."""
        every = replace(self, items=pack(self.items))
        failed = None if bad is None else find_bad(every.items, config)
        rest = every._without(failed)
        if not len(rest):
            raise UserError(f"{self.root}: no image can be decoded: give images that are whole")
        return rest._set(Streamed(rest.items, config, survey(rest.items, config), workers), config, failed, bad)

    def _bytes(self, config: DataConfig, skip: bool) -> int:
        """Bytes that the decoded images may take, told by the first one; where it is grey, others may be colored."""
        for item in self.items:
            try:
                first = decode_all([item], config)
            except UserError:
                if not skip:
                    raise
                continue
            return len(self) * first[0, 0].numel() * (config.channels or 3)
        return 0

    def _without(self, failed: Mapping[int, str] | None) -> Listing:
        return self.take(torch.tensor([i for i in range(len(self)) if i not in failed], dtype=torch.int64)) if failed else self

    def _set(self, images: Tensor | Streamed, config: DataConfig, failed: Mapping[int, str] | None, bad: list[str] | None) -> ImageSet:
        """These images with the labels and captions of the listing; what is wrong with those that are left out is handed on."""
        skipped = tuple((failed or {}).values())
        if bad is not None:
            bad.extend(skipped)
        coded = partial(codecs, self.items)
        return ImageSet(images, self.labels, self.classes, self.texts, {}, self.name, self.split, self.source, self.digest(config), skipped, coded=coded)


def list_entries(train: Sequence[Entry], test: Sequence[Entry], root: Path, split: Split) -> Listing:
    """The listing of one split. Where there is no test part each tenth image is held out. Classes are those of both splits.

    Errors: `UserError` where "all" is asked of a source with two splits, and on labels or captions for some images only.
    """
    if test and split == "all":
        raise UserError(f"{root} has a train and a test split: ask for one of them")
    both = [*train, *test]
    labels, classes = code_labels([entry.label for entry in both], str(root))
    if test:
        rows = torch.arange(len(train)) if split == "train" else torch.arange(len(train), len(both))
    else:
        rows = hold_out(len(train), split, str(root))
    return Listing([entry.item for entry in both], labels, classes, _texts(both), root, split).take(rows)


def _texts(entries: Sequence[Entry]) -> tuple[str, ...] | None:
    texts = [entry.text for entry in entries]
    if all(text is None for text in texts):
        return None
    for entry in entries:
        if entry.text is None:
            raise UserError(f"{entry.item.where} has no text but others do: give every image a caption, or none")
    return tuple(str(text) for text in texts)
