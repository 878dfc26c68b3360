"""Every recipe of a family that generates, for the same minutes on one set of images: scores, rates, and a grid of samples of each.

    python benchmarks/families.py --family gan --data ../shared/data/mnist --work bench/gans-mnist [--minutes 4] [--seeds 3] [--recipes dcgan,wgan-gp]
    python benchmarks/families.py --family vae --data ../shared/data/mnist --work bench/vaes-mnist
    python benchmarks/families.py --family gan --data ../shared/data/emoji/twemoji --name emoji --work bench/gans-emoji --minutes 10 --more '--data.resolution 64'
    python benchmarks/families.py --family gan --data ../shared/data/cifar10 --name cifar10-steps --work bench/gans-cifar10-steps --steps 1000 --seeds 1

Train, sample, evaluate: `pixelkiln train R --budget`, `sample`, `evaluate --json`, in processes of their own, --workers at a time, each with an equal part of the threads (OMP_NUM_THREADS, or
2); the wall-clock is the same for all, steps are not (with --steps, the other way round). Scores: `fd`, precision, recall, coverage, classes found and the divergence of their shares (where the data are labeled; the samples of conditional recipes have the data's labels, so that theirs is small
if they obey), accuracy of conditional recipes. images/s: of training, a step of the generator counts as one batch whatever the discriminator's steps.
What is in --work already is not run again; a recipe that fails is named and left out. Writes benchmarks/results/DATE-FAMILYs-NAME.json (gans, vaes), and a row of samples of each recipe, in the order of their `fd`, as WORK/all.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from trained import HERE, arrays, call, each, family, kept, sampled, sheet, trained, with_threads

from pixelkiln.core.images import grid, save_png
from pixelkiln.data import open_source
from pixelkiln.engine.features import Extractor, extractor_for

ONE = Lock()  # for the extractor
METRICS = ("fd", "precision", "recall", "coverage", "modes", "modes-kl")


def measured(file: Path, data: Path, conditional: bool) -> dict[str, Any]:
    """Scores of a file of samples by `pixelkiln evaluate`: by name, value and floor; and the protocol."""
    target = file.with_suffix(".scores.json")
    names = (*METRICS, "accuracy") if conditional else METRICS
    call(["evaluate", str(file), "--data", str(data), "--metrics", ",".join(names), "--json", str(target)], file.with_suffix(".eval.log"))
    found = json.loads(target.read_text())["metrics"]
    return {m["name"]: {"value": m["value"], "floor": m["floor"]} for m in found} | {"protocol": found[0]["protocol"]}


def histogram(images: Tensor, extractor: Extractor) -> list[int]:
    """How many samples are taken for each class."""
    return torch.bincount(extractor.predict(images), minlength=extractor.num_classes).tolist()


def one(recipe: str, seed: int, args: argparse.Namespace, extractor: Extractor) -> dict[str, Any]:
    """Train, sample, score, draw. Raises `Failed`."""
    folder = args.work / f"{recipe}-{seed}"
    target = folder.with_suffix(".json")
    row = kept(target)
    if row is None:
        facts = trained(recipe, args.data, folder, args.minutes, seed, args.more.split(), args.steps)
        file, seconds = sampled(folder, args.n)
        images, labels = arrays(file)
        sheet(images, labels, folder.with_suffix(".png"))
        row = {"name": recipe, "seed": seed, "minutes": args.minutes, "same_steps": args.steps, "n": args.n, "conditional": labels is not None, **facts, "sample_seconds": round(seconds, 1),
               "scores": measured(file, args.data, labels is not None and bool(extractor.classes))}
        if extractor.classes:
            with ONE:
                row["histogram"] = histogram(images, extractor)
        target.write_text(json.dumps(row, indent=1) + "\n")
    return row


def overview(names: Sequence[str], work: Path, n: int, columns: int = 10) -> None:
    """WORK/all.png: a row of samples of each recipe's first seed, in this order; of a conditional one the classes in turn."""
    rows = []
    for name in names:
        if not (file := work / f"{name}-0-{n}.npz").exists():  # that seed failed
            continue
        images, labels = arrays(file)
        num = 1 if labels is None else int(labels.max()) + 1
        rows += [(images if labels is None else images[labels == c % num])[c // num] for c in range(columns)]
    if rows:
        save_png(work / "all.png", grid(torch.stack(rows), columns))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True, help="where runs, samples and logs go: one folder for each set of images and each number of minutes")
    p.add_argument("--name", help="of the images in the result's name (default: the folder's)")
    p.add_argument("--family", default="gan", help="whose recipes are trained, one after the other")
    p.add_argument("--recipes", help="some of them, with commas")
    p.add_argument("--minutes", type=float, default=2.0)
    p.add_argument("--steps", type=int, default=0, help="the same number of steps for all, instead of minutes (name the result: --name cifar10-steps)")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--workers", type=int, default=1, help="runs at a time")
    p.add_argument("-n", type=int, default=2000, help="samples")
    p.add_argument("--more", default="", help="options of `pixelkiln train` for all recipes, in one word: '--data.resolution 64'")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    name = args.name or args.data.name
    real, test = (open_source(str(args.data), split=split) for split in ("train", "test"))
    extractor = extractor_for(real, test, log=print)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    found = {"date": datetime.date.today().isoformat(), "machine": with_threads(args.workers), "data": name, "rows": rows, "failed": failed}
    target = HERE / "results" / f"{found['date']}-{args.family}s-{name}.json"
    recipes = args.recipes.split(",") if args.recipes else family(args.family)
    jobs = [(recipe, seed) for seed in range(args.seeds) for recipe in recipes]  # all once before any twice
    for (recipe, seed), row in each(lambda job: one(*job, args, extractor), jobs, args.workers):
        if isinstance(row, str):
            failed[f"{recipe} {seed}"] = row
            print(f"{recipe} {seed} is left out: {row}", flush=True)
        else:
            rows.append(row)
            shown = "  ".join(f"{m} {v['value']:.3f}" for m, v in row["scores"].items() if m != "protocol")
            print(f"{recipe:16} seed {seed}  {row['images_per_s']} images/s  {shown}", flush=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    scores = {name: sorted(r["scores"]["fd"]["value"] for r in rows if r["name"] == name) for name in {r["name"] for r in rows}}
    best = sorted(scores, key=lambda name: statistics.median(scores[name]))
    for name in best:
        print(f"{name:16} fd {statistics.median(scores[name]):8.2f}  ({scores[name][0]:.2f} to {scores[name][-1]:.2f} of {len(scores[name])})")
    overview(best, args.work, args.n)
    print(target)


if __name__ == "__main__":
    main()
