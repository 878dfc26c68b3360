"""The index of a .tar (POSIX.1-2017, pax interchange format, and GNU's long names): where each file lies, so that any can be read by
itself. A .tar.gz cannot be entered in the middle: its files are read into memory. Nothing is extracted."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..core.types import UserError
from .encoded import Source, Span, printable
from .zips import MAX_MEMBER

__all__ = ["MAX_UNPACKED", "index_tar"]

MAX_UNPACKED = 2**31  # bytes of a .tar.gz, unpacked
BLOCK = 512
MAX_HEADER = 2**20  # bytes of an extended header
PLAIN = {b"\0", b"0", b"7", b"5"}  # files, and folders
REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


def index_tar(path: Path, num: int = 1) -> Iterator[tuple[str, Source]]:
    """Names and places (of a .tar.gz: bytes) of all files, in the archive's order; it is one of `num` that share the memory.

    Errors: `UserError` on a broken or truncated archive, on members that are no plain file or too large, and on a .tar.gz that unpacks
    to more than MAX_UNPACKED / num bytes.
    """
    zipped = path.name.lower().endswith("gz")
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            yield from _Reader(path, file, MAX_UNPACKED // num if zipped else None).members()
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .tar ({' '.join(str(error).split())}): fetch it again") from error


class _Reader:
    """A walk from header to header. Extended headers describe the member that follows."""

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile, most: int | None) -> None:
        self.path, self.file, self.zipped, self.at = path, file, most is not None, 0
        self.total = path.stat().st_size if most is None else most

    def members(self) -> Iterator[tuple[str, Source]]:
        """Every plain file, up to the end mark."""
        more: dict[str, str] = {}
        while (head := self._take(BLOCK, at_end=True)).strip(b"\0"):
            name, size, kind = self._header(head)
            if kind in b"xgLK":
                if size > MAX_HEADER:
                    raise ValueError(f"an extended header of {size:,} bytes")
                data = self._padded(size)
                if kind == b"L":
                    more["path"] = _word(data)
                elif kind == b"x":
                    more |= _records(data)
                continue
            name, size = more.get("path", name), int(more.get("size", size))
            shown = f"{self.path}: the member {printable(name)}"
            if kind in REFUSED or any(key.startswith("GNU.sparse") for key in more):
                raise UserError(f"{shown} is {REFUSED.get(kind, 'a sparse file')}: refused; pack the files themselves")
            if kind not in PLAIN:
                raise UserError(f"{shown} is of the unknown type {kind!r}: pack the files with tar --format=pax")
            if not 0 <= size <= MAX_MEMBER:
                raise UserError(f"{shown} is {size:,} bytes long: more than {MAX_MEMBER:,} are refused")
            more.clear()
            if kind == b"5" or name.endswith("/"):
                self._skip(size)
            elif self.zipped:
                yield name, self._padded(size)
            else:
                place = Span(self.path, name, self.at, size)
                self._skip(size)
                yield name, place

    def _header(self, head: bytes) -> tuple[str, int, bytes]:
        """Name, size and type of a member; its checksum is that of the header with blanks in the checksum's place."""
        if sum(head) - sum(head[148:156]) + 8 * ord(" ") != _number(head[148:156]):
            raise ValueError(f"the header at byte {self.at - BLOCK:,} has a wrong checksum")
        name = _word(head[:100])
        if head[257:263] == b"ustar\0" and head[345]:
            name = f"{_word(head[345:500])}/{name}"
        return name, _number(head[124:136]), head[156:157]

    def _take(self, size: int, at_end: bool = False) -> bytes:
        """The next bytes; none at the very end of the file, if that is allowed."""
        self.at += size
        if self.zipped and self.at > self.total:
            raise UserError(f"{self.path} unpacks to more than {self.total:,} bytes: gunzip it, as a plain .tar is read in place")
        data = self.file.read(size)
        if len(data) != size and not (at_end and not data):
            raise ValueError("it is cut short")
        return data

    def _padded(self, size: int) -> bytes:
        """The bytes of a member, which fill whole blocks."""
        return self._take(size + -size % BLOCK)[:size]

    def _skip(self, size: int) -> None:
        if self.zipped:
            self._padded(size)
            return
        if self.at + size > self.total:
            raise ValueError("it is cut short")
        self.at += size + -size % BLOCK
        self.file.seek(self.at)


def _number(field: bytes) -> int:
    """Octal digits, or (GNU) a big-endian number whose first bit is set."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise ValueError("a negative or absurd size")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not all(byte in b"01234567" for byte in digits):
        raise ValueError("a size that is no number")
    return int(digits or b"0", 8)


def _word(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(data: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of an extended header."""
    found, at = {}, 0
    end = len(data.rstrip(b"\0"))
    while at < end:
        blank = data.find(b" ", at, at + 8)
        digits = data[at:blank]
        size = int(digits) if blank > at and digits.isdigit() else 0
        key, sign, value = data[blank + 1 : at + size - 1].partition(b"=")
        if not sign or data[at + size - 1 : at + size] != b"\n":
            raise ValueError("a broken extended header")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += size
    return found
