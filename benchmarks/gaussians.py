"""25 Gaussians in the plane, learned by every adversarial objective alone and with what keeps a discriminator smooth: who finds all modes, how well, in a picture.

    python benchmarks/gaussians.py [--steps 4000] [--seeds 1] [--workers 2] [--only hinge]

The mixture is that of the program of Gulrajani et al. 2017 (arXiv 1704.00028): means on a grid of 5 x 5, deviation 0.05 of the spacing in both directions, endless fresh points; here the
spacing is 2, so that the means are {-4, ..., 4}^2 as in Srivastava et al. 2017 and Lin et al. 2018 (arXiv 1712.04086), whose deviation is 0.025 of it. All variants have the same nets (without
the tanh of images), z of two dimensions, and the same number of generator steps, through the library's own loop. Drawn from the last weights, without an average:

- high quality: the share of samples within 3 deviations of the nearest mean (Srivastava et al. 2017, arXiv 1705.07761, section 4.1). Of true points it is 1 - exp(-9/2) = 0.989.
- modes: means that have at least --least such samples of -n; with 20 of 10,000 a twentieth of an even share (400). There, one sample is enough: `touched`.
- KL: of the shares of the means among samples of high quality, to even shares, in nats; 0 is best, log 25 = 3.22 is one mode.

Writes docs/pictures/gaussians.png (first seed) and benchmarks/results/DATE-gaussians.json; `tables.py` shows it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from pixelkiln.core.recipe import EmaConfig, OptConfig, TrainConfig
from pixelkiln.core.rng import generator, seed_all
from pixelkiln.core.types import Batch, DataInfo, ImageShape, Request
from pixelkiln.engine.loop import Diverged, Trainer
from pixelkiln.engine.sample import seeds_for
from pixelkiln.engine.where import Where, processor
from pixelkiln.methods.gan import GAN, GANConfig
from pixelkiln.nets.mlpgan import MLPNets
from pixelkiln.objectives.adversarial import OBJECTIVES
from pixelkiln.objectives.rules import Rules

HERE = Path(__file__).resolve().parent
SIDE, DEVIATION, SPACING = 5, 0.05, 2.0  # means on a row, deviation in units of the spacing, spacing as the nets see it
BATCH, NETS, LATENT = 256, MLPNets(128, 128, layers=3, dropout=0.0), 2
ADAM, GAMMA = OptConfig("adam", lr=1e-3, betas=(0.5, 0.9)), 0.02  # of all but weight cutting; of R1 and R2
PANEL, COLUMNS, REACH, DOTS = 250, 4, 2.6, 2500  # pixels of a panel, panels in a row, where its edge lies, samples shown


@dataclass(frozen=True)
class Variant:
    """One game: what it is called, its rules, and the optimizers where they are not Adam's."""

    name: str
    rules: Rules
    d: OptConfig = ADAM
    g: OptConfig = ADAM


def variants() -> tuple[Variant, ...]:
    """Every objective by itself, then with what papers add to it. The weight of the gradient penalty is that of the program of Gulrajani et al."""
    slow, cut = OptConfig("rmsprop", lr=5e-4, betas=(0.0, 0.99)), OptConfig("rmsprop", lr=5e-4, betas=(0.0, 0.99), bound=0.1)
    return (
        *(Variant(name, Rules(name)) for name in OBJECTIVES),
        Variant("wasserstein, weights cut at 0.1", Rules("wasserstein", critic_steps=5), cut, slow),
        Variant("wasserstein, gradient penalty", Rules("wasserstein", critic_steps=5, gradient=0.1)),
        Variant("non-saturating, R1", Rules("non-saturating", r1=GAMMA)),
        Variant("non-saturating, R1 + R2", Rules("non-saturating", r1=GAMMA, r2=GAMMA)),
        Variant("relativistic, R1 + R2", Rules("relativistic", r1=GAMMA, r2=GAMMA)),
        Variant("non-saturating, noise", Rules("non-saturating", noise=1.0, noise_until=0.8)),
    )


# -- the mixture and its scores


def centers() -> Tensor:
    """The 25 means (25, 2) in units of the spacing."""
    at = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    return torch.cartesian_prod(at, at)


