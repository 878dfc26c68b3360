"""Where a model comes from: owner/name[/file][@revision] on the Hub, a folder, or one .safetensors file; pickles are refused.

A name on the Hub is pinned to a commit at its first use, and that commit's files are kept: from then on no network is needed, and the model stays
the same until the user asks for a newer one. Every file is held against the checksum that the Hub lists.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import UserError
from ..core.files import PICKLES, cache_dir, read_json, refuse_pickle, sha256, write_json
from ..core.hub import COMMIT, WAITS, checksum, endpoint, listed, patiently

__all__ = ["EXTRA", "Place", "components", "locate", "pipeline_files", "plain_files", "weights_of"]

EXTRA = "pip install 'pixelkiln[pretrained]'"
FORM = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<file>(/[\w.-]+)*)(@(?P<revision>[\w.][\w./-]*))?")
WEIGHTS = re.compile(r"(?P<stem>[^.]+?)(?P<shard>-\d{5}-of-\d{5})?(\.(?P<variant>\w+))?(?P<shard2>-\d{5}-of-\d{5})?\.safetensors(?P<index>\.index)?")
SMALL = (".json", ".txt", ".model", ".jinja")  # configurations and vocabularies

Chooser = Callable[[Sequence[str], Callable[[str], Path]], Iterable[str]]


class Place(NamedTuple):
    """A model on this machine: its name with the commit, or its absolute path; where it is; a digest of its files, "" for a commit."""

    name: str
    path: Path
    digest: str = ""


def locate(name: str, choose: Chooser, what: str = "model", update: bool = False, say: Callable[[str], None] = lambda line: None) -> Place:
    """The model `name`, downloaded where it is not here. choose: names of the files that are needed, of all names and a function that fetches one.

    Errors: `UserError` for what is not there, cannot be fetched, is not what the Hub lists, or is a pickle.
    """
    path = Path(name).expanduser()
    if path.exists():
        path = path.resolve()
        refuse_pickle(path)
        if path.is_file() and path.suffix != ".safetensors":
            raise UserError(f"{name}: give a folder, a .safetensors file, or owner/name of a {what} on the Hub")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if path.is_dir():
            names = [p.relative_to(path).as_posix() for p in files]
            wanted = {str(n) for n in choose(names, lambda n: path / n)}
            files = [p for p, n in zip(files, names, strict=True) if n in wanted]
        return Place(str(path), path, _digest(path, files))
    found = FORM.fullmatch(name)
    if not found or name.startswith(("./", "../", "/", "~")):
        raise UserError(f"{name}: no such folder or .safetensors file, and no owner/name of a {what} on the Hub: check the name")
    return _fetched(found["repo"], found["file"].strip("/"), found["revision"] or "main", choose, what, update, say)


def _fetched(repo: str, inner: str, revision: str, choose: Chooser, what: str, update: bool, say: Callable[[str], None]) -> Place:
    """A model of the Hub at its commit."""
    commit, files = _pinned(repo, revision, what, update, say)
    hub = _hub(what)

    def fetch(file: str) -> Path:
        def load() -> str:
            found: str = hub.hf_hub_download(repo, file, revision=commit, endpoint=endpoint(), cache_dir=os.environ.get("HF_HUB_CACHE"))
            return found

        path = Path(patiently(f"{repo}@{commit}", what, load, WAITS))
        facts = path.stat()
        kind, _, expected = files[file].partition(":")
        if checksum(path, kind, facts.st_size, facts.st_mtime_ns) != expected:
            raise UserError(f"{repo}: {file} is not what the Hub lists (checksum mismatch): delete {path.resolve()} and try again")
        return path

    names = [inner] if inner.endswith(".safetensors") else list(choose(sorted(files), fetch))
    if inner and inner not in files and not any(n.startswith(f"{inner}/") for n in files):
        raise UserError(f"{repo} has no file {inner} at {commit[:12]}: look at it on the Hub")
    if not names:
        raise UserError(f"{repo} holds no {what} in safetensors: choose another")
    paths = {file: fetch(file) for file in names}
    first = next(iter(paths))
    root = paths[first].parents[first.count("/")]
    return Place(f"{repo}{'/' if inner else ''}{inner}@{commit}", root / inner if inner else root)


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"a {what} of the Hub needs the package huggingface_hub: {EXTRA}") from None
    return huggingface_hub


def _pinned(repo: str, revision: str, what: str, update: bool, say: Callable[[str], None]) -> tuple[str, Mapping[str, str]]:
    """The commit of a revision and the checksums of its files: as kept, unless `update`, or from the Hub, and then kept."""
    folder = cache_dir() / "models" / repo.replace("/", "--")
    pin = folder / f"{revision.replace('/', '--')}.json"
    if not update or COMMIT.fullmatch(revision):
        with suppress(UserError, TypeError, AttributeError, KeyError):
            kept = read_json(pin)
            return str(kept["commit"]), {str(n): str(v) for n, v in kept["files"].items()}
    src = repo if revision == "main" else f"{repo}@{revision}"
    api = _hub(what).HfApi(endpoint=endpoint())
    info = patiently(src, what, lambda: api.model_info(repo, revision=revision, files_metadata=True), WAITS)
    if not COMMIT.fullmatch(info.sha or ""):
        raise UserError(f"{src}: the Hub names no commit for it: check HF_ENDPOINT")
    files = {}
    for file in info.siblings or ():
        if file.rfilename.startswith("/") or ".." in file.rfilename.split("/"):
            raise UserError(f"{src} lists {file.rfilename}, a name that leads out of the model: refused")
        files[file.rfilename] = listed(file)
    with suppress(OSError):
        for keep in {pin, folder / f"{info.sha}.json"}:
            write_json(keep, {"commit": info.sha, "files": files})
    say(f"{src} is pinned to {info.sha[:12]}")
    return info.sha, files


def _digest(path: Path, files: Sequence[Path]) -> str:
    """SHA-256 of names and contents, kept while no file's size and time of change differ."""
    facts = [[p.relative_to(path).as_posix() if p != path else "", p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    keep = cache_dir() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json"
    with suppress(UserError, TypeError, KeyError):
        kept = read_json(keep)
        if kept["facts"] == facts:
            return str(kept["digest"])
    digest = hashlib.sha256()
    for p, fact in zip(files, facts, strict=True):
        digest.update(f"{fact[0]}\0{sha256(p)}\n".encode())
    with suppress(OSError):
        write_json(keep, {"facts": facts, "digest": digest.hexdigest()})
    return digest.hexdigest()


def weights_of(names: Iterable[str], where: str, variant: str) -> list[str]:
    """The safetensors among the names of one folder, of the variant where it has one. Errors: `UserError` where there are pickles only."""
    found: dict[str, list[str]] = {}
    pickles = []
    for name in names:
        file = name.rsplit("/", 1)[-1]
        match = WEIGHTS.fullmatch(file.removesuffix(".json"))
        if match and (file.endswith(".safetensors") or match["index"]):
            found.setdefault(match["variant"] or "", []).append(name)
        elif Path(file).suffix.lower() in PICKLES:
            pickles.append(file)
    chosen = found.get(variant) or found.get("")
    if chosen:
        return chosen
    if found:
        raise UserError(f"{where} has its weights only in the variant {' or '.join(found)}: say --variant {sorted(found)[0]}")
    if pickles:
        raise UserError(f"{where} has its weights only as a pickle ({pickles[0]}), which runs code when it is opened: choose a model or a revision "
                        "with safetensors, or convert it")
    return []


def components(index: Mapping[str, Any], where: str) -> dict[str, tuple[str, str]]:
    """Folders of a pipeline with the library and class of each, of model_index.json. Errors: `UserError` for code that is not in the libraries."""
    found = {}
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise UserError(f"{where}: its pipeline is not one of diffusers but code of its own, which is not run: choose another model")
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_") and all(isinstance(v, str) for v in value):
            if "/" in name or name.startswith("."):
                raise UserError(f"{where}: model_index.json names a folder {name}: refused")
            found[name] = (value[0], value[1])
    return found


def pipeline_files(variant: str) -> Chooser:
    """Chooses what a pipeline needs: its index, and of every component the weights in safetensors and the small files."""

    def choose(names: Sequence[str], fetch: Callable[[str], Path]) -> list[str]:
        if "model_index.json" not in names:
            raise UserError("this is no pipeline of diffusers (it has no model_index.json): give one, or one .safetensors file")
        where = str(fetch("model_index.json").parent)
        parts = components(read_json(fetch("model_index.json")), where)
        wanted = ["model_index.json"]
        for part in parts:
            inside = [n for n in names if n.startswith(f"{part}/") and n.count("/") == 1]
            wanted += weights_of(inside, part, variant)
            wanted += [n for n in inside if n.endswith(SMALL) and not n.endswith(".index.json")]
        return sorted(set(wanted))

    return choose


def plain_files(variant: str, folder: str = "") -> Chooser:
    """Chooses the weights and the configuration of one model, in the repository itself or in a folder of it."""

    def choose(names: Sequence[str], fetch: Callable[[str], Path]) -> list[str]:
        inside = [n for n in names if n.rpartition("/")[0] == folder]
        return sorted({*weights_of(inside, folder or "it", variant), *(n for n in inside if n.endswith("config.json"))})

    return choose
