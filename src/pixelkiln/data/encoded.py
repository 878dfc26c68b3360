"""Where an encoded image is: a file, a part of one, or its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..core.types import UserError

__all__ = ["Encoded", "Readable", "Source", "Span", "codecs", "content", "lossy", "printable"]

LOOKED, HEAD = 256, 4096  # images whose first bytes are looked at, and how many bytes


class Readable(Protocol):
    """A part of a larger file, such as a member of an archive, that is read when it is needed."""

    @property
    def path(self) -> Path:
        """The larger file."""

    @property
    def size(self) -> int:
        """Number of bytes, as the file's index says."""

    def read(self) -> bytes:
        """Its bytes. Errors: `UserError` where the file is damaged."""


Source = Path | bytes | Readable


class Encoded(NamedTuple):
    """An encoded image, as a path, its bytes or something that reads them, and what to call it in a message."""

    where: str
    source: Source


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start .. start + size of a file, and what to call them."""

    path: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes. Errors: `UserError` where the file has become shorter."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) != self.size:
            raise UserError(f"{self.path}: {printable(self.name)} is cut short: fetch the file again")
        return data


def content(source: Source) -> bytes:
    """The bytes, wherever they are."""
    return source if isinstance(source, bytes) else source.read_bytes() if isinstance(source, Path) else source.read()


def printable(name: str) -> str:
    """A name from a file that a stranger made, as it can be shown: control characters escaped, so that a line stays a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def codecs(items: Sequence[Encoded]) -> str:
    """How images are coded, as the first bytes of up to LOOKED of them, evenly spread, say: the most frequent first, as in "JPEG, PNG"."""
    found = Counter(_codec(_head(item.source)) for item in items[:: max(1, -(-len(items) // LOOKED))])
    return ", ".join(name for name, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def lossy(codec: str) -> bool:
    """Whether any image of such a set has lost something by its coding."""
    return bool({"JPEG", "WebP"} & set(codec.split(", ")))


def _head(source: Source) -> bytes:
    if not isinstance(source, Path):
        return content(source)[:HEAD]
    with open(source, "rb") as file:
        return file.read(HEAD)


def _codec(head: bytes) -> str:
    """The name of a format; a WebP is lossless where it says so."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP lossless" if b"VP8L" in head and b"VP8 " not in head else "WebP"
    names = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP"}
    return next((name for start, name in names.items() if head.startswith(start)), "unknown")
