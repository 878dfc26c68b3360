"""Every diffusion recipe for the same wall-clock on one data set: scores, rates, and a grid of samples by class.

    python benchmarks/diffusion.py --data ../shared/data/mnist --work bench/diffusion --minutes 2 [--only edm,flow] [-n 2000]

One recipe at a time; what is in --work already is not run again. Writes results/DATE-diffusion-NAME.json, NAME the data's folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from mnist import HERE, KILN, Program, run, score, train_kiln

from pixelkiln.engine.where import processor

RECIPES = ("ddpm", "iddpm", "vp-sde", "subvp-sde", "ve-sde", "edm", "edm2", "flow", "dit")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True, help="where runs, samples and logs go")
    p.add_argument("--minutes", type=float, default=2.0)
    p.add_argument("--only", help="recipes with commas: " + ", ".join(RECIPES))
    p.add_argument("-n", type=int, default=2000)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    target = HERE / "results" / f"{datetime.date.today().isoformat()}-diffusion-{args.data.name}.json"
    rows = []
    for name in args.only.split(",") if args.only else RECIPES:
        kept = args.work / f"{name}.result.json"
        if not kept.exists():
            row, out = Program(name, "kiln", name, args.minutes, n=args.n), args.work / f"{name}.npz"
            facts = train_kiln(row, args, out)
            run([KILN, "sample", str(args.work / name), "--label", "all", "-n", "100", "--out", str(args.work / f"{name}.png")], args.work / f"{name}.grid.log")
            kept.write_text(json.dumps({**facts, "name": name, "minutes": args.minutes, "n": args.n, "scores": score(out, args)}, indent=1) + "\n")
        rows.append(json.loads(kept.read_text()))
        shown = {m: round(v["value"], 4) for m, v in rows[-1]["scores"].items() if m != "protocol"}
        print(name, f"{rows[-1]['images_per_s']} training, {rows[-1]['sample_images_per_s']} sampling images/s", shown, flush=True)
        target.write_text(json.dumps({"date": datetime.date.today().isoformat(), "machine": f"{processor()}, 2 threads", "rows": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
