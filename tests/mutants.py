"""Files of every kind that is read, spoiled byte by byte: what comes of each is data or one clear line; no trace, no hang, no memory without end.

    python tests/mutants.py --examples 60 [--seed 0] [--out benchmarks/results/DATE-mutants.json]

A process of its own, as a decoder that crashes would take the tests with it. Prints JSON: for each kind how many mutants were read, refused in one line, and how many failed (status 1 if any has).
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import gzip
import importlib.util
import io
import json
import platform
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkiln.core.files import read_json, read_tensors, write_tensors
from pixelkiln.core.images import read_image
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.data import open_source, write_npz
from pixelkiln.engine.where import processor

MEMORY = 3 * 2**29  # bytes above what is in use before the first mutant
PATIENCE = 20  # seconds of one mutant
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
SMALL = DataConfig(resolution=8)
Read = Callable[[Path], object]


class Hang(BaseException):
    """A mutant took too long."""


def encoded(kind: str, i: int = 0, **options: Any) -> bytes:
    """A small image file."""
    out = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(out, kind, **options)
    return out.getvalue()


def corpus(base: Path) -> Iterator[tuple[str, Path, Read]]:
    """(kind, a whole file, what reads it): the file is spoiled in its place."""
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"lossless": True}), ("BMP", {})):
        for i in range(12):
            put(base / kind / f"{i:02d}.png", encoded(kind, i, **options))
        yield kind, base / kind / "00.png", lambda path: open_source(path.parent, SMALL)
        yield f"{kind} as a source image", base / kind / "01.png", read_image
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (12, 8, 8))
    put(base / "idx" / "train-images-idx3-ubyte", head + PIXELS[..., 0].tobytes())
    put(base / "idx" / "train-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 12]) + bytes([0, 1] * 6))
    yield "IDX", base / "idx" / "train-images-idx3-ubyte", lambda path: open_source(path.parent)
    yield "IDX labels", base / "idx" / "train-labels-idx1-ubyte", lambda path: open_source(path.parent)
    put(base / "gz" / "train-images-idx3-ubyte.gz", gzip.compress(head + PIXELS[..., 0].tobytes()))
    yield "IDX gzipped", base / "gz" / "train-images-idx3-ubyte.gz", lambda path: open_source(path.parent)
    write_npz(base / "a.npz", PIXELS, np.arange(12) % 2, ["x", "y"])
    yield "npz", base / "a.npz", open_source
    np.savez_compressed(base / "c.npz", images=PIXELS, labels=np.arange(12) % 2)
    yield "npz compressed", base / "c.npz", open_source
    names = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}}})
    rows = pa.table({"image": [{"bytes": encoded("PNG", i), "path": ""} for i in range(12)], "label": [0, 1] * 6}).replace_schema_metadata({"huggingface": names})
    pq.write_table(rows, base / "a.parquet")
    yield "Parquet", base / "a.parquet", open_source
    described = [{"file_name": f"{i:02d}.png", "label": "xy"[i % 2], "text": f"number {i}"} for i in range(12)]
    for name in ("jsonl", "csv"):
        for i in range(12):
            put(base / name / f"{i:02d}.png", encoded("PNG", i))
    put(base / "jsonl" / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in described).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, [*described[0]])
    writer.writeheader()
    writer.writerows(described)
    put(base / "csv" / "metadata.csv", text.getvalue().encode())
    for name in ("jsonl", "csv"):
        yield f"metadata.{name}", base / name / f"metadata.{name}", lambda path: open_source(path.parent)
    yield from archives(base)
    yield from of_a_run(base)


def archives(base: Path) -> Iterator[tuple[str, Path, Read]]:
    """Archives of images, in versions that read them."""
    if importlib.util.find_spec("pixelkiln.data.archive") is None:
        return
    with zipfile.ZipFile(base / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for i in range(12):
            z.writestr(f"{'xy'[i % 2]}/{i:02d}.png", encoded("PNG", i))
    yield "zip", base / "a.zip", open_source
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(base / name, mode) as t:
            for i in range(12):
                info = tarfile.TarInfo(f"{'xy'[i % 2]}/{i:02d}.png")
                info.size = len(data := encoded("PNG", i))
                t.addfile(info, io.BytesIO(data))
        yield name[2:], base / name, open_source


def of_a_run(base: Path) -> Iterator[tuple[str, Path, Read]]:
    """What lies in a run folder."""
    run = Run(base / "run")
    write_tensors(base / "a.safetensors", {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)})
    yield "safetensors", base / "a.safetensors", read_tensors
    put(run.recipe_file, json.dumps(FACTS, indent=1).encode())
    yield "recipe.json", run.recipe_file, lambda path: Run.open(path.parent).read_recipe()
    for step in range(5):
        run.append({"step": step, "loss": 1 / (1 + step)})
    yield "metrics.jsonl", run.metrics_file, lambda path: (run.records(), run.rewind(3))
    point = run.save(1, {"weights": {"a": torch.arange(6.0)}}, {"seen": [], "seconds": 1.0})
    yield "state.json", point / "state.json", lambda path: (run.last_good(), read_json(path))
    yield "manifest.json", point / "manifest.json", lambda path: run.last_good()


FACTS = {
    "recipe": "pca", "size": "tiny", "stage": "main", "seed": 0, "stages": [{"name": "main", "parents": {}, "model": {}, "data": {}, "train": {}}], "total": 0,
    "data": {"source": "digits", "digest": "0", "name": "digits", "shape": [1, 8, 8], "classes": ["0", "1"], "counts": [1, 2], "images": 3}, "parents": {},
    "plan": {"by": "steps"}, "asked": {"changes": {}, "budget": {}}, "command": "pixelkiln", "versions": {"torch": "2"}, "parameters": 7,
    "where": {"device": "cpu", "precision": "fp32", "compile": False, "threads": 1, "processor": "x"},
}


def put(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


WORDS = st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80", b"\x00\x00\x01\x00", b"-1", b"9" * 30, b"NaN", b"1e999",
                         b"null", b"[" * 3000, b'"', b"\xc3", b"\n", b"../", b"{}"])
PLACE = st.floats(0, 1, exclude_max=True)
STEP = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("put"), PLACE, st.one_of(WORDS, st.binary(min_size=1, max_size=8))),
    st.tuples(st.just("insert"), PLACE, st.one_of(WORDS, st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("drop"), PLACE, st.integers(1, 200)),
    st.tuples(st.just("double"), PLACE, st.integers(1, 200)),
    st.tuples(st.just("cut"), PLACE, st.just(0)),
)


def spoiled(data: bytes, steps: list[tuple[str, float, Any]]) -> bytes:
    """The bytes after some steps; half of the places lie in the first 200 bytes, where headers are."""
    for how, place, what in steps:
        at = int(place * 2 * min(len(data), 200)) if place < 0.5 else int((2 * place - 1) * len(data))
        end = at + (what if isinstance(what, int) else len(what))
        if how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << what)]) + data[at + 1 :]
        elif how == "put":
            data = data[:at] + what + data[end:]
        elif how == "insert":
            data = data[:at] + what + data[at:]
        elif how == "drop":
            data = data[:at] + data[end:]
        elif how == "double":
            data = data[:end] + data[at:end] + data[end:]
        elif how == "cut":
            data = data[:at]
    return data


class Failed(Exception):
    """What came of a mutant is neither data nor one line."""


def attempt(kind: str, read: Read, path: Path, mutant: bytes) -> str:
    """'read' or 'refused'; anything else is an error of ours."""
    path.write_bytes(mutant)
    signal.alarm(PATIENCE)
    try:
        read(path)
        return "read"
    except UserError as e:
        if "\n" in str(e) or len(str(e)) > 800:
            raise Failed(f"not one line: {e!r}") from e
        return "refused"
    except (Exception, Hang) as e:
        raise Failed(f"{type(e).__name__}: {e}") from e
    finally:
        signal.alarm(0)


class Bench:
    """Kinds of files, and what came of their mutants."""

    def __init__(self, examples: int, number: int) -> None:
        self.examples, self.number = examples, number
        self.counts: dict[str, dict[str, int]] = {}
        self.failures: list[dict[str, str]] = []

    def spoil(self, kind: str, path: Path, read: Read) -> None:
        """Read so many mutants of one file, then put it back."""
        found = self.counts[kind] = {"read": 0, "refused": 0, "failed": 0}
        whole = path.read_bytes()

        @seed(self.number)
        @settings(max_examples=self.examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(st.lists(STEP, min_size=1, max_size=3))
        def run(steps: list[tuple[str, float, Any]]) -> None:
            try:
                found[attempt(kind, read, path, spoiled(whole, steps))] += 1
            except Failed as e:
                found["failed"] += 1
                self.failures.append({"kind": kind, "steps": repr(steps)[:500], "wrong": str(e)[:500]})
                sys.stderr.write(f"  FAILED {kind} {steps!r}\n{''.join(traceback.format_exception(e))}\n")

        run()
        path.write_bytes(whole)

    def report(self, begin: float) -> dict[str, Any]:
        """What was done, in numbers."""
        total = {how: sum(found[how] for found in self.counts.values()) for how in ("read", "refused", "failed")}
        return {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - begin), "seed": self.number, "examples": self.examples, "processor": processor(),
                "python": platform.python_version(), "torch": torch.__version__, "hypothesis": hypothesis.__version__, "files": sum(total.values()), **total,
                "kinds": self.counts, "failures": self.failures}


def everything(examples: int, number: int) -> dict[str, Any]:
    """All kinds, each with so many mutants."""
    begin, bench = time.monotonic(), Bench(examples, number)

    def late(signum: int, frame: object) -> None:
        raise Hang(f"more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, late)
    base = Path(tempfile.mkdtemp())
    try:
        kinds = list(corpus(base))
        for kind, path, read in kinds:  # everything is imported and works before memory is limited
            assert attempt(kind, read, path, path.read_bytes()) == "read", kind
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for kind, path, read in kinds:
            bench.spoil(kind, path, read)
    finally:
        shutil.rmtree(base)
    return bench.report(begin)


if __name__ == "__main__":
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = everything(asked.examples, asked.seed)
    text = json.dumps(found, indent=1) + "\n"
    sys.stdout.write(text)
    if asked.out:
        asked.out.write_text(text)
    sys.exit(found["failed"] > 0)
