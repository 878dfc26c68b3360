"""Two processes of one thread against one process of two threads: training images a second, of the same batches; the two take turns.

    python benchmarks/processes.py [--recipes ddpm vae dcgan] [--seconds 8] [--rounds 5]
    python benchmarks/tables.py                  # the newest result into docs/parallel.md

Both are started, take some steps, and then steps in turns (one, two, two, one, ...), so many that a turn takes about --seconds. Both cut the batch
as `pixelkiln train` does, i.e. into one part and into two. A rate is the median of a program's turns, the ratio the median of the ratios within a
turn. Nothing else may run on the machine: the load average before and after is in the result, benchmarks/results/DATE-processes.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kiln import trainer_for

from pixelkiln.core.catalog import find
from pixelkiln.data import open_source
from pixelkiln.engine.parallel import join
from pixelkiln.engine.race import processor
from pixelkiln.engine.where import Where

HERE = Path(__file__).resolve().parent


def worker(recipe: str, precision: str) -> None:
    """One of the processes of a program: for every number N on process 0's standard input N steps; process 0 answers with the seconds."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with join() if "RANK" in os.environ else nullcontext():
        stage = find(recipe)("small").last
        where = Where.choose("cpu", precision, "off", "channels-last")
        parts = math.lcm(stage.train.accumulate, where.team.size)
        stage = replace(stage, data=replace(stage.data, resolution=28), train=replace(stage.train, accumulate=parts))
        trainer = trainer_for(stage, open_source("digits", stage.data, "train"), where)
        k = 0
        if where.team.first:
            print(json.dumps({"batch": stage.train.batch, "parts": parts, "threads": where.threads, "processes": where.team.size}), flush=True)
        while steps := where.team.agree(lambda: int(sys.stdin.readline() or 0)):
            begin = time.perf_counter()
            for _ in range(steps):
                trainer.step(k)
                k += 1
            where.team.wait()
            if where.team.first:
                print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


class Program:
    """The processes that train one recipe together, and wait between turns."""

    def __init__(self, recipe: str, precision: str, processes: int, threads: int) -> None:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([sys.executable, *launch, __file__, "--worker", recipe, "--precision", precision], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)
        self.facts = self._line()
        self.rates: list[float] = []

    def steps(self, number: int) -> float:
        """Seconds of so many steps."""
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return float(self._line()["seconds"])

    def turn(self, seconds: float) -> None:
        """One turn, of about so many seconds."""
        number = max(1, round(seconds / self.step))
        self.rates.append(number * self.facts["batch"] / self.steps(number))

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"a program ended with status {self.process.wait()}")

    def warm(self) -> None:
        """Some steps that do not count; then the time of one is known."""
        self.steps(3)
        self.step = self.steps(3) / 3

    def close(self) -> None:
        """No more steps."""
        self.process.communicate("0\n", timeout=120)


def compare(recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process of all threads against as many processes of one."""
    one, many = Program(recipe, args.precision, 1, args.processes), Program(recipe, args.precision, args.processes, 1)
    for program in (one, many):
        program.warm()
    for number in range(args.rounds):
        for program in (one, many) if number % 2 == 0 else (many, one):
            program.turn(args.seconds)
    for program in (one, many):
        program.close()
    found = {"recipe": recipe, "batch": one.facts["batch"], "processes": args.processes, "one": statistics.median(one.rates), "many": statistics.median(many.rates)}
    found["ratio"] = statistics.median(b / a for a, b in zip(one.rates, many.rates, strict=True))
    print(f"{recipe:<10} one process {found['one']:.1f} images/s, {args.processes} processes {found['many']:.1f}: x{found['ratio']:.2f}", flush=True)
    return found | {"one rates": [round(r, 1) for r in one.rates], "many rates": [round(r, 1) for r in many.rates]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipes", nargs="*", default=["ddpm", "vae", "dcgan"])
    p.add_argument("--precision", default="auto")
    p.add_argument("--processes", type=int, default=2, help="and threads of the one process")
    p.add_argument("--seconds", type=float, default=8, help="of a turn")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--out", type=Path)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        return worker(args.worker, args.precision)
    before = [round(x, 2) for x in os.getloadavg()]
    machine: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__, "load_before": before}
    rows = [compare(recipe, args) for recipe in args.recipes]
    machine["load_after"] = [round(x, 2) for x in os.getloadavg()]
    found = {"date": datetime.date.today().isoformat(), "machine": machine, "settings": {k: getattr(args, k) for k in ("seconds", "rounds", "precision")}, "rows": rows}
    target = args.out or HERE / "results" / f"{found['date']}-processes.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
