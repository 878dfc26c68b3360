"""The run folder: what was trained and how (recipe.json), its log (metrics.jsonl) and its checkpoints.

    recipe.json      resolved configuration, data, plan, versions
    metrics.jsonl    one JSON object a line: the source of truth for every curve
    checkpoints/     step-00001000/{weights,average,optim}.safetensors, state.json, manifest.json (sizes and SHA-256 of the others)
    samples/         the same seeds over time
    snapshots/       step-00001000/{std-0.05,std-0.1}.safetensors, ...: averages by a power of the time, sealed alike
    report.html
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .config import from_json
from .files import (
    Unwritable,
    fsync,
    locked,
    read_json,
    read_tensors,
    refuse_pickle,
    sha256,
    write_bytes,
    write_json,
    write_tensors,
    writing,
)
from .types import UserError

__all__ = ["Checkpoint", "Run"]

PARTS = ("recipe.json", "metrics.jsonl", "checkpoints", "samples", "snapshots", "stages", "evaluation.json", "report.html")
ASIDE = (".*.tmp", "samples/.*.tmp", "checkpoints/.*.tmp", "checkpoints/.old-*", "snapshots/.*")  # what killed processes leave
FACTS = {  # what recipe.json must hold, by dotted name; there may be more
    "recipe": str, "size": Literal["tiny", "small", "base"], "stage": str, "seed": int, "stages": tuple[Mapping[str, Any], ...], "total": int,
    "data.source": str, "data.digest": str, "data.shape": tuple[int, int, int], "data.classes": tuple[str, ...], "data.counts": tuple[int, ...],
    "data.images": int, "parents": Mapping[str, Any], "asked": Mapping[str, Any], "command": str, "where.device": str, "where.precision": str,
    "where.compile": bool, "where.threads": int, "where.processor": str, "versions": Mapping[str, str], "parameters": int,
}


def _number(path: Path) -> int:
    """The step in the name of a checkpoint or a sample grid, -1 for anything else."""
    found = re.fullmatch(r"step-(\d{8,12})(\.png)?", path.name)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint: named groups of tensors, and a state that is plain JSON."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of steps done when it was written."""
        return int(self.state["step"])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of a group (weights, average, optim); {} where it has none."""
        file = self.path / f"{group}.safetensors"
        return read_tensors(file) if file.exists() else {}


class Run:
    """A run folder. Checkpoints are staged, hashed, fsynced and renamed, so that a kill at any moment loses nothing that was saved."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run; anything else is a UserError."""
        run = cls(path)
        refuse_pickle(run.path)
        if not run.path.exists():
            raise UserError(f"{path}: no such run folder")
        if not run.recipe_file.exists():
            raise UserError(f"{path}: not a run folder (it has no recipe.json); make one with 'pixelkiln train'")
        run.refuse_links()
        return run

    def refuse_links(self) -> None:
        """A part of the folder that is a link would have other folders read, written and cleared (UserError)."""
        for part in PARTS:
            if (self.path / part).is_symlink():
                raise UserError(f"{self.path / part} is a link, which may lead out of the run: put in its place what it leads to")

    @contextlib.contextmanager
    def hold(self, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Keep every other training out of this folder (UserError there) until the block ends; readers are not kept out.

        The folder is made if need be, cleared of what killed trainings left half-written, and removed if it is empty in the end.
        """
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path / ".lock") as unlocked:
                if unlocked:
                    say(f"note: {unlocked}: a second training of {self.path} would not be noticed")
                self.refuse_links()
                for pattern in ASIDE:
                    for left in self.path.glob(pattern):
                        _remove(left)
                yield
        finally:
            with contextlib.suppress(OSError):  # the first that is not empty ends it
                for folder in made:
                    folder.rmdir()

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_recipe(self) -> dict[str, Any]:
        """recipe.json, with everything in it that the rest relies on (FACTS); else UserError."""
        found = read_json(self.recipe_file)
        for name, kind in FACTS.items():
            value = found
            for part in name.split("."):
                if not isinstance(value, dict) or part not in value:
                    raise UserError(f"{self.recipe_file}: not a recipe of ours (it has no {name}); the file is damaged")
                value = value[part]
            from_json(kind, value, f"{self.recipe_file}: {name}")
        data = found["data"]
        if min(data["shape"]) < 1 or found["total"] < 0 or (data["counts"] and (len(data["counts"]) != len(data["classes"]) or min(data["counts"]) < 0)):
            raise UserError(f"{self.recipe_file}: its numbers make no sense; the file is damaged")
        return found

    # ---- log
    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        line = (json.dumps(record) + "\n").encode()
        with writing(self.metrics_file, len(line)):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.metrics_file, "ab", buffering=0) as f:
                f.write(line)

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that hold a step and other numbers, each once; what a kill has cut is passed over."""
        if not self.metrics_file.is_file():
            return []
        found: dict[bytes, dict[str, Any]] = {}
        for line in self.metrics_file.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int) and all(_finite(v) for v in record.values()):
                    found[line] = record
        return list(found.values())

    def rewind(self, step: int, rollbacks: int = 0) -> None:
        """Drop what was logged and sampled after the step from which training resumes, but not what was logged before it was last taken back."""
        kept = [r for r in self.records() if (r.get("rollbacks", 0), r["step"]) <= (rollbacks, step)]
        if self.metrics_file.exists():
            write_bytes(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self.forget(step)

    def forget(self, step: int) -> None:
        """Drop the grids and the snapshots of later steps."""
        for file in self.samples():
            if _number(file) > step:
                file.unlink()
        for snapshot in self.points("snapshots"):
            if _number(snapshot) > step:
                _remove(snapshot)

    def samples(self) -> list[Path]:
        """Sample grids of the same seeds, oldest first."""
        return sorted((p for p in (self.path / "samples").glob("step-*.png") if _number(p) >= 0), key=_number)

    # ---- checkpoints
    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2, spare: int = -1) -> Path:
        """Write a checkpoint aside, seal it with a manifest of hashes, rename it; then drop all but the newest `keep`, and that of the step `spare`.

        What is newer than `step` is dropped as well: it can only be damaged, as training went on from before it. Unwritable: nothing changed.
        """
        folder = self.path / "checkpoints"
        final = self._place(folder, step, groups, state)
        older = [p for p in self.points() if _number(p) <= step]
        for old in {*self.points()} - {*older[-keep:], *(p for p in older if _number(p) == spare)}:
            with contextlib.suppress(OSError):  # it is whole or gone, as all that has this name
                os.replace(old, folder / f".old-{old.name}")
        for old in folder.glob(".old-*"):
            _remove(old)
        return final

    def snapshot(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write averages into snapshots/, like a checkpoint; all are kept."""
        return self._place(self.path / "snapshots", step, groups, state)

    def _place(self, folder: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """A sealed folder of a step, there whole or not at all."""
        final, stage = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}.tmp"
        try:
            self._stage(stage, step, groups, state)
            if final.exists():  # a damaged twin: out of the way first
                os.replace(final, folder / f".old-{final.name}")
            os.replace(stage, final)
            fsync(folder)
        except OSError as e:
            shutil.rmtree(stage, ignore_errors=True)
            cause = e.__cause__ if isinstance(e, Unwritable) and isinstance(e.__cause__, OSError) else e
            raise Unwritable(final, cause, sum(t.nbytes for tensors in groups.values() for t in tensors.values())) from e
        return final

    def _stage(self, stage: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """The files of a checkpoint, and the log up to it, made durable."""
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        for group, tensors in groups.items():
            if tensors:
                write_tensors(stage / f"{group}.safetensors", tensors)
        write_json(stage / "state.json", {**state, "step": step})
        manifest = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(stage.iterdir())}
        write_json(stage / "manifest.json", manifest)
        if self.metrics_file.exists():
            fsync(self.metrics_file)

    def points(self, kind: str = "checkpoints") -> list[Path]:
        """Folders of checkpoints (or of snapshots), oldest first, unverified."""
        return sorted((p for p in (self.path / kind).glob("step-*") if _number(p) >= 0), key=_number)

    def snapshots(self) -> list[Checkpoint]:
        """All snapshots, oldest first, verified; a damaged one is a UserError."""
        for path in (paths := self.points("snapshots")):
            if wrong := self.verify(path):
                raise UserError(f"{wrong}: remove {path} to do without it")
        return [Checkpoint(path, read_json(path / "state.json")) for path in paths]

    def verify(self, path: Path) -> str | None:
        """None if the checkpoint has the files of its manifest, no other, and each is as it says; else what is wrong."""
        try:
            manifest = read_json(path / "manifest.json")
            there = {f.name for f in path.iterdir()} - {"manifest.json"}
            for name in sorted({"state.json"} | there | {*manifest}):
                file = path / name
                if name not in there or name not in manifest:
                    return f"{path}: {name!r} is {'not in its manifest' if name in there else 'missing'}"
                if file.is_symlink() or not file.is_file() or file.stat().st_size != manifest[name]["bytes"] or sha256(file) != manifest[name]["sha256"]:
                    return f"{file} is damaged"
            if read_json(path / "state.json")["step"] != _number(path):
                return f"{path} holds another step"
        except (UserError, OSError, KeyError, TypeError) as e:
            return str(e) if isinstance(e, UserError) else f"{path} is damaged ({type(e).__name__}: {e})"
        return None

    def last_good(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that passes its hash check, and what was wrong with newer ones."""
        bad: list[str] = []
        for path in reversed(self.points()):
            wrong = self.verify(path)
            if not wrong:
                return Checkpoint(path, read_json(path / "state.json")), bad
            if not path.exists():  # a training has just replaced it by a newer one
                return self.last_good()
            bad.append(wrong)
        return None, bad

    def checkpoint(self) -> Checkpoint:
        """The newest good checkpoint, or a UserError."""
        found, bad = self.last_good()
        if found is None:
            why = f": {bad[0]}" if bad else "; nothing was saved yet"
            raise UserError(f"{self.path}: no usable checkpoint{why}")
        return found


def _remove(path: Path) -> None:
    """Remove a folder or a file as far as it can be."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _finite(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int) and abs(value) < 2**63 or isinstance(value, float) and math.isfinite(value)
