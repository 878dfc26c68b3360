"""Write the tables of speed, of MNIST and of several processes from the newest results of speed.py, mnist.py and processes.py into the pages that show them, between their markers.

    python benchmarks/tables.py [--result benchmarks/results/DATE-speed.json] [--check]

A page gets a table where it has the lines <!-- speed:NAME --> and <!-- /speed:NAME -->; NAME is summary, training, sampling, loop, startup or machine;
the scores on MNIST where it has <!-- mnist:scores --> and <!-- /mnist:scores -->, and the newest result of processes.py likewise where it has processes:table, that of stream.py where it has stream:table,
and that of diffusion.py where it has diffusion:mnist; those of families.py, gaussians.py, stacked.py and adversaries.py where it has the marks of family_tables.py (gans:mnist, ...), and
those of tests/faults.py and tests/mutants.py where it has the marks of reliability_tables.py (reliability:faults, ...).
--check writes nothing and ends with status 1 where a page is not as it would be written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from family_tables import FAMILY_TABLES, table
from reliability_tables import RELIABILITY_TABLES

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "README.zh-CN.md", "docs/speed.md", "docs/parallel.md", "docs/data.md", "docs/diffusion.md", "docs/gans.md", "docs/vaes.md", "docs/codebooks.md", "docs/code-prior.md",
         "docs/reliability.md")
GOALS = {"list": "under 0.6 s", "sample, from a tiny run": "under 3 s"}
Result = dict[str, Any]


def number(x: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def percent(program: dict[str, Any], form: str) -> str:
    """The share of the rate of a matrix product; – where that product has no fast way on this processor, so that it is no measure."""
    slow = program.get("precision") == "bf16" and program["bf16_gflops"] < program["fp32_gflops"] / 10
    return "–" if slow else format(program["share"], form)


def training_contests(found: Result) -> list[dict[str, Any]]:
    return [c for c in found["contests"] if not c["contest"].startswith("sampling")]


def training(found: Result) -> str:
    """Every program of every training contest."""
    rows = []
    for c in training_contests(found):
        for p in c["programs"]:
            low, high = min(p["rates"]), max(p["rates"])
            rows.append([c["contest"], p["name"], str(p["batch"]), f"{p['parameters'] / 1e6:.2f} M", f"{p['flop_per_image'] / 1e6:,.0f}", number(p["images_per_s"]),
                         f"{number(low)} – {number(high)}", f"{p['ratio']:.2f}", percent(p, ".1%"), f"{p['peak_mib']:,.0f}"])
    head = ["network, data", "program", "batch", "parameters", "MFLOP an image", "images/s", "turns", "pixelkiln is so many times as fast", "share of the matrix rate", "peak MiB"]
    return table(head, rows)


def sampling(found: Result) -> str:
    """The sampling contests."""
    rows = [[p["name"], f"{p['flop_per_image'] / 1e9:,.1f}", number(p["images_per_s"]), f"{p['ratio']:,.1f}"]
            for c in found["contests"] if c["contest"].startswith("sampling") for p in c["programs"]]
    return table(["sampler", "GFLOP an image", "images/s", "pixelkiln is so many times as fast"], rows)


def loop(found: Result) -> str:
    """The loop against steps by hand."""
    rows = [[r["recipe"], r["size"], str(r["batch"]), f"{r['loop_ms']:.2f}", f"{r['hand_ms']:.2f}", f"{r['cost']:+.1%}"] for r in found.get("loop", [])]
    return table(["recipe", "size", "batch", "ms a step, the loop", "ms a step, by hand", "the loop costs"], rows)


def startup(found: Result) -> str:
    """Wall-clock of short commands, and the memory of a run: at a tenth of its steps, at the end, at most."""
    rows = [[name, f"{seconds:.2f} s", GOALS.get(name, "–")] for name, seconds in found.get("startup", {}).items()]
    if memory := found.get("memory"):
        for point in (memory[0], memory[-1]):
            rows.append([f"resident after {point['step']:,} steps (ddpm, tiny)", f"{point['rss_mib']:,.0f} MiB", "–"])
        grown = memory[-1]["rss_mib"] / memory[0]["rss_mib"] - 1
        rows.append(["the second beside the first", f"{grown:+.1%}", "flat"])
        rows.append(["at most, in that run", f"{memory[-1]['peak_mib']:,.0f} MiB", "–"])
    return table(["what", "measured", "goal"], rows)


def processes(found: Result) -> str:
    """Every recipe of processes.py, and the machine."""
    rows = [[r["recipe"], str(r["batch"]), number(r["one"]), number(r["many"]), f"{r['ratio']:.2f}"] for r in found["rows"]]
    m, s, many = found["machine"], found["settings"], found["rows"][0]["processes"]
    head = ["recipe (small, 28 pixels)", "batch", f"one process, {many} threads, images/s", f"{many} processes, 1 thread each", "which is so many times as fast"]
    where = f"{found['date']}, {m['processor']}, torch {m['torch']}; {s['rounds']} turns of {s['seconds']:g} s each; load average {m['load_before'][0]} before."
    return f"{table(head, rows)}\n\n{where}"


def stream(found: Result) -> str:
    """Every way of stream.py, and the machine."""
    rows = [[r["name"], number(r["feed"]), number(r["training"]), f"{r['idle']:.1%}"] for r in found["rows"]]
    m, s = found["machine"], found["settings"]
    where = (f"{found['date']}, {m['processor']}, {m['cores']} cores, torch {m['torch']} with {m['threads']} threads; {found['images']:,} images to {s['resolution']} pixels, "
             f"{s['recipe']} {s['size']}, batch {s['batch']}, medians of {s['rounds']}; load average {m['load_before']} before.")
    return f"{table(['where the images are', 'the feed alone, images/s', 'training, images/s', 'idle'], rows)}\n\n{where}"


def machine(found: Result) -> str:
    """Where and when, in a sentence."""
    m, s = found["machine"], found["settings"]
    rates = [p for c in found["contests"] for p in c["programs"]]
    fp32, bf16 = (sorted(p[f"{k}_gflops"] for p in rates)[len(rates) // 2] for k in ("fp32", "bf16"))
    return (f"{found['date']}, {m['processor']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}, device {m['device']}; {s['rounds']} turns of {s['seconds']:g} s each; "
            f"load average {m['load_before'][0]} before and {m['load_after'][0]} after. Matrix products ran at {fp32:,.0f} GFLOP/s in fp32 and {bf16:,.0f} in bf16.")


def summary(found: Result) -> str:
    """One row a contest: pixelkiln's rate, and its ratio to each of the others; and the machine."""
    rows = []
    for c in found["contests"]:
        if not c["contest"].startswith("ways"):
            first, *rest = c["programs"]
            against = "; ".join(f"{p['ratio']:,.1f} × {p['name']}" for p in rest)
            rows.append([c["contest"], number(first["images_per_s"]), against, percent(first, ".0%")])
    return table(["what", "pixelkiln, images/s", "which is", "share of the matrix rate"], rows) + f"\n\n{machine(found)}"


