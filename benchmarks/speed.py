"""How fast pixelkiln trains and samples, against the peers, in one run: programs that wait for each other and take turns.

    python benchmarks/speed.py --mnist ../shared/data/mnist --cifar10 ../shared/data/cifar10 --peer-python .venv-diffusers/bin/python
    python benchmarks/tables.py

Every contest's programs are started, take one step each, and then take turns (A B C, C B A, ...): some seconds of warm-up, some seconds that
count. A rate is the median of a program's turns, a ratio the median of the ratios within a turn. Nothing else may run on the machine: the
load average before and after is in the result. The result is benchmarks/results/DATE-speed.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixelkiln.engine.race import processor

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Program:
    """One competitor: its name and its command line."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Contest:
    """Programs that do the same work; the first one is pixelkiln, and the ratios are its rate over the others'."""

    name: str
    programs: tuple[Program, ...]


class Running:
    """A program that takes its first step (`ready`), and then waits for orders."""

    def __init__(self, program: Program, env: dict[str, str]) -> None:
        self.name, self.errors = program.name, tempfile.TemporaryFile("w+")  # noqa: SIM115 (it is read when something has gone wrong)
        self.process = subprocess.Popen(program.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)
        self.turns: list[dict[str, float]] = []

    def ready(self) -> Running:
        """Itself, when the first step is done."""
        self.facts = self._line()
        return self

    def turn(self, warm: float, seconds: float, clock: str = "") -> None:
        """One turn, kept in `turns`; clock: "processor" for seconds of the program's own processor time."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{warm} {seconds} {clock}\n")
        self.process.stdin.flush()
        self.turns.append(self._line())

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        self.errors.seek(0)
        raise RuntimeError(f"{self.name}: {self.errors.read()[-1500:]}")

    def close(self) -> None:
        """An empty order ends it."""
        self.process.communicate("\n", timeout=120)

    def result(self) -> dict[str, Any]:
        """Median rate, and the share of the matrix-product rate that was measured before each turn in its own process."""
        rates = [t["images"] / t["seconds"] for t in self.turns]
        precision = self.facts.get("precision", "fp32")
        shares = [self.facts["flop_per_image"] * r / t[f"{precision}_flops"] for r, t in zip(rates, self.turns, strict=True)]
        found = {"name": self.name, **self.facts, "images_per_s": statistics.median(rates), "rates": [round(r, 2) for r in rates]}
        found["processor_rates"] = [round(t["images"] / t["processor_seconds"], 2) for t in self.turns]  # of this process alone, whatever else runs
        for kind in ("fp32", "bf16"):
            found[f"{kind}_gflops"] = round(statistics.median(t[f"{kind}_flops"] for t in self.turns) / 1e9, 1)
        return found | {"share": statistics.median(shares), "peak_mib": self.turns[-1]["peak_mib"], "gpu_peak_mib": self.turns[-1].get("gpu_peak_mib")}


def contest(which: Contest, args: argparse.Namespace, env: dict[str, str]) -> dict[str, Any]:
    """Start, take turns, compare. A program that fails is named and left out."""
    running: list[Running] = []
    failed = {}
    begun = [Running(p, env) for p in which.programs] if args.device.startswith("cuda") else []  # a GPU's compilers take minutes: all at once
    for i, program in enumerate(which.programs):
        try:
            running.append((begun[i] if begun else Running(program, env)).ready())
        except RuntimeError as e:
            failed[program.name] = str(e).strip().splitlines()[-1]  # its reason; the way there goes to the terminal, with this machine's paths
            print(e, file=sys.stderr)
    for number in range(args.rounds):
        for program in running if number % 2 == 0 else reversed(running):
            program.turn(args.warm, args.seconds, getattr(args, "clock", ""))
    for program in running:
        program.close()
    results = [program.result() for program in running]
    first = results[0]
    for r in results:
        r["ratio"] = statistics.median(a / b for a, b in zip(first["rates"], r["rates"], strict=True))
        r["processor_ratio"] = statistics.median(a / b for a, b in zip(first["processor_rates"], r["processor_rates"], strict=True))
        print(f"{which.name:>34}  {r['name']:<40} {r['images_per_s']:>10.1f} images/s  x{r['ratio']:<6.2f} share {r['share']:.3f}", flush=True)
    return {"contest": which.name, "programs": results, "failed": failed}


def contests(args: argparse.Namespace) -> list[Contest]:
    """What is compared with what."""
    device, gpu = ("--device", args.device), args.device.startswith("cuda")
    feeders = ("--workers", str(os.cpu_count())) if gpu else ()  # on a processor they only take turns with the training

    def kiln(name: str, recipe: str, data: str, *more: str) -> Program:
        return Program(name, (sys.executable, str(HERE / "kiln.py"), recipe, "--data", data, *device, *more))

    def peer(name: str, file: str, data: str, *more: str) -> Program:
        return Program(name, (sys.executable, str(HERE / "peers" / file), "--data", data, "--slices", *device, *more))

    def diffusers(name: str, data: str, *more: str) -> tuple[Program, ...]:
        size = ("--channels", "48", "96", "--layers", "1", "--groups", "16", "--scale-shift", "--batch", "64")
        command = (args.peer_python, str(HERE / "peers" / "diffusers_unet.py"), "--data", data, "--slices", *device, *size, *more)
        return (Program(name, command),) if args.peer_python else ()

    net = ("--batch", "64", "--set", "model.net.patch=1", "model.dim=192", "train.opts.main.kind=adam")  # the net and the optimizer of all
    textbook = ("--net", "unet", "--batch", "64", *feeders)
    plain_vae = ("--batch", "128", "--set", "model.likelihood=bernoulli", "model.prior=normal")
    found = [
        Contest("VAE 784-400-20, MNIST", (
            kiln("pixelkiln vae-mlp", "vae-mlp", args.mnist), peer("the document's VAE", "document_vae.py", args.mnist))),
        Contest("convolutional VAE, MNIST", (
            kiln("pixelkiln vae", "vae", args.mnist, *plain_vae), peer("textbook", "textbook.py", args.mnist, "--net", "vae", "--width", "16", *feeders))),
        Contest("DCGAN 64 pixels, CIFAR-10", (
            kiln("pixelkiln dcgan", "dcgan", args.cifar10, "--batch", "128", "--set", "data.resolution=64", "model.nets.g_width=64", "model.nets.d_width=64"),
            peer("the document's DCGAN", "document_dcgan.py", args.cifar10))),
    ]  # fmt: skip
    for name, data in (("MNIST", args.mnist), ("CIFAR-10", args.cifar10)):
        found.append(Contest(f"U-Net, {name}", (
            kiln("pixelkiln ddpm, the same net", "ddpm", data, *net), peer("textbook", "textbook.py", data, *textbook),
            *diffusers("diffusers, as its example", data, "--mixed-precision", "no", "--layout", "contiguous"),
            *diffusers("diffusers, the fastest way", data, *feeders))))  # fmt: skip
    found.append(Contest("diffusion by default, MNIST", (
        kiln("pixelkiln ddpm", "ddpm", args.mnist), peer("the document's diffusion", "document_diffusion.py", args.mnist))))
    ways = [("fp32", "--precision", "fp32"), ("bf16", "--precision", "bf16")]
    ways += [("bf16, compiled", "--precision", "bf16", "--compile", "on")] if args.compile else []
    ways += [("bf16, CUDA graphs", "--precision", "bf16", "--graphs")] if gpu else []
    found.append(Contest("ways to compute, U-Net, CIFAR-10", tuple(kiln(way, "ddpm", args.cifar10, *net, *more) for way, *more in ways)))
    if gpu:  # networks that fill one
        large = ("--size", "base", "--batch", "256", "--set", "model.net.patch=1")
        same = ("--channels", "128", "256", "256", "256", "--layers", "2", "--attention", "1", "--groups", "32", "--batch", "256", *feeders)
        found.append(Contest("U-Net base, CIFAR-10", (
            *(kiln(f"pixelkiln ddpm, {way}", "ddpm", args.cifar10, *large, *more) for way, *more in ways[1:]),
            *diffusers("diffusers, the fastest way", args.cifar10, *same), *diffusers("diffusers, compiled", args.cifar10, *same, "--compile"))))  # fmt: skip
        found.append(Contest("DiT base, CIFAR-10", tuple(
            kiln(f"pixelkiln dit, {way}", "dit", args.cifar10, "--size", "base", "--batch", "256", *more) for way, *more in ways[1:])))  # fmt: skip
        found.append(Contest("BigGAN 64 pixels, CIFAR-10", tuple(
            kiln(f"pixelkiln biggan, {way}", "biggan", args.cifar10, "--size", "base", "--batch", "256", "--set", "train.accumulate=1", *more) for way, *more in ways
            if "graphs" not in way)))  # fmt: skip
    found.append(Contest("sampling, MNIST", (
        kiln("pixelkiln ddpm, its default solver", "ddpm", args.mnist, "--sampling"),
        peer("the document's, 1,000 steps", "document_diffusion.py", args.mnist, "--sampling"),
        peer("textbook, 1,000 steps", "textbook.py", args.mnist, *textbook, "--sampling"))))  # fmt: skip
    return found


def startup(args: argparse.Namespace, env: dict[str, str]) -> dict[str, float]:
    """Wall-clock seconds of some commands, each the median of five; the first one of each is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "pixelkiln"]
        tiny = f"{folder}/run"
        subprocess.run([*run, "train", "vae", "--data", "digits", "--out", tiny, "--size", "tiny", "--steps", "20", "--quiet"], check=True, env=env,
                       stdout=subprocess.DEVNULL)
        commands = {
            "import torch": [sys.executable, "-c", "import torch"], "list": [*run, "list"], "train ddpm --help": [*run, "train", "ddpm", "--help"],
            "sample, from a tiny run": [*run, "sample", tiny, "--out", f"{folder}/a.png", "--quiet"],
        }  # fmt: skip
        found = {}
        for name, command in commands.items():
            took = []
            for _ in range(6):
                begin = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
                took.append(time.perf_counter() - begin)
            found[name] = round(statistics.median(took[1:]), 3)
            print(f"{'start-up':>34}  {name:<40} {found[name]:>10.3f} s", flush=True)
    return found


