"""The index of a .zip (PKWARE, APPNOTE.TXT): where each member lies, so that any can be read by itself. Nothing is extracted."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.types import UserError
from .encoded import printable

__all__ = ["MAX_MEMBER", "Zipped", "index_zip"]

MAX_MEMBER = 2**28  # bytes of a member, unpacked
RATIO, SMALL = 100, 2**20  # members above SMALL must not unpack to more than RATIO times what they are; images hardly shrink at all
LOCAL = struct.Struct("<4s22xHH")  # signature; lengths of name and extra field
ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Zipped:
    """A member: where its local header begins, bytes packed and unpacked, method (0 stored, 8 deflated) and CRC-32."""

    path: Path
    name: str
    start: int
    packed: int
    size: int
    method: int
    crc: int

    def read(self) -> bytes:
        """The member's bytes, at most `size` of them. Errors: `UserError` where they are not what the index says."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            head = file.read(LOCAL.size)
            if len(head) == LOCAL.size and head[:4] == b"PK\3\4":
                _, name, extra = LOCAL.unpack(head)
                file.seek(name + extra, 1)
                data = file.read(self.packed)
                if self.method == zipfile.ZIP_DEFLATED:
                    data = self._inflate(data)
                if len(data) == self.size and zlib.crc32(data) == self.crc:
                    return data
        raise UserError(f"{self.path}: the member {printable(self.name)} is damaged: fetch the archive again")

    def _inflate(self, data: bytes) -> bytes:
        """Unpacked, at most one byte more than the index promises."""
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        except zlib.error:
            return b""


def index_zip(path: Path) -> Iterator[tuple[str, Zipped]]:
    """Names and places of all files. Errors: `UserError` on a broken archive, and on members that are encrypted, links, devices, packed
    by other methods, too large, packed too tightly, or overlap."""
    try:
        with zipfile.ZipFile(path) as file:
            infos, size = file.infolist(), path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise UserError(f"{path} cannot be read as .zip ({' '.join(str(error).split())}): fetch it again") from error
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise UserError(f"{_shown(path, info)} overlaps another one: refused, as such archives are made to attack")
        end = info.header_offset + LOCAL.size + info.compress_size
        if end > size:
            raise UserError(f"{_shown(path, info)} reaches beyond the end of the archive: fetch it again")
    for info in infos:
        if not info.is_dir():
            yield info.filename, _member(path, info)


def _member(path: Path, info: zipfile.ZipInfo) -> Zipped:
    """The place of a member, if it may be read."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise UserError(f"{_shown(path, info)} is a link or a device: refused; pack the files themselves")
    if info.flag_bits & ENCRYPTED:
        raise UserError(f"{_shown(path, info)} is encrypted: pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{_shown(path, info)} is packed by method {info.compress_type}: pack it as deflate, or stored")
    if info.file_size > MAX_MEMBER:
        raise UserError(f"{_shown(path, info)} unpacks to {info.file_size:,} bytes: more than {MAX_MEMBER:,} are refused")
    if info.file_size > max(SMALL, RATIO * info.compress_size):
        raise UserError(f"{_shown(path, info)} unpacks {info.compress_size:,} bytes to {info.file_size:,}: refused, as more than {RATIO} times is no image")
    return Zipped(path, info.filename, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)


def _shown(path: Path, info: zipfile.ZipInfo) -> str:
    return f"{path}: the member {printable(info.filename)}"
