"""Data sets of the Hugging Face Hub, `hf:owner/name[@revision][:config]`: their Parquet files, through huggingface_hub and its cache.

The revision is first resolved to a commit, which a run records, so that it is resumed on the same files. Every file is held against the
checksum that the Hub lists for it (SHA-256 of large files, git's blob name of small ones: github.com/git/git, gitformat-pack). What
was listed is kept, so that a commit whose files are in the cache needs no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core.files import cache_dir, read_json, write_json
from ..core.hub import COMMIT, WAITS, checksum, endpoint, listed, patiently
from ..core.types import UserError
from .encoded import printable
from .folder import split_files
from .images import Split
from .listing import Listing
from .parquet import list_files

__all__ = ["is_hub", "list_hub"]

FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w./-]+))?")


class _Place(NamedTuple):
    """A data set at a commit, and what its Parquet files are: checksums by name."""

    src: str
    repo: str
    commit: str
    files: Mapping[str, str]


def is_hub(src: str | Path) -> bool:
    """Whether a source is on the Hub."""
    return str(src).startswith("hf:")


def list_hub(src: str, split: Split) -> Listing:
    """The Parquet files of a data set on the Hub, downloaded where the cache does not hold them; its `source` names the commit.

    Errors: `UserError` without the extra `hub`, without network, for an unknown data set, revision or configuration, and for a file that
    is not what the Hub lists.
    """
    found = FORM.fullmatch(src)
    if not found:
        raise UserError(f"{src} is not hf:owner/name, hf:owner/name@revision or hf:owner/name:config: correct it")
    place = _place(src, found["repo"], found["revision"] or "main")
    names = _chosen(place, found["config"])
    paths = [_fetched(place, name) for name in names]
    root = paths[0].parents[names[0].count("/")]  # of the commit's files
    folder = root / names[0].split("/")[0] if "/" in names[0] else root
    train, test = split_files(paths, folder)
    config = f":{found['config']}" if found["config"] else ""
    return replace(list_files(train, test, folder, split), title=place.repo.split("/")[1], source=f"hf:{place.repo}@{place.commit}{config}")


def _chosen(place: _Place, config: str | None) -> list[str]:
    """Names of the files of the configuration; of the only one, where none is named."""
    tops = sorted({name.split("/")[0] if "/" in name else "." for name in place.files})
    if not tops:
        raise UserError(f"{place.src} has no Parquet files at this revision: try hf:{place.repo}@refs/convert/parquet, or download it")
    config = config or (tops[0] if len(tops) == 1 else None)
    if config not in tops:
        what = f"has no configuration {config!r}" if config else "has several configurations"
        raise UserError(f"{place.src} {what}: say hf:{place.repo}:CONFIG with one of {', '.join(map(printable, tops))}")
    return sorted(name for name in place.files if (name.split("/")[0] if "/" in name else ".") == config)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("data sets of the Hub need the package huggingface_hub: pip install 'pixelkiln[hub]'") from None
    return huggingface_hub


def _place(src: str, repo: str, revision: str) -> _Place:
    """The commit of a revision and its Parquet files; from the cache where the revision is a commit that was listed before."""
    known = cache_dir() / "hub" / f"{repo.replace('/', '--')}-{revision}.json"
    if COMMIT.fullmatch(revision):
        with suppress(UserError, TypeError, AttributeError):
            return _Place(src, repo, revision, {str(name): str(value) for name, value in read_json(known).items()})
    api = _hub().HfApi(endpoint=endpoint())
    info = _patiently(src, lambda: api.dataset_info(repo, revision=revision, files_metadata=True))
    if not COMMIT.fullmatch(info.sha or ""):
        raise UserError(f"{src}: the Hub names no commit for it: check HF_ENDPOINT")
    files = {}
    for file in info.siblings or ():
        if file.rfilename.endswith(".parquet"):
            if file.rfilename.startswith("/") or ".." in file.rfilename.split("/"):
                raise UserError(f"{src} lists {printable(file.rfilename)}, a name that leads out of the data set: refused")
            files[file.rfilename] = listed(file)
    with suppress(OSError):
        write_json(known.with_name(f"{repo.replace('/', '--')}-{info.sha}.json"), files)
    return _Place(src, repo, info.sha, files)


def _fetched(place: _Place, name: str) -> Path:
    """A file of the data set, from the cache or downloaded, with the checksum that it should have."""
    hub, cache = _hub(), os.environ.get("HF_HUB_CACHE")

    def load() -> str:
        found: str = hub.hf_hub_download(place.repo, name, repo_type="dataset", revision=place.commit, endpoint=endpoint(), cache_dir=cache)
        return found

    path = Path(_patiently(place.src, load))
    facts = path.stat()
    kind, _, expected = place.files[name].partition(":")
    if checksum(path, kind, facts.st_size, facts.st_mtime_ns) != expected:
        raise UserError(f"{place.src}: {name} is not what the Hub lists (checksum mismatch): delete {path.resolve()} and try again")
    return path


def _patiently(src: str, call: Callable[[], Any], waits: Sequence[float] | None = None) -> Any:
    """The call's result; what may pass, such as a lost connection, is tried again after a while."""
    return patiently(src, "data set", call, WAITS if waits is None else waits)
