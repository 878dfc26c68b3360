"""Encoded images that cannot be read one by one (rows of Parquet, files of a .tar.gz) copied into one file of the cache, where they can.

packs/KEY.pack holds the images' bytes one after the other, packs/KEY.safetensors where each ends. The key is a hash of where they came
from; a name from the source is never used as a path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ..core.files import cache_dir, fsync, read_tensors, write_tensors
from ..core.types import UserError
from .encoded import Encoded, Source, Span, content
from .zips import Zipped

__all__ = ["pack"]


def pack(items: Sequence[Encoded]) -> Sequence[Encoded]:
    """The same images, as parts of one file in the cache, which is made if it is not there; as they are, if each can be read by itself.

    Errors: `UserError` where there is no room for the file.
    """
    if all(isinstance(item.source, Path | Span | Zipped) for item in items):
        return items
    sha = hashlib.sha256()
    for where, source in items:
        sha.update(repr((where, _mark(source))).encode(errors="surrogatepass"))
    path = cache_dir() / "packs" / f"{sha.hexdigest()[:32]}.pack"
    try:
        ends = read_tensors(path.with_suffix(".safetensors"))["ends"].tolist()
        if path.stat().st_size != ends[-1]:
            raise UserError(f"{path} is cut short")
    except (UserError, OSError, KeyError, IndexError):
        ends = _write(path, items)
    starts = [0, *ends[:-1]]
    return [Encoded(item.where, Span(path, item.where, start, end - start)) for item, start, end in zip(items, starts, ends, strict=True)]


def _mark(source: Source) -> str:
    """What the source's bytes are known by."""
    return hashlib.blake2b(source).hexdigest() if isinstance(source, bytes) else repr(source)


def _room(items: Sequence[Encoded]) -> int:
    """Bytes that a copy takes, about."""
    files = {source.path for _, source in items if not isinstance(source, Path | bytes)}
    return sum(len(source) for _, source in items if isinstance(source, bytes)) + sum(path.stat().st_size for path in files)


def _write(path: Path, items: Sequence[Encoded]) -> list[int]:
    """Write the file aside, sync and rename it; where each image ends. What cannot be read is left empty, for decoding to name it."""
    aside, total = path.with_name(f".{path.name}.{os.getpid()}.tmp"), _room(items)
    remedy = f"make room, or set PIXELKILN_CACHE to a folder with {total / 2**30:.1f} GiB"
    ends, at = [], 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < total:
            raise UserError(f"{path.parent} has no room for a copy of the encoded images, which streaming needs here: {remedy}")
        with open(aside, "wb") as file:
            for item in items:
                data = b""
                with suppress(UserError):
                    data = content(item.source)
                file.write(data)
                ends.append(at := at + len(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        fsync(path.parent)
        write_tensors(path.with_suffix(".safetensors"), {"ends": torch.tensor(ends)})
    except OSError as error:
        raise UserError(f"{path.parent} cannot take a copy of the encoded images ({error.strerror}): {remedy}") from None
    finally:
        aside.unlink(missing_ok=True)
    return ends