def flatness(args: argparse.Namespace, env: dict[str, str]) -> list[dict[str, float]]:
    """Resident memory over 2,000 steps of a small run."""
    command = [sys.executable, str(HERE / "kiln.py"), "ddpm", "--data", "digits", "--size", "tiny", "--device", args.device, "--flat", str(args.flat)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{'memory':>34}  {found[0]['rss_mib']} MiB at step {found[0]['step']}, {found[-1]['rss_mib']} at {found[-1]['step']}", flush=True)
    return list(found)


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mnist", required=True, help="MNIST as IDX files")
    p.add_argument("--cifar10", required=True, help="CIFAR-10 as Parquet")
    p.add_argument("--peer-python", help="python of an environment with torch, diffusers, accelerate and transformers; without it these rows are left out")
    p.add_argument("--device", default="cpu")
    p.add_argument("--seconds", type=float, default=8, help="of a turn")
    p.add_argument("--warm", type=float, default=1.5, help="of warm-up before each turn")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--flat", type=int, default=2000, metavar="STEPS", help="steps over which the memory must stay flat")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile, too")
    p.add_argument("--only", default="", help="contests whose name holds this")
    p.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    machine: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__,
                               "python": platform.python_version(), "device": args.device, "load_before": load_average()}
    if args.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    begin = time.perf_counter()
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine}
    found["settings"] = {k: getattr(args, k) for k in ("seconds", "warm", "rounds")}
    if not args.only:
        found["startup"] = startup(args, env)
        found["memory"] = flatness(args, env)
        done = subprocess.run([sys.executable, str(HERE / "loop.py"), "--json"], check=True, capture_output=True, text=True, env=env)
        found["loop"] = json.loads(done.stdout)
    found["contests"] = [contest(c, args, env) for c in contests(args) if args.only in c.name]
    machine["load_after"], found["minutes"] = load_average(), round((time.perf_counter() - begin) / 60, 1)
    target = args.out or HERE / "results" / f"{found['date']}-speed.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