def points(n: int, gen: torch.Generator) -> Tensor:
    """True points (n, 2), float32, in units of the spacing."""
    return (centers()[torch.randint(SIDE**2, (n,), generator=gen)] + DEVIATION * torch.randn(n, 2, generator=gen, dtype=torch.float64)).float()


@dataclass(frozen=True)
class Quality:
    """What `quality` finds."""

    modes: int
    touched: int
    share: float
    kl: float
    counts: tuple[int, ...]


def quality(x: Tensor, means: Tensor, deviation: float, least: int) -> Quality:
    """Scores of samples x (n, 2) for modes at `means` (k, 2): how many means have `least` samples (and one sample) within 3 deviations, the share of samples that are within 3 deviations
    of any, and KL(shares of the means among those || even) in nats (log k where there is none). A sample belongs to its nearest mean; one that is not finite to none."""
    distance, nearest = torch.cdist(x.double(), means.double()).min(1)
    counts = torch.bincount(nearest[distance <= 3 * deviation], minlength=len(means))  # (k,); NaN is not below anything
    p = counts.double() / counts.sum().clamp_min(1)
    kl = math.log(len(means)) + float(torch.special.xlogy(p, p).sum())
    return Quality(int((counts >= least).sum()), int((counts > 0).sum()), int(counts.sum()) / len(x), max(0.0, kl), tuple(counts.tolist()))


# -- training


def game(variant: Variant, steps: int, seed: int) -> Trainer:
    """The library's GAN on "images" of two channels and one pixel, in its own loop."""
    seed_all(seed, "gaussians")
    method = GAN(DataInfo(ImageShape(2, 1, 1)), GANConfig(nets=NETS, rules=variant.rules, latent=LATENT))
    method.generator.net[-1] = nn.Identity()  # a discriminator of points in [-1, 1] is too smooth to see 25 of them
    config = TrainConfig(steps=steps, batch=BATCH, opts={"d": variant.d, "g": variant.g}, ema=EmaConfig(half_life=50_000.0))

    def draw(number: int, part: int, parts: int) -> Batch:
        return Batch((SPACING * points(BATCH, generator(seed, "gaussians", number))).view(-1, 2, 1, 1))

    return Trainer(method, config, draw, seed, steps, Where("cpu", threads=torch.get_num_threads()))


@torch.no_grad()
def samples(trainer: Trainer, n: int) -> Tensor:
    """Samples (n, 2) of the weights as they are, in units of the spacing."""
    trainer.method.eval()
    return trainer.method.draw(Request(seeds_for(1, n))).flatten(1) / SPACING  # `sample` would cut images to [-1, 1]


def one(order: tuple[Variant, int, argparse.Namespace]) -> dict[str, Any]:
    """Train one variant with one seed, and score it; a game that breaks off is scored as it stands."""
    variant, seed, args = order
    torch.set_num_threads(1 if args.workers > 1 else args.threads)
    trainer, begin, broken = game(variant, args.steps, seed), time.perf_counter(), ""
    try:
        for k in range(args.steps):
            trainer.step(k)
            if k % 500 == 499:
                trainer.look()
        trainer.check()
    except Diverged as e:
        broken = str(e)
    seconds = time.perf_counter() - begin
    x, means = samples(trainer, args.n), centers()
    found = {"name": variant.name, "seed": seed, "seconds": round(seconds, 1), "broken": broken, **vars(quality(x, means, DEVIATION, args.least))}
    with trainer.sampling():
        averaged = quality(samples(trainer, args.n), means, DEVIATION, args.least)
    found |= {"averaged": {"modes": averaged.modes, "share": averaged.share, "kl": averaged.kl}, "points": [[round(v, 3) for v in row] for row in x[:DOTS].tolist()]}
    print(f"{variant.name:34} seed {seed}  {found['modes']:2} modes  {found['share']:6.1%} high quality  KL {found['kl']:.3f}   averaged {averaged.modes:2} {averaged.share:6.1%}   "
          f"{seconds:5.1f} s  {broken}", flush=True)
    return found


# -- the picture


