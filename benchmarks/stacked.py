"""Stacked MNIST: three digits at random are the channels of one color image, which makes 1,000 modes. How many of them does each recipe find in the same time?

    python benchmarks/stacked.py --data ../shared/data/mnist --work bench/stacked [--recipes dcgan,wgan-gp] [--minutes 5] [--seeds 1]

Srivastava et al. 2017 (arXiv 1705.07761, section 4.2), after Metz et al. 2017 (arXiv 1611.02163). The images, --images of them from MNIST's training digits with replacement, are made once
into WORK/stacked.npz, and every recipe is trained on them without labels by `pixelkiln train`. Of 25,600 samples each channel is named by the library's classifier of MNIST (the extractor of its
scores, 99.3 % right on test digits); `modes` is the number of triples that occur, `kl` the divergence KL(samples' shares || data's shares) in nats, as in those papers. The data's shares are
exact: digits are drawn independently, so that a triple's share is the product of its digits' shares in MNIST. Floor: as many stacks of test digits, named likewise.
What is in --work already is not run again. Writes benchmarks/results/DATE-stacked.json and a grid of each recipe's samples into --work.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trained import HERE, THREADS, Failed, arrays, family, kept, sampled, sheet, trained

from pixelkiln.core.rng import generator
from pixelkiln.data import ImageSet, open_source
from pixelkiln.data.npz import write_npz
from pixelkiln.data.prepare import resize
from pixelkiln.engine.features import extractor_for
from pixelkiln.engine.where import processor
from pixelkiln.metrics import Modes
from pixelkiln.objectives.adversarial import OBJECTIVES

PART = 2048  # images that are named at a time
Name = Callable[[Tensor], Tensor]  # grey images uint8 (N, 1, 28, 28) -> digits (N,)


def stacks(data: ImageSet, n: int, seed: str, side: int = 28) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 3, side, side) of three digits drawn with replacement, black around them where the side is above 28, and modes (n,) = 100 a + 10 b + c."""
    rows = torch.randint(len(data), (n, 3), generator=generator("stacked", seed))
    assert data.labels is not None and isinstance(data.images, Tensor), "MNIST is labeled, and in memory"
    images = data.images[rows.flatten(), 0].view(n, 3, *data.images.shape[2:])
    margin = (side - images.shape[2]) // 2
    return torch.nn.functional.pad(images, (margin,) * 4), modes_of(data.labels[rows])


def modes_of(digits: Tensor) -> Tensor:
    """Digits (n, 3) of the channels -> modes (n,) in 0..999."""
    return (digits * torch.tensor([100, 10, 1])).sum(1)


def law(labels: Tensor) -> Modes:
    """The data's exact shares of the 1,000 modes as counts: the number of triples of MNIST's digits that make it."""
    f = torch.bincount(labels, minlength=10)
    found = Modes(1000)
    found.counts = torch.einsum("a,b,c->abc", f, f, f).flatten()
    return found


def named(images: Tensor, name: Name) -> Tensor:
    """Modes (N,) of color images uint8 (N, 3, H, W), H = W >= 28: larger ones are made 32 pixels large, what is beyond 28 in the middle is cut off, and each channel is named."""
    found = []
    for part in torch.split(images, PART):
        side = part.shape[2]
        if side > 32:
            part, side = resize(part, 32, 32), 32
        margin = (side - 28) // 2
        part = part[:, :, margin : margin + 28, margin : margin + 28]
        found.append(modes_of(name(part.flatten(0, 1)[:, None]).view(-1, 3)))
    return torch.cat(found)


def scores(modes: Tensor, reference: Modes) -> dict[str, Any]:
    """Number of modes, divergence in nats, and the share of samples in the commonest mode."""
    found = Modes(1000).update(modes)
    return {"modes": found.num_found(), "kl": found.kl(reference), "commonest": int(found.counts.max()) / len(modes), "n": len(modes)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="MNIST")
    p.add_argument("--work", type=Path, required=True, help="where images, runs, samples and logs go")
    p.add_argument("--recipes", help="with commas, NAME or NAME:OBJECTIVE; default: the family gan, without those that need labels, and dcgan with each objective of the game")
    p.add_argument("--minutes", type=float, default=5.0)
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--images", type=int, default=100_000, help="training images (each tenth is held out by the .npz source)")
    p.add_argument("--side", type=int, default=28, choices=(28, 32), help="of the images; 32: with a margin")
    p.add_argument("-n", type=int, default=25_600, help="samples")
    p.add_argument("--more", default="", help="options of `pixelkiln train` for all recipes, in one word: '--size tiny'")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    real, test = (open_source(args.data, split=split) for split in ("train", "test"))
    source = args.work / f"stacked-{args.images}-{args.side}.npz"
    if not source.exists():
        images, _ = stacks(real, args.images, "train", args.side)
        write_npz(source, images.permute(0, 2, 3, 1).contiguous())
    classifier = extractor_for(real, test, log=print)
    assert real.labels is not None
    reference = law(real.labels)
    fresh, true = stacks(test, args.n, "test", args.side)
    seen = named(fresh, classifier.predict)
    floor = {**scores(seen, reference), "named right": float((seen == true).double().mean())}
    print(f"real stacks: {floor['modes']} modes, KL {floor['kl']:.4f}, {floor['named right']:.1%} named right", flush=True)
    rows, failed = [], {}
    for recipe in args.recipes.split(",") if args.recipes else [*family("gan"), *(f"dcgan:{name}" for name in OBJECTIVES)]:
        name, _, objective = recipe.partition(":")
        more = [*args.more.split(), *(["--model.rules.objective", objective] if objective else [])]
        for seed in range(args.seeds):
            folder = args.work / f"{recipe.replace(':', '-')}-{seed}"
            target = folder.with_suffix(".json")
            try:
                row = kept(target)
                if row is None:
                    facts = trained(name, source, folder, args.minutes, seed, more)
                    file, seconds = sampled(folder, args.n)
                    images, labels = arrays(file)
                    sheet(images, labels, folder.with_suffix(".png"))
                    row = {"name": recipe, "seed": seed, "minutes": args.minutes, **facts, "sample_seconds": round(seconds, 1), **scores(named(images, classifier.predict), reference)}
                    target.write_text(json.dumps(row, indent=1) + "\n")
            except (Failed, ValueError) as e:
                failed[f"{recipe} {seed}"] = str(e)
                print(f"{recipe} {seed} is left out: {e}", flush=True)
                continue
            rows.append(row)
            print(f"{recipe:16} seed {seed}  {row['modes']:4} of 1,000 modes  KL {row['kl']:.3f}  commonest {row['commonest']:.2%}  {row['images_per_s']} images/s", flush=True)
    found = {"date": datetime.date.today().isoformat(), "machine": f"{processor()}, {THREADS} thread{'s' * (THREADS != '1')}", "classifier accuracy": classifier.accuracy, "images": args.images, "side": args.side,
             "floor": floor, "rows": rows, "failed": failed}
    result = HERE / "results" / f"{found['date']}-stacked.json"
    result.write_text(json.dumps(found, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
