"""One checkpoint, several solvers and guidance weights: scores against the number of network evaluations.

    python benchmarks/solvers.py RUN --out benchmarks/results/DATE-solvers.json [-n 2000]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import pixelkiln
from pixelkiln.solvers import solver

SETTINGS = [
    ("dpmpp-2m", 10, 1.0), ("dpmpp-2m", 20, 1.0), ("dpmpp-2m", 50, 1.0), ("heun", 10, 1.0), ("euler", 20, 1.0), ("ddim", 20, 1.0), ("ddim", 50, 1.0),
    ("ddpm", 50, 1.0), ("dpmpp-2m", 20, 1.25), ("dpmpp-2m", 20, 1.5), ("dpmpp-2m", 20, 2.0), ("dpmpp-2m", 20, 3.0),
]  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("-n", type=int, default=2000)
    p.add_argument("--only", help="solver:steps:guidance, several with commas")
    args = p.parse_args()
    torch.set_num_threads(2)
    model = pixelkiln.load(args.run)
    wanted = [(a, int(b), float(c)) for a, b, c in (s.split(":") for s in args.only.split(","))] if args.only else SETTINGS
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for name, steps, guidance in wanted:
        start = time.perf_counter()
        found = pixelkiln.measure(model, num=args.n, ask=pixelkiln.Ask(("fd", "recall", "precision", "accuracy")), solver=name, steps=steps, guidance=guidance)
        scores = {r.name: round(r.value, 4) for r in found.report.results}
        rows.append({"solver": name, "steps": steps, "evaluations": solver(name).evaluations(steps), "guidance": guidance, **scores})
        print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