def picture(rows: list[Mapping[str, Any]]) -> Image.Image:
    """A panel for each row: a circle of 3 deviations around every true mean, and the samples."""
    zoom, head = 2, 34  # drawn twice as large, then made smaller: soft edges
    down = -(-len(rows) // COLUMNS)
    page = Image.new("RGB", (zoom * (COLUMNS * (PANEL + 8) + 8), zoom * (down * (PANEL + head + 8) + 8)), "white")
    pen, small, large = ImageDraw.Draw(page), ImageFont.load_default(zoom * 11), ImageFont.load_default(zoom * 13)
    for i, row in enumerate(rows):
        left, top = zoom * (8 + i % COLUMNS * (PANEL + 8)), zoom * (8 + i // COLUMNS * (PANEL + head + 8) + head)
        pen.text((left, top - zoom * head), row["name"], "#222", large)
        pen.text((left, top - zoom * (head - 17)), f"{row['modes']} modes, {row['share']:.0%} of samples in a circle" + (", broken off" if row["broken"] else ""), "#666", small)
        pen.rectangle((left, top, left + zoom * PANEL, top + zoom * PANEL), outline="#bbb")

        def px(x: float, y: float, left: int = left, top: int = top) -> tuple[float, float]:
            return left + zoom * PANEL * (x / REACH + 1) / 2, top + zoom * PANEL * (1 - y / REACH) / 2

        radius = zoom * PANEL * 3 * DEVIATION / REACH / 2
        for a, b in (px(*mean) for mean in centers().tolist()):
            pen.ellipse((a - radius, b - radius, a + radius, b + radius), fill="#dfe7f5", outline="#8aa4d6")
        for x, y in row["points"]:
            if max(abs(x), abs(y)) < REACH:  # False for NaN
                a, b = px(x, y)
                pen.ellipse((a - zoom * 0.8, b - zoom * 0.8, a + zoom * 0.8, b + zoom * 0.8), fill="#d9480f")
    return page.resize((page.width // zoom, page.height // zoom), Image.Resampling.LANCZOS)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=4000, help="of the generator, the same for all")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--only", default="", help="variants whose name holds this (no result is written then)")
    p.add_argument("-n", type=int, default=10_000, help="samples")
    p.add_argument("--least", type=int, default=20, help="samples of high quality that make a mode")
    p.add_argument("--workers", type=int, default=1, help="variants that are trained at a time, with a thread each")
    p.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)), help="of one worker; the nets are too small for more than one")
    p.add_argument("--picture", type=Path, help="default: docs/pictures/gaussians.png, unless --only")
    args = p.parse_args()
    begin = time.perf_counter()
    chosen = [v for v in variants() if args.only in v.name]
    orders = [(v, seed, args) for seed in range(args.seeds) for v in chosen]
    if args.workers > 1:
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            rows = pool.map(one, orders, chunksize=1)
    else:
        rows = [one(order) for order in orders]
    truth = quality(points(args.n, generator("gaussians", "floor")), centers(), DEVIATION, args.least)
    if not args.only or args.picture:
        target = args.picture or HERE.parent / "docs" / "pictures" / "gaussians.png"
        picture([r for r in rows if r["seed"] == 0]).quantize(96, Image.Quantize.FASTOCTREE).save(target, optimize=True)
        print(target)
    if args.only:
        return
    kept = [{k: v for k, v in r.items() if k != "points"} for r in rows]
    date = datetime.date.today().isoformat()
    settings = {"steps": args.steps, "batch": BATCH, "n": args.n, "least": args.least, "seeds": args.seeds, "width": NETS.g_width, "layers": NETS.layers, "latent": LATENT}
    found = {"date": date, "machine": f"{processor()}, {args.workers} workers", "minutes": round((time.perf_counter() - begin) / 60, 1), "settings": settings,
             "floor": {k: v for k, v in vars(truth).items() if k != "counts"}, "rows": kept}
    target = HERE / "results" / f"{date}-gaussians.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"true points: {truth.share:.1%} high quality, KL {truth.kl:.4f}")
    for v in chosen:
        mine = [r for r in kept if r["name"] == v.name]
        print(f"{v.name:34} modes {[r['modes'] for r in mine]}  high quality {statistics.median(r['share'] for r in mine):.1%}")
    print(target)


if __name__ == "__main__":
    main()