PEERS = {  # rows of mnist.py, as a reader knows them
    "flow": "`pixelkiln train flow`", "ddpm": "`pixelkiln train ddpm` (0.1.0)", "vae": "`pixelkiln train vae`", "vae-mlp": "`pixelkiln train vae-mlp`", "dcgan": "`pixelkiln train dcgan` (0.1.0)",
    "pca": "`pixelkiln train pca`", "diffusers": "diffusers' `UNet2DModel`, its training example", "document-diffusion": "the document's diffusion, repaired",
    "document-vae": "the document's VAE", "document-dcgan": "the document's DCGAN",
}


def mnist(found: Result) -> str:
    """Every file of samples of every program."""
    rows = []
    for r in found["rows"]:
        for stem, scores in r["scores"].items():
            n = scores["protocol"]["N"]
            fd, accuracy = scores["fd"], scores.get("accuracy")
            made = f"{r['images_per_s']:,.0f}" if r["images_per_s"] else "–"
            drawn = number(r["sample_images_per_s"]) if n == r["n"] else "–"
            rows.append([PEERS[r["name"]] + (f" ({stem.split('-', 1)[1]} of them)" if n != r["n"] else ""), f"{r['minutes']:g} min" if r["images_per_s"] else "closed form", f"{n:,}",
                         f"{fd['value']:.2f} ({fd['floor']:.2f})", f"{accuracy['value']:.1%}" if accuracy else "–", f"{scores['precision']['value']:.2f}",
                         f"{scores['recall']['value']:.2f}", made, drawn])
    head = ["program", "training", "samples", "`fd` (as many real images)", "recognized as its label", "precision", "recall", "training images/s", "sampling images/s"]
    return table(head, rows)


