"""pixelkiln beside pythae on one core: the same networks, objectives, batches, rates and epochs. Images a second of training; then reconstruction, test bound and `fd`.

    taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/pythae.py --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10 \\
        --peer-python .venv-pythae/bin/python --work bench/pythae [--only vae,iwae] [--turns 5] [--epochs 2]
    python benchmarks/tables.py

Speed: both programs are started and take turns, as in speed.py; a ratio is the median of the ratios within a turn, of the wall clock and of processor time, the second of which
other programs on the machine disturb less. Quality: each trains for --epochs on the first --images training images in a process of its own and writes its weights; both are loaded
into pixelkiln's method, which must make of some images what pythae made of them, and scored alike: mean squared error of reconstructed test images (posterior means; pixels in
[0, 1]; Bernoulli models see binarized images, as in training, and are compared with the grey ones), the importance-weighted bound where there is a likelihood, `fd` of samples from N(0, I) (of reconstructions for a VQ-VAE, which has no prior) by `pixelkiln evaluate`.
What is in --work is not trained again. Writes benchmarks/results/DATE-pythae.json. peers/pythae_vae.py says what pythae's side is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import Contest, Program, contest, load_average
from torch import Tensor
from trained import HERE, Failed, call, kept

from pixelkiln.core.catalog import find, override
from pixelkiln.core.protocols import Codec, Likelihood, Method, Posterior
from pixelkiln.core.recipe import Stage
from pixelkiln.core.types import Request
from pixelkiln.data import ImageSet, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.where import processor
from pixelkiln.objectives.amortized import Amortized

SAME = {"train.opts.main.decay": "constant", "train.opts.main.lr": "1e-3", "train.opts.main.warmup": "0"}  # pythae knows steps of the rate by epochs only
CHECK = 2e-4  # how far the two programs' reconstructions by the same weights may be apart, of a range of 1


@dataclass(frozen=True)
class Pair:
    """A recipe of ours and the options that make it what pythae has, with batches of 128."""

    recipe: str
    options: dict[str, str]

    @property
    def stage(self) -> Stage:
        """As both programs train it."""
        stage = override(find(self.recipe)("small"), SAME | self.options).last
        return replace(stage, train=replace(stage.train, batch=128))

    def words(self) -> list[str]:
        """Of kiln.py."""
        return [self.recipe, "--batch", "128", "--set", *(f"{name}={value}" for name, value in (SAME | self.options).items())]

    def peer(self) -> list[str]:
        """Of peers/pythae_vae.py: the network's size and the objective's numbers, from the recipe itself."""
        c: Any = self.stage.model
        words = ["--model", self.recipe, "--batch", "128", "--lr", SAME["train.opts.main.lr"]]
        if self.recipe == "vqvae":
            size = {"width": c.net.width, "mults": c.net.mults, "blocks": c.net.blocks, "dim": c.dim, "codes": c.codebook.codes, "decay": c.codebook.decay}
            return [*words, "--size", json.dumps(size), "--commitment", str(c.codebook.commitment)]
        size = {name: getattr(c, name) for name in ("net", "width", "depth", "hidden", "latent")}
        more = {"beta-vae": ("beta",), "iwae": ("samples",), "wae": ("penalty",)}.get(self.recipe, ())
        return [*words, "--size", json.dumps(size), *(word for name in more for word in (f"--{name}", str(getattr(c, name))))]


PAIRS = (
    Pair("vae", {"model.likelihood": "bernoulli", "model.prior": "normal"}),
    Pair("beta-vae", {}),
    Pair("wae", {}),
    Pair("iwae", {}),
    Pair("vqvae", {"model.distance": "l2", "train.opts.main.clip": "none"}),
)


def programs(pair: Pair, data: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """The two command lines."""
    return {"pixelkiln": [sys.executable, str(HERE / "kiln.py"), *pair.words(), "--data", str(data), "--device", "cpu"],
            "pythae": [args.peer_python, str(HERE / "peers" / "pythae_vae.py"), *pair.peer(), "--data", str(data)]}  # fmt: skip


def trained(name: str, command: list[str], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train for the epochs, or take what is there; the program's facts."""
    if (facts := kept(out.with_suffix(".json"))) is None:
        more = ["--epochs", str(args.epochs), "--images", str(args.images), "--seed", str(args.seed), "--out", str(out)]
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=os.environ)
        out.with_suffix(".log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise Failed(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        facts = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
        out.with_suffix(".json").write_text(json.dumps(facts) + "\n")
    return facts


def opened(pair: Pair, data: ImageSet, weights: Path) -> Method:
    """Our method with the weights of either program; pythae's must make the same of some images as they did there (`Failed`)."""
    method = make(pair.stage, replace(data, labels=None, classes=()).info, {}, 0).eval()
    with np.load(weights, allow_pickle=False) as found:
        arrays = {name: torch.from_numpy(found[name]) for name in found.files}
    if "check.x" not in arrays:
        method.load_state_dict(arrays)
        return method
    x, y, codes = arrays.pop("check.x"), arrays.pop("check.y"), arrays.pop("codes", None)
    inner = {"wae": "decoder", "vqvae": "decoder.up"}.get(pair.recipe, "decoder.net")
    given = {name.replace("decoder.", f"{inner}.", 1) if name.startswith("decoder.") else name: value for name, value in arrays.items()}
    if missing := {name for name, _ in method.named_parameters()} ^ given.keys():
        raise Failed(f"the networks differ: {', '.join(sorted(missing))}")
    method.load_state_dict(method.state_dict() | given | ({} if codes is None else {"quantizer.anchor": codes}))
    if (far := float((rebuilt(method, 2 * x - 1) - y).abs().max())) > CHECK:
        raise Failed(f"with pythae's weights the reconstruction is {far:.1e} from pythae's")
    return method


@torch.no_grad()
def rebuilt(method: Method, x: Tensor) -> Tensor:
    """Reconstructions by posterior means, in [0, 1], of x in [-1, 1]."""
    assert isinstance(method, Codec)
    codes = (method.posterior(part)[0] if isinstance(method, Posterior) else method.encode(part) for part in x.split(250))  # priors are N(0, I): a code is z
    return torch.cat([(method.decode(z).clamp(-1, 1) + 1) / 2 for z in codes])


@torch.no_grad()
def scores(pair: Pair, method: Method, test: ImageSet, data: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Reconstruction, bound and `fd`, where it is asked for; the file of samples stays beside the weights."""
    x = test.images[: args.n].float() / 127.5 - 1
    seen = method.observed(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(1))) if isinstance(method, Amortized) else x
    again, plain = rebuilt(method, seen), rebuilt(method, x)
    found: dict[str, Any] = {"mse": float((again - (x + 1) / 2).square().mean()), "mse_plain": float((plain - (x + 1) / 2).square().mean())}
    if isinstance(method, Likelihood):
        gen, nats = torch.Generator().manual_seed(0), []
        for part in x[: args.bound].split(50):
            score = method.log_prob(part, args.importance, gen)
            nats.append(score.nats)
        found |= {"nats": float(torch.cat(nats).mean()), "of": score.of}
    if not args.fd:
        return found | {"n": args.n}
    made = again if pair.recipe == "vqvae" else (method.sample(Request(tuple(range(args.n)))).clamp(-1, 1) + 1) / 2
    file = out.with_name(f"{out.stem}-samples.npz")
    np.savez_compressed(file, images=(made * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    target = file.with_suffix(".json")
    call(["evaluate", str(file), "--data", str(data), "--metrics", "fd", "--json", str(target)], file.with_suffix(".log"))
    fd = json.loads(target.read_text())["metrics"][0]
    return found | {"fd": fd["value"], "fd_floor": fd["floor"], "n": args.n}


def quality(pair: Pair, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both programs' facts and scores after the same epochs."""
    rows = {}
    test = open_source(str(data), pair.stage.data, "test")
    for name, command in programs(pair, data, args).items():
        out = args.work / f"{pair.recipe}-{data.name}-{name}-{args.epochs}-{args.images}-{args.seed}.npz"
        rows[name] = trained(name, command, out, args)
        rows[name] |= scores(pair, opened(pair, test, out), test, data, out, args)
        print(f"{pair.recipe:>12} {data.name:>8} {name:>10}  {json.dumps({k: v for k, v in rows[name].items() if k != 'where'})}", flush=True)
    if rows["pixelkiln"]["parameters"] != rows["pythae"]["parameters"]:
        raise Failed(f"{pair.recipe}: {rows['pixelkiln']['parameters']} parameters, and {rows['pythae']['parameters']}")
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mnist", type=Path)
    p.add_argument("--cifar10", type=Path)
    p.add_argument("--peer-python", required=True, help="python of an environment with torch and pythae")
    p.add_argument("--work", type=Path, required=True, help="where weights, samples and logs go")
    p.add_argument("--only", default="", help="recipes with commas: " + ", ".join(pair.recipe for pair in PAIRS))
    p.add_argument("--turns", dest="rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=6, help="of a turn, by --clock")
    p.add_argument("--warm", type=float, default=1, help="of warm-up before each turn")
    p.add_argument("--clock", choices=["processor", ""], default="processor", help="processor: seconds are those of a program's own processor time; '': of the wall")
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--images", type=int, default=60_000, help="of training, for quality: the first so many")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-n", type=int, default=2000, help="test images and samples")
    p.add_argument("--bound", type=int, default=500, help="test images of the bound")
    p.add_argument("--importance", type=int, default=50, help="importance samples of the bound")
    p.add_argument("--fd", action=argparse.BooleanOptionalAction, default=True, help="the Fréchet distance, for which a data set's extractor is trained once")
    p.add_argument("--part", choices=["speed", "quality", "both"], default="both")
    p.add_argument("--device", default="cpu", choices=["cpu"], help=argparse.SUPPRESS)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    date = datetime.date.today().isoformat()
    target = HERE / "results" / f"{date}-pythae.json"
    found = kept(target) or {"date": date, "rows": {}}
    found["machine"] = {"processor": processor(), "cores": os.cpu_count(), "pinned": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
                        "torch": torch.__version__, "python": platform.python_version(), "load": load_average()}
    found["settings"] = {k: getattr(args, k) for k in ("seconds", "warm", "clock", "rounds", "epochs", "images", "n", "bound", "importance", "seed")}
    for data in (d for d in (args.mnist, args.cifar10) if d):
        for pair in (pair for pair in PAIRS if not args.only or pair.recipe in args.only.split(",")):
            row = found["rows"].setdefault(f"{pair.recipe} {data.name}", {})
            if args.part != "quality":
                both = tuple(Program(name, (*command, *(["--slices"] if name == "pythae" else []))) for name, command in programs(pair, data, args).items())
                row["speed"] = contest(Contest(f"{pair.recipe}, {data.name}", both), args, env)
                row["load"] = load_average()
            if args.part != "speed":
                row["quality"] = quality(pair, data, args) | {"settings": found["settings"]}
            target.write_text(json.dumps(found, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
