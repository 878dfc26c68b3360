"""Files that are never half-written: everything is written aside, fsynced and renamed; tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Unwritable", "cache_dir", "fsync", "locked", "read_json", "read_meta", "read_tensors", "refuse_pickle", "sha256", "write_bytes", "write_json",
           "write_tensors", "writing"]

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
MAX_JSON = 2**26  # bytes of the largest JSON file that is read


class Unwritable(UserError, OSError):
    """What the disk refused, in one line: the file, the reason, what is needed and free, and what to do."""

    def __init__(self, path: Path, error: OSError, num_bytes: int = 0) -> None:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = f"{path}: {reason}: {num_bytes / 1e6:,.1f} MB are needed and {_free(path) / 1e6:,.1f} MB are free: make room, then go on (--resume)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            said = f"{path} may not be written ({reason}): change its permissions, or choose another place"
        else:
            said = f"{path} cannot be written ({reason}): check the disk, or choose another place"
        super().__init__(said)
        self.errno = error.errno


def _free(path: Path) -> int:
    """Bytes that are free where the path is or would be."""
    return shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())).free


@contextlib.contextmanager
def writing(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Inside, an error of the disk becomes `Unwritable`, which names this path and these bytes."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as e:
        raise Unwritable(path, e, num_bytes) from e


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock file `path`: made if need be, removed at the end, and let go of by the kernel if the process is killed.

    Yields None, or why the file system has no locks. If it is held by another process: waits, or UserError that says by whom.
    """
    try:
        import fcntl
    except ImportError:
        yield "this system has no file locks"
        return
    while True:
        with writing(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            _held(path, fd)
        except OSError as e:
            os.close(fd)
            path.unlink(missing_ok=True)
            yield f"the file system of {path.parent} has no locks ({(e.strerror or str(e)).lower()})"
            return
        with contextlib.suppress(FileNotFoundError):  # its last holder may have removed it in the meantime
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        os.close(fd)
    try:
        with contextlib.suppress(OSError):  # a courtesy to whoever asks
            os.ftruncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
        yield None
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(fd)


def _held(path: Path, fd: int) -> NoReturn:
    """Say who holds a lock."""
    try:
        who = " ".join(os.pread(fd, 200, 0).decode(errors="replace").split()) or "another process"
    finally:
        os.close(fd)
    raise UserError(f"{path.parent} is being written by {who}: wait until it ends, or choose another folder")


def refuse_pickle(path: Path) -> None:
    """Refuse files that would execute code when read (UserError)."""
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: {path.suffix} files are pickles, which run code when they are opened; give a run folder or a .safetensors file")


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Write aside, fsync, rename: the file is there whole or not at all."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write JSON, readable by people."""
    write_bytes(path, (json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON as the standard has it (no NaN), up to MAX_JSON bytes; a broken file is a UserError that names it."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not a number")

    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise FileNotFoundError
        with open(path, "rb") as f:
            data = f.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON // 2**20} MB")
        return json.loads(data.decode(), parse_constant=refuse)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})") from None
    except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, numbers of thousands of digits, brackets without end
        raise UserError(f"{path}: not valid JSON ({' '.join(str(e).split())[:120]}); the file is damaged") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors."""
    from safetensors.torch import save  # here, so that commands that only read JSON need no torch

    flat = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(path, save(flat, dict(meta or {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a UserError that names it."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a readable safetensors file ({e})") from None


def read_meta(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        return dict(f.metadata() or {})


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where things that can be made again are kept: $PIXELKILN_CACHE, or ~/.cache/pixelkiln."""
    return Path(os.environ.get("PIXELKILN_CACHE") or Path.home() / ".cache" / "pixelkiln")