def diffusion(found: Result) -> str:
    """Every recipe of diffusion.py, and its conditions."""
    rows = []
    for r in found["rows"]:
        s = r["scores"]
        rows.append([f"`{r['name']}`", f"{r['steps']:,}", f"{s['fd']['value']:.2f}", f"{s['accuracy']['value']:.1%}", f"{s['precision']['value']:.2f}", f"{s['recall']['value']:.2f}",
                     f"{r['images_per_s']:,.0f}", number(r["sample_images_per_s"])])
    head = ["recipe", "steps", "`fd`", "recognized as its label", "precision", "recall", "training images/s", "sampling images/s"]
    first = found["rows"][0]
    where = f"{found['date']}, {found['machine']}: {first['minutes']:g} min of training, {first['n']:,} samples (`fd` of as many real test images: {first['scores']['fd']['floor']:.2f}), one seed."
    return f"{table(head, rows)}\n\n{where}"


PARTS: dict[str, Callable[[Result], str]] = {"summary": summary, "training": training, "sampling": sampling, "loop": loop, "startup": startup, "machine": machine}


def put(text: str, mark: str, write: Callable[[], str]) -> str:
    """The page with a marked part written anew."""
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{write()}\n{m[2]}", text)


def newest(kind: str) -> Result | None:
    """The newest result of a kind."""
    results = sorted((ROOT / "benchmarks" / "results").glob(f"????-??-??-{kind}.json"))
    return json.loads(results[-1].read_text()) if results else None


def fill(text: str, speed: Result | None, scores: Result | None, team: Result | None, models: Result | None) -> str:
    """The page with every marked part written anew for which there is a result."""
    for mark, (kind, write) in (FAMILY_TABLES | RELIABILITY_TABLES).items():
        if (found := newest(kind)) is not None and found.get("rows", True):
            text = put(text, mark, lambda found=found, write=write: write(found))
    if models is not None:
        text = put(text, "diffusion:mnist", lambda: diffusion(models))
    if speed is not None:
        for name, write in PARTS.items():
            text = put(text, f"speed:{name}", lambda write=write: write(speed))
    if team is not None:
        text = put(text, "processes:table", lambda: processes(team))
    streamed = newest("stream")
    text = put(text, "stream:table", lambda: stream(streamed) if streamed else "Unmeasured: `python benchmarks/stream.py` on a machine that does nothing else.")
    return text if scores is None else put(text, "mnist:scores", lambda: mnist(scores))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--result", type=Path)
    p.add_argument("--check", action="store_true")
    args = p.parse_args()
    speed = json.loads(args.result.read_text()) if args.result else newest("speed")
    scores, team, models = newest("mnist"), newest("processes"), newest("diffusion-mnist")
    stale = 0
    for page in PAGES:
        file = ROOT / page
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = fill(before, speed, scores, team, models)
        if after != before:
            stale += 1
            print(page)
            if not args.check:
                file.write_text(after, encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
