"""The run folder: what was trained and how (recipe.json), its log (metrics.jsonl) and its checkpoints.

    recipe.json      resolved configuration, data, plan, versions
    metrics.jsonl    one JSON object a line: the source of truth for every curve
    checkpoints/     step-00001000/{weights,average,optim}.safetensors, state.json, manifest.json (sizes and SHA-256 of the others)
    samples/         the same seeds over time
    report.html
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import fsync_dir, read_json, read_tensors, refuse_pickle, sha256, write_bytes, write_json, write_tensors
from .types import UserError

__all__ = ["Checkpoint", "Run"]


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
        return run

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_recipe(self) -> dict[str, Any]:
        """recipe.json."""
        found = read_json(self.recipe_file)
        if not isinstance(found, dict) or "recipe" not in found:
            raise UserError(f"{self.recipe_file}: not a recipe of ours; the file is damaged")
        return found

    # ---- log
    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.metrics_file, "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl (a line cut by a kill is passed over)."""
        if not self.metrics_file.exists():
            return []
        found = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Drop what was logged and sampled after the step from which training resumes."""
        kept = [r for r in self.records() if r.get("step", 0) <= step]
        write_bytes(self.metrics_file, "".join(json.dumps(r) + "\n" for r in kept).encode())
        for file in self.samples():
            if int(file.stem.split("-")[-1]) > step:
                file.unlink()

    def samples(self) -> list[Path]:
        """Sample grids of the same seeds, oldest first."""
        return sorted((self.path / "samples").glob("step-*.png"))

    # ---- checkpoints
    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2) -> Path:
        """Write a checkpoint aside, seal it with a manifest of hashes, rename it; then drop all but the newest `keep`."""
        folder = self.path / "checkpoints"
        final, stage = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}.tmp"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        for group, tensors in groups.items():
            if tensors:
                write_tensors(stage / f"{group}.safetensors", tensors)
        write_json(stage / "state.json", {**state, "step": step})
        manifest = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(stage.iterdir())}
        write_json(stage / "manifest.json", manifest)
        if final.exists():  # a damaged or older twin: out of the way first
            os.replace(final, doomed := folder / f".old-{final.name}")
            shutil.rmtree(doomed)
        os.replace(stage, final)
        fsync_dir(folder)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
        for left in [*folder.glob(".step-*.tmp"), *folder.glob(".old-*")]:
            shutil.rmtree(left, ignore_errors=True)
        return final

    def verify(self, path: Path) -> str | None:
        """None if every file of the checkpoint is as the manifest says, else what is wrong."""
        try:
            manifest = read_json(path / "manifest.json")
            for name, fact in manifest.items():
                file = path / name
                if not file.exists() or file.stat().st_size != fact["bytes"] or sha256(file) != fact["sha256"]:
                    return f"{file} is missing or damaged"
            read_json(path / "state.json")
        except (UserError, KeyError, TypeError, AttributeError) as e:
            return str(e)
        return None

    def last_good(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that passes its hash check, and what was wrong with newer ones."""
        bad = []
        for path in sorted((self.path / "checkpoints").glob("step-*"), reverse=True):
            if wrong := self.verify(path):
                bad.append(wrong)
            else:
                return Checkpoint(path, read_json(path / "state.json")), bad
        return None, bad

    def checkpoint(self) -> Checkpoint:
        """The newest good checkpoint, or a UserError."""
        found, bad = self.last_good()
        if found is None:
            why = f": {bad[0]}" if bad else "; nothing was saved yet"
            raise UserError(f"{self.path}: no usable checkpoint{why}")
        return found
