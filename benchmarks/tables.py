"""Write the tables of speed from the newest result of speed.py into README.md and docs/speed.md, between their markers.

    python benchmarks/tables.py [--result benchmarks/results/DATE-speed.json] [--check]

A page gets a table where it has the lines <!-- speed:NAME --> and <!-- /speed:NAME -->; NAME is summary, training, sampling, loop, startup or machine.
--check writes nothing and ends with status 1 where a page is not as it would be written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "README.zh-CN.md", "docs/speed.md")
Result = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def number(x: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def training_contests(found: Result) -> list[dict[str, Any]]:
    return [c for c in found["contests"] if not c["contest"].startswith("sampling")]


def training(found: Result) -> str:
    """Every program of every training contest."""
    rows = []
    for c in training_contests(found):
        for p in c["programs"]:
            low, high = min(p["rates"]), max(p["rates"])
            rows.append([c["contest"], p["name"], str(p["batch"]), f"{p['parameters'] / 1e6:.2f} M", f"{p['flop_per_image'] / 1e6:,.0f}", number(p["images_per_s"]),
                         f"{number(low)} – {number(high)}", f"{p['ratio']:.2f}", f"{p['share']:.1%}", f"{p['peak_mib']:,.0f}"])
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
    """Wall-clock of short commands, and the memory of a run."""
    rows = [[name, f"{seconds:.2f} s"] for name, seconds in found.get("startup", {}).items()]
    if memory := found.get("memory"):
        for point in (memory[0], memory[-1]):
            rows.append([f"resident after {point['step']:,} steps (ddpm, tiny)", f"{point['rss_mib']:,.0f} MiB"])
    return table(["what", "measured"], rows)


def machine(found: Result) -> str:
    """Where and when, in a sentence."""
    m, s = found["machine"], found["settings"]
    rates = [p for c in found["contests"] for p in c["programs"]]
    fp32, bf16 = (sorted(p[f"{k}_gflops"] for p in rates)[len(rates) // 2] for k in ("fp32", "bf16"))
    return (f"{found['date']}, {m['processor']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}, device {m['device']}; {s['rounds']} turns of {s['seconds']:g} s each; "
            f"load average {m['load_before'][0]} before and {m['load_after'][0]} after. Matrix products ran at {fp32:,.0f} GFLOP/s in fp32 and {bf16:,.0f} in bf16.")


def summary(found: Result) -> str:
    """One row a contest: pixelkiln's rate, and its ratio to each of the others."""
    rows = []
    for c in found["contests"]:
        if not c["contest"].startswith("ways"):
            first, *rest = c["programs"]
            against = "; ".join(f"{p['ratio']:,.1f} × {p['name']}" for p in rest)
            rows.append([c["contest"], number(first["images_per_s"]), against, f"{first['share']:.0%}"])
    return table(["what", "pixelkiln, images/s", "which is", "share of the matrix rate"], rows)


PARTS: dict[str, Callable[[Result], str]] = {"summary": summary, "training": training, "sampling": sampling, "loop": loop, "startup": startup, "machine": machine}


def fill(text: str, found: Result) -> str:
    """The page with every marked part written anew."""
    for name, write in PARTS.items():
        pattern = re.compile(rf"(<!-- speed:{name} -->\n).*?(<!-- /speed:{name} -->)", re.DOTALL)
        if pattern.search(text):
            body = write(found)
            text = pattern.sub(lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text)
    return text


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--result", type=Path)
    p.add_argument("--check", action="store_true")
    args = p.parse_args()
    results = sorted((ROOT / "benchmarks" / "results").glob("*-speed.json"))
    if args.result is None and not results:
        sys.exit("no result: run benchmarks/speed.py first")
    found = json.loads((args.result or results[-1]).read_text())
    stale = 0
    for page in PAGES:
        file = ROOT / page
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = fill(before, found)
        if after != before:
            stale += 1
            print(page)
            if not args.check:
                file.write_text(after, encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
