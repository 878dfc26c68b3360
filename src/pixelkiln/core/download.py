"""A file from the network is used only if its SHA-256 is the one that was expected; what arrives is written aside first."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from .files import sha256
from .types import UserError

__all__ = ["download"]

CHUNK, TIMEOUT, TRIES, PAUSE = 2**20, 30.0, 4, 1.0  # bytes at a time; seconds without an answer; tries; seconds before the next, doubled each time


def download(url: str, file: Path, digest: str, tries: int = TRIES, pause: float = PAUSE) -> Path:
    """The file with this SHA-256 (hex), from `url` unless it is there already; a broken transfer goes on where it stopped.

    Errors: `UserError` where it does not arrive, or is another file (which is then deleted: nothing unchecked stays).
    """
    if file.exists() and sha256(file) == digest:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    error: Exception | None = None
    for k in range(tries):
        if k:
            time.sleep(pause * 2 ** (k - 1))
        try:
            _fetch(url, part)
            break
        except (OSError, http.client.HTTPException) as e:
            error = e
            if isinstance(e, urllib.error.HTTPError):
                e.close()
                if e.code == 416:  # nothing after what is there: it is whole, or another file
                    break
                if e.code < 500:
                    raise UserError(f"{url}: {e}; download it elsewhere and give the file with --weights") from None
    else:
        raise UserError(f"{url} cannot be downloaded ({error}): try again, or download it elsewhere and give the file with --weights")
    found = sha256(part)
    if found != digest:
        part.unlink()
        raise UserError(f"{url} has the SHA-256 {found[:16]}…, not {digest[:16]}…: it is another file, and was deleted")
    part.replace(file)
    return file


def _fetch(url: str, part: Path) -> None:
    """Append what is missing; start anew where the server does not know ranges."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        got = 0
        with open(part, "ab" if resumed else "wb") as f:
            while chunk := answer.read(CHUNK):
                f.write(chunk)
                got += len(chunk)
    if length is not None and got < int(length):
        raise http.client.IncompleteRead(b"", int(length) - got)
