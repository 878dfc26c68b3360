"""Where an encoded image is: a file, a part of one, or its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..core.types import UserError

__all__ = ["Encoded", "Readable", "Source", "Span", "content", "printable"]


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
