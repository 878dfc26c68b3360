"""Every codec, and `vqvae` with every quantizer at 1,024 codes, for the same minutes on one set of images: what is left of test images, and how many codes are used.

    python benchmarks/codecs.py --data ../shared/data/mnist --work bench/codecs-mnist [--minutes 3] [--only vqvae,fsq]
    python benchmarks/codecs.py --data ../shared/data/emoji/twemoji --name emoji --work bench/codecs-emoji --minutes 6 --more '--data.resolution 64'

Train and evaluate: `pixelkiln train R --budget`, `evaluate --json` of reconstructions of test images, in processes of their own, --workers at a time, each with an equal part of the threads.
Scores: psnr (dB), ssim, `fd` of the reconstructions; usage and perplexity as logged at the end of training (docs/codebooks.md). What is in --work already is not run again.
Writes benchmarks/results/DATE-codecs-NAME.json, and docs/pictures/codecs-NAME.png: test images in the first row, what each codec makes of them below.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch
from trained import HERE, call, each, kept, trained, with_threads

from pixelkiln.core.images import grid, save_png
from pixelkiln.data import open_source
from pixelkiln.engine.pairs import reconstruction
from pixelkiln.engine.sample import load

CODES = "--model.codebook.codes 1024"
VARIANTS = {  # name -> recipe and its options
    "vqvae": f"vqvae {CODES}",
    "vqvae, learned by the loss": f"vqvae {CODES} --model.codebook.learn loss",
    "vqvae, rotation": f"vqvae {CODES} --model.codebook.gradient rotation",
    "vqvae, simvq": f"vqvae --model.codebook simvq {CODES}",
    "vqvae, fsq": "vqvae --model.codebook fsq --model.codebook.values 4,4,4,4,4",
    "vqvae, lfq": "vqvae --model.codebook lfq --model.codebook.bits 10",
    "vqvae, 2 residual": f"vqvae {CODES} --model.residual 2",
    "vqvae, 2 groups": f"vqvae {CODES} --model.groups 2",
    "vqvae2": f"vqvae2 {CODES}",
    "vqgan": f"vqgan {CODES}",
    "dvae": "dvae --model.codes 1024",
    "autoencoder-kl": "autoencoder-kl",
}
SHOWN = 12  # test images in the picture


def one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score a variant. Raises `Failed`."""
    recipe, *options = VARIANTS[name].split()
    folder = args.work / name.replace(", ", "-").replace(" ", "-")
    target = folder.with_suffix(".json")
    row = kept(target)
    if row is None:
        facts = trained(recipe, args.data, folder, args.minutes, 0, [*options, *args.more.split()])
        scores = folder.with_suffix(".scores.json")
        call(["evaluate", str(folder), "--metrics", "fd,psnr,ssim", "-n", str(args.n), "--json", str(scores)], folder.with_suffix(".eval.log"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = {key: value for record in lines for key, value in record.items()}
        found = {m["name"]: m["value"] for m in json.loads(scores.read_text())["metrics"]}
        row = {"name": name, "words": VARIANTS[name], "minutes": args.minutes, **facts, "scores": found, **{k: v for k, v in last.items() if k.endswith(("usage", "perplexity"))}}
        target.write_text(json.dumps(row, indent=1) + "\n")
    return row


def picture(names: list[str], args: argparse.Namespace, out: Path) -> None:
    """A row of test images, and one of every variant's reconstructions."""
    rows = []
    for name in names:
        found = load(args.work / name.replace(", ", "-").replace(" ", "-"), "cpu", "fp32")
        if not rows:
            test = open_source(str(args.data), found.opened.stage.data, "test")
            x = torch.stack([test.images[i] for i in torch.linspace(0, len(test) - 1, SHOWN).long().tolist()])
            rows.append(x)
        rows.append(reconstruction(found, x))
    save_png(out, grid(torch.cat(rows), SHOWN))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--name", help="of the images in the result's name (default: the folder's)")
    p.add_argument("--only", help="variants whose names hold one of these words, with commas")
    p.add_argument("--minutes", type=float, default=3.0)
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("-n", type=int, default=2000, help="test images at most")
    p.add_argument("--more", default="", help="options of `pixelkiln train` for all, in one word")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    name = args.name or args.data.name
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    chosen = [v for v in VARIANTS if args.only is None or any(word in v for word in args.only.split(","))]
    found = {"date": datetime.date.today().isoformat(), "machine": with_threads(args.workers), "data": name, "rows": rows, "failed": failed}
    target = HERE / "results" / f"{found['date']}-codecs-{name}.json"
    for variant, row in each(lambda v: one(v, args), chosen, args.workers):
        if isinstance(row, str):
            failed[variant] = row
            print(f"{variant} is left out: {row}", flush=True)
        else:
            rows.append(row)
            shown = "  ".join(f"{k} {v:.3f}" for k, v in (row["scores"] | {k: v for k, v in row.items() if k.endswith(("usage", "perplexity"))}).items())
            print(f"{variant:28} {row['images_per_s']} images/s  {shown}", flush=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    picture([r["name"] for r in rows], args, HERE.parent / "docs" / "pictures" / f"codecs-{name}.png")
    print(target)


if __name__ == "__main__":
    main()
