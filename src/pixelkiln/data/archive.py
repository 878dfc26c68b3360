"""Archives read in place: .zip, .tar, .tar.gz, and folders of them. Nothing is ever extracted, no name of a member becomes a path.

What is inside is a folder's tree (one folder a class, `train/` and `test/`, metadata), or has WebDataset's names
(github.com/webdataset/webdataset): files that share a name up to its first dot belong together, `key.png`, `key.cls`, `key.txt`, `key.json`.
Archives come from strangers: links, devices, names that lead out, archives in archives, pickled fields, members that overlap or unpack to
far more than they are, and more members than MAX_MEMBERS are refused, each with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.types import UserError
from .encoded import Source, content, printable
from .folder import METADATA, READ, Tree, split_files, tree_parts
from .images import Split
from .listing import Entry, Listing, list_entries
from .tars import index_tar
from .zips import index_zip

__all__ = ["ARCHIVES", "MAX_MEMBERS", "has_archives", "is_archive", "list_archives"]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
NESTED = (*ARCHIVES, ".7z", ".bz2", ".gz", ".rar", ".xz", ".zst")
PICKLED = (".npy", ".pickle", ".pkl", ".pt", ".pth", ".pyd")
FIELDS = (".cls", ".json", ".txt")
MAX_MEMBERS = 10_000_000
MAX_NAME = 1024


def is_archive(path: Path) -> bool:
    """Whether the name ends as an archive's that can be read."""
    return path.name.lower().endswith(ARCHIVES)


def has_archives(folder: Path) -> bool:
    """Whether a folder holds archives, and neither images nor folders beside them."""
    parts = [part for part in folder.iterdir() if not part.name.startswith(".")]
    return any(map(is_archive, parts)) and not any(part.is_dir() or part.suffix.lower() in READ for part in parts)


def list_archives(path: Path, split: Split) -> Listing:
    """An archive, or a folder of them (shards; `train-*` and `test-*` are the splits); else each tenth image is held out.

    Errors: `UserError` on anything in an archive that the module refuses, and as `list_tree`.
    """
    if path.is_file():
        return _listing(*_parts(path), path, split)
    shards, held = split_files(sorted(part for part in path.iterdir() if is_archive(part)), path)
    if held:
        num = len(shards) + len(held)
        train, test = ([entry for shard in side for part in _parts(shard, num) for entry in part] for side in (shards, held))
        return _listing(train, test, path, split)
    found = [_parts(shard, len(shards)) for shard in shards]
    return _listing([entry for part, _ in found for entry in part], [entry for _, part in found for entry in part], path, split)


def _listing(train: list[Entry], test: list[Entry], path: Path, split: Split) -> Listing:
    if not train:
        raise UserError(f"{path} holds no images (PNG, JPEG, WebP, BMP): give an archive that does")
    return list_entries(train, test, path, split)


def _parts(path: Path, num: int = 1) -> tuple[list[Entry], list[Entry]]:
    """The images of the train and of the test part of one archive of `num`, which share the memory that a .tar.gz may take."""
    facts = path.stat()
    tree = _tree(path, num) if path.name.lower().endswith("gz") else _kept(path, facts.st_size, facts.st_mtime_ns)
    if not any(name in tree.files for name in METADATA):
        samples = _samples(tree)
        if samples is not None:
            return samples, []
    return tree_parts(tree)


@lru_cache(maxsize=64)
def _kept(path: Path, size: int, changed: int) -> Tree:
    """The index of an archive, made once while its size and time of change stay."""
    return _tree(path)


def _tree(path: Path, num: int = 1) -> Tree:
    """The index of an archive, one of `num` that may share the memory; a folder around everything is left away."""
    index = index_zip(path) if path.name.lower().endswith(".zip") else index_tar(path, num)
    files: dict[str, Source] = {}
    for number, (name, source) in enumerate(index, 1):
        if number > MAX_MEMBERS:
            raise UserError(f"{path} has more than {MAX_MEMBERS:,} members: split it into several archives")
        name = _checked(path, name)
        if name in files:
            raise UserError(f"{path} has two members named {printable(name)}: write it again")
        if not any(part.startswith(".") for part in name.split("/")):
            files[name] = source
    while len(tops := {name.split("/")[0] for name in files}) == 1 and all("/" in name for name in files) and tops != {"train"}:
        files = {name.partition("/")[2]: source for name, source in files.items()}
    return Tree(path, files)


def _checked(path: Path, name: str) -> str:
    """The name of a file in an archive, without "." parts. Errors: `UserError` where it must not be read."""
    if len(name) > MAX_NAME:
        raise UserError(f"{path} has a member whose name has {len(name):,} characters: refused; give it a shorter one")
    parts = name.split("/")
    shown = f"{path}: the member {printable(name)}"
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or name[1:2] == ":":
        raise UserError(f"{shown} has a name that leads out of the archive: refused, as such archives are made to attack")
    low = name.lower()
    if low.removesuffix(".gz").endswith(PICKLED):
        raise UserError(f"{shown} may hold pickled objects, which run code when they are read: refused; write such fields as .json or .txt")
    if low.endswith(NESTED):
        raise UserError(f"{shown} is an archive in an archive: refused; unpack it and pack its files")
    return "/".join(part for part in parts if part not in ("", "."))


def _samples(tree: Tree) -> list[Entry] | None:
    """The samples of WebDataset's naming, in the archive's order; None where no image has a field beside it."""
    groups: dict[str, dict[str, str]] = {}
    for name in tree.files:
        base, dot, end = name.rpartition("/")[2].partition(".")
        groups.setdefault(name.removesuffix(dot + end) if dot else name, {})["." + end.lower()] = name
    if not any(any(end in group for end in READ) and any(end in group for end in FIELDS) for group in groups.values()):
        return None
    entries = []
    for key, group in groups.items():
        images = {end: name for end, name in group.items() if end.endswith(READ)}
        if not images and not any(end in group for end in FIELDS):
            continue
        if len(images) != 1 or not set(images) < set(READ):
            found = ", ".join(map(printable, images.values())) or "none"
            raise UserError(f"{tree.root}: the key {printable(key)} needs one image, named KEY.png, .jpg, .jpeg or .webp, and has {found}: write it again")
        (image,) = images.values()
        entries.append(tree.entry(image, *_fields(tree, group)))
    return entries


def _fields(tree: Tree, group: Mapping[str, str]) -> tuple[str | int | None, str | None]:
    """Label and caption of a sample: of its .json, then of its .cls and .txt."""
    label: Any = None
    text: Any = None
    if name := group.get(".json"):
        try:
            row = json.loads(content(tree.files[name]))
        except (ValueError, RecursionError):
            raise UserError(f"{tree.root}: the member {printable(name)} is not valid JSON: write it again") from None
        if isinstance(row, dict):
            label, text = row.get("label"), row.get("text", row.get("caption"))
    if name := group.get(".cls"):
        word = _text(tree, name).strip()
        label = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else word
    if name := group.get(".txt"):
        text = _text(tree, name).strip()
    if not isinstance(label, str | int | None) or isinstance(label, bool) or not isinstance(text, str | None):
        where = printable(next(iter(group.values())))
        raise UserError(f"{tree.root}: {where} has a label that is no string or integer, or a text that is no string: write it again")
    return label, text


def _text(tree: Tree, name: str) -> str:
    try:
        return content(tree.files[name]).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{tree.root}: the member {printable(name)} is not UTF-8 text: write it again") from None
