"""The Hugging Face Hub, patiently: what may pass is tried again, what cannot is one line, and every file has the checksum that the Hub lists."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import sha256

__all__ = ["COMMIT", "WAITS", "checksum", "endpoint", "listed", "patiently"]

COMMIT = re.compile(r"[0-9a-f]{40}")
WAITS = (0.5, 1.0, 2.0)  # seconds between attempts
TEMPORARY = (408, 429)  # statuses that are worth another attempt, beside those from 500 on


def endpoint() -> str | None:
    """Where the Hub is, if not at its usual place."""
    return os.environ.get("HF_ENDPOINT") or None


def listed(file: Any) -> str:
    """The checksum that the Hub lists for a file: SHA-256 of large ones, git's name of small ones."""
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


@lru_cache(maxsize=4096)
def checksum(path: Path, kind: str, size: int, changed: int) -> str:
    """SHA-256, or the name that git gives a file's content; computed once while the file's size and time of change stay."""
    if kind == "sha256":
        return sha256(path)
    return hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False).hexdigest()


def patiently(src: str, noun: str, call: Callable[[], Any], waits: Sequence[float] = WAITS) -> Any:
    """The call's result; what may pass, such as a lost connection, is tried again after a while. noun: what `src` is, in the messages."""
    from huggingface_hub import errors

    reason = ""
    for wait in (*waits, None):
        try:
            return call()
        except errors.RevisionNotFoundError:
            raise UserError(f"{src}: the {noun} has no such revision: look at it on the Hub") from None
        except errors.GatedRepoError:
            raise UserError(f"{src} asks for consent: give it on the Hub's page of the {noun}, and log in with 'hf auth login'") from None
        except errors.RepositoryNotFoundError:
            raise UserError(f"{src}: no such {noun}, or it is private: check the name, or log in with 'hf auth login'") from None
        except errors.HFValidationError as error:
            raise UserError(f"{src} is no name of a {noun} ({' '.join(str(error).split())}): correct it") from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            reason = f"status {status}"
            if 400 <= status < 500 and status not in TEMPORARY:
                raise UserError(f"{src}: the Hub refuses ({reason}): check the name and your access") from None
        except Exception as error:  # whatever the layers of a network library raise
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        if wait is not None:
            time.sleep(wait)
    raise UserError(f"{src}: the Hub cannot be reached ({reason}): check the network, or download the {noun} and give its folder")
