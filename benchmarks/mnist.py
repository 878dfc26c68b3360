"""Train every program for the same wall-clock on MNIST, score their samples alike, and write a dated result.

    python benchmarks/mnist.py --data ../shared/data/mnist --work bench [--only ddpm,diffusers] [--peer-python .venv-diffusers/bin/python]

One program at a time, on a machine that does nothing else. What is in --work already is not run again, so that an interrupted
comparison goes on. diffusers lives in an environment of its own (--peer-python; without it that row is left out).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixelkiln.engine.where import processor

SLOW = 256  # samples of the programs that take a thousand steps for each
HERE = Path(__file__).resolve().parent
KILN = str(Path(sys.executable).with_name("pixelkiln"))


@dataclass(frozen=True)
class Program:
    """One row: who trains, for how long, and how many samples are scored (samplers of 1,000 steps are too slow for 2,000)."""

    name: str
    kind: str  # kiln, peer or diffusers
    what: str
    minutes: float
    n: int = 2000
    also: int = 0  # so many of the samples are scored once more, to stand beside a peer that has no more
    more: tuple[str, ...] = ()  # of the peer's program, or of `pixelkiln sample`


ROWS = (
    Program("flow", "kiln", "flow", 10, also=SLOW, more=("--guidance", "1.1")),
    Program("ddpm", "kiln", "ddpm", 10, also=SLOW),
    Program("diffusers", "diffusers", "diffusers_unet.py", 10, n=SLOW, more=("--sampler", "ddpm:1000", "--sample-batch", "256")),
    Program("document-diffusion", "peer", "document_diffusion.py", 10, n=SLOW),
    Program("vae", "kiln", "vae", 2),
    Program("vae-mlp", "kiln", "vae-mlp", 2),
    Program("document-vae", "peer", "document_vae.py", 2),
    Program("dcgan", "kiln", "dcgan", 5),
    Program("document-dcgan", "peer", "document_dcgan.py", 5),
    Program("pca", "kiln", "pca", 1),
)


def run(command: list[str], log: Path) -> str:
    """Run a command with two threads; its output goes to a file and comes back."""
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def train_kiln(row: Program, args: argparse.Namespace, out: Path) -> dict[str, object]:
    """Our own: train, sample in a process of its own, and the rates of both."""
    folder = args.work / row.name
    if not (folder / "report.html").exists():
        run([KILN, "train", row.what, "--data", str(args.data), "--out", str(folder), "--budget", f"{row.minutes}m", "--resume"],
            args.work / f"{row.name}.train.log")
    start = time.perf_counter()
    run([KILN, "sample", str(folder), "-n", str(row.n), "--out", str(out), *row.more], args.work / f"{row.name}.sample.log")
    wall = time.perf_counter() - start
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(r["images_per_s"] for r in records if "images_per_s" in r) or [0.0]
    facts = json.loads((folder / "recipe.json").read_text())
    steps, seconds = facts["total"], records[-1].get("seconds", 0.0)
    sampled = (args.work / f"{row.name}.sample.log").read_text().split("(")[-1].split(" ")[0]
    return {"steps": steps, "seconds": seconds, "images_per_s": rates[len(rates) // 2], "sample_images_per_s": float(sampled), "sample_wall": wall}


def train_peer(row: Program, args: argparse.Namespace, out: Path) -> dict[str, object]:
    """A peer's program: it prints its own facts as JSON, one line a file of samples."""
    python = args.peer_python if row.kind == "diffusers" else sys.executable
    command = [python, str(HERE / "peers" / row.what), "--data", str(args.data), "--minutes", str(row.minutes), "-n", str(row.n), "--out", str(out)]
    printed = run([*command, *row.more], args.work / f"{row.name}.log")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    for line in lines:
        line.pop("out", None)
    return {"runs": lines} if len(lines) > 1 else lines[-1]


def first(file: Path, num: int) -> Path:
    """The first samples of a file, as a file of their own."""
    with np.load(file, allow_pickle=False) as f:
        parts = {name: f[name] if name == "classes" else f[name][:num] for name in f.files}
    some = file.with_stem(f"{file.stem}-{num}")
    np.savez_compressed(some, **parts)
    return some


def score(file: Path, args: argparse.Namespace) -> dict[str, object]:
    """The evaluator's scores of a file of samples."""
    target = file.with_suffix(".json")
    run([KILN, "evaluate", str(file), "--data", str(args.data), "--json", str(target)], file.with_suffix(".eval.log"))
    found = json.loads(target.read_text())
    return {m["name"]: {"value": m["value"], "floor": m["floor"]} for m in found["metrics"]} | {"protocol": found["metrics"][0]["protocol"]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True, help="where runs, samples and logs go")
    p.add_argument("--only", help="names with commas: " + ", ".join(r.name for r in ROWS))
    p.add_argument("--peer-python", help="python of an environment with torch, diffusers, accelerate and transformers")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = args.only.split(",") if args.only else [r.name for r in ROWS]
    for row in [r for r in ROWS if r.name in wanted]:
        kept = args.work / f"{row.name}.result.json"
        if kept.exists() or (row.kind == "diffusers" and not args.peer_python):
            continue
        out = args.work / f"{row.name}.npz"
        facts = (train_kiln if row.kind == "kiln" else train_peer)(row, args, out)
        files = [out] if out.exists() else sorted(args.work.glob(f"{row.name}*.npz"))
        if row.also:
            files.append(first(out, row.also))
        scores = {f.stem: score(f, args) for f in files}
        kept.write_text(json.dumps({**facts, "name": row.name, "minutes": row.minutes, "n": row.n, "scores": scores}, indent=1) + "\n")
        print(row.name, {k: {m: round(v["value"], 4) for m, v in s.items() if m != "protocol"} for k, s in scores.items()}, flush=True)
    found = [json.loads((args.work / f"{r.name}.result.json").read_text()) for r in ROWS if (args.work / f"{r.name}.result.json").exists()]
    date = datetime.date.today().isoformat()
    target = HERE / "results" / f"{date}-mnist.json"
    target.parent.mkdir(exist_ok=True)
    machine = f"{processor()}, 2 threads"
    target.write_text(json.dumps({"date": date, "machine": machine, "rows": found}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
