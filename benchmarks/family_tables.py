"""The tables of docs/gans.md, docs/vaes.md, docs/codebooks.md and docs/code-prior.md from the results of families.py, gaussians.py, stacked.py, adversaries.py, codecs.py, pythae.py and
cached.py: functions that tables.py calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["FAMILY_TABLES", "table"]

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in parentheses the least and the greatest where they differ."""
    middle, low, high = (format(v, form) for v in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} – {high})"


def grouped(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of several seeds by name, in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def left_out(found: Result) -> str:
    """What failed, in a sentence."""
    return "".join(f" Left out: {name} ({why})." for name, why in found["failed"].items())


def length(row: Mapping[str, Any]) -> str:
    """How long a row was trained, in words."""
    return f"{row['same_steps']:,} steps each" if row.get("same_steps") else f"{row['minutes']:g} min of training"


def gans(found: Result) -> str:
    """Every recipe of families.py, best `fd` first, and the conditions."""
    rows, labeled = [], any("histogram" in r for r in found["rows"])
    several = sorted(grouped(found["rows"]).items(), key=lambda item: statistics.median(r["scores"]["fd"]["value"] for r in item[1]))
    for name, runs in several:
        def score(metric: str, form: str, runs: list[Mapping[str, Any]] = runs) -> str:
            values = [r["scores"][metric]["value"] for r in runs if metric in r["scores"]]
            return spread(values, form) if values else "–"

        more = [score("accuracy", ".1%"), score("modes", ".0f"), score("modes-kl", ".3f")] if labeled else []
        rates = [r["images_per_s"] for r in runs if r["images_per_s"]]
        rows.append([f"`{name}`", score("fd", ".2f"), score("precision", ".2f"), score("recall", ".2f"), score("coverage", ".2f"), *more,
                     f"{statistics.median(r['steps'] for r in runs):,.0f}", f"{statistics.median(rates):,.0f}" if rates else "–"])
    head = ["recipe", "`fd`", "precision", "recall", "coverage", *(["recognized as its label", "classes", "KL of their shares"] if labeled else []), "steps", "training images/s"]
    first, seeds = found["rows"][0], max(len(runs) for _, runs in several)
    floor = ", ".join(f"{m} {first['scores'][m]['floor']:.2f}" for m in ("fd", "precision", "recall", "coverage"))
    where = (f"{found['date']}, {found['machine']}: {length(first)}, {first['n']:,} samples, {seeds} {'seeds: median (least – greatest)' if seeds > 1 else 'seed'}; "
             f"as many real test images: {floor}.{left_out(found)}")
    return f"{table(head, rows)}\n\n{where}"


def gaussians(found: Result) -> str:
    """Every variant of gaussians.py."""
    rows = []
    for name, runs in grouped(found["rows"]).items():
        rows.append([name + (" (broken off)" if any(r["broken"] for r in runs) else ""), spread([r["modes"] for r in runs], ".0f"), spread([r["share"] for r in runs], ".0%"),
                     spread([r["kl"] for r in runs], ".2f"), f"{statistics.median(r['averaged']['modes'] for r in runs):.0f}", f"{statistics.median(r['averaged']['share'] for r in runs):.0%}"])
    s, floor = found["settings"], found["floor"]
    rows.append(["true points", str(floor["modes"]), f"{floor['share']:.0%}", f"{floor['kl']:.2f}", "", ""])
    head = ["game", "modes of 25", "of high quality", "KL to even shares", "averaged weights: modes", "of high quality"]
    where = f"{found['date']}, {found['machine']}: {s['steps']:,} steps of {s['batch']} points, {s['n']:,} samples, {s['seeds']} {'seeds: median (least – greatest)' if s['seeds'] > 1 else 'seed'}."
    return f"{table(head, rows)}\n\n{where}"


def stacked(found: Result) -> str:
    """Every recipe of stacked.py."""
    several = sorted(grouped(found["rows"]).items(), key=lambda item: statistics.median(r["kl"] for r in item[1]))
    rows = [[f"`{name}`", spread([r["modes"] for r in runs], ",.0f"), spread([r["kl"] for r in runs], ".2f"), f"{statistics.median(r['steps'] for r in runs):,.0f}"] for name, runs in several]
    rows.append(["real stacks", f"{found['floor']['modes']:,}", f"{found['floor']['kl']:.2f}", ""])
    first = found["rows"][0]
    where = f"{found['date']}, {found['machine']}: {first['minutes']:g} min of training, {first['n']:,} samples; the classifier is right for {found['classifier accuracy']:.1%} of test digits.{left_out(found)}"
    return f"{table(['recipe', 'modes of 1,000', 'KL, nats', 'steps'], rows)}\n\n{where}"


def adversaries(found: Result) -> str:
    """What each rule costs, then ours beside the textbook's."""
    machine, s = found["machine"], found["settings"]
    parts = []
    for c in found["contests"]:
        if c["contest"] == "rules":
            rows = [[p["name"], f"{p['images_per_s']:,.0f}", f"{p['ratio']:.2f}"] for p in c["programs"]]
            parts.append(table(["what D is held by", "images/s", "a step takes so many times as long"], rows))
        else:
            rows = [[p["name"], f"{p['images_per_s']:,.0f}", f"{min(p['rates']):,.0f} – {max(p['rates']):,.0f}", f"{p['ratio']:.2f}"] for p in c["programs"]]
            parts.append(table([c["contest"].partition(": ")[2], "images/s", "turns", "pixelkiln is so many times as fast"], rows))
    where = f"{found['date']}, {machine['processor']}, {machine['threads']} threads, {found['data']}, batches of 64; {s['rounds']} turns of {s['seconds']:g} s each; load average {machine['load_before'][0]} before."
    return "\n\n".join([*parts, where])


def codecs(found: Result) -> str:
    """Every variant of codecs.py."""
    rows = []
    for r in found["rows"]:
        used = [f"{v:.0%}" for k, v in r.items() if k.endswith("usage")]
        spread_over = [f"{v:,.0f}" for k, v in r.items() if k.endswith("perplexity")]
        rows.append([r["name"], *(f"{r['scores'][m]:.{d}f}" for m, d in (("psnr", 1), ("ssim", 3), ("fd", 2))), " and ".join(used) or "–", " and ".join(spread_over) or "–",
                     f"{r['steps']:,}", f"{r['images_per_s']:,.0f}"])
    first = found["rows"][0]
    where = f"{found['date']}, {found['machine']}: {first['minutes']:g} min of training, reconstructions of test images, one seed.{left_out(found)}"
    return f"{table(['codec', 'PSNR, dB', 'SSIM', '`fd`', 'codes used', 'perplexity', 'steps', 'training images/s'], rows)}\n\n{where}"


def pair(first: float | None, second: float | None, form: str) -> str:
    """Two numbers, or a dash where there are none."""
    return "–" if first is None or second is None else f"{first:{form}} / {second:{form}}"


def pythae(found: Result) -> str:
    """Every pair of pythae.py: speed, then what came of equal epochs."""
    speed, quality = [], []
    for name, row in found["rows"].items():
        if "speed" in row and len(row["speed"]["programs"]) == 2:
            ours, theirs = row["speed"]["programs"]
            rates = [statistics.median(p["processor_rates"]) for p in (ours, theirs)]
            low, high = sorted(a / b for a, b in zip(ours["processor_rates"], theirs["processor_rates"], strict=True))[:: len(ours["rates"]) - 1]
            most = max(p[f"{ours['precision']}_gflops"] for p in (ours, theirs)) * 1e9
            speed.append([name, f"{ours['parameters'] / 1e6:.2f} M", *(f"{r:,.0f}" for r in rates), f"{theirs['processor_ratio']:.2f} ({low:.2f} – {high:.2f})", f"{theirs['ratio']:.2f}",
                          *(f"{p['flop_per_image'] * r / most:.0%}" for p, r in zip((ours, theirs), rates, strict=True))])
        if "quality" in row:
            ours, theirs = row["quality"]["pixelkiln"], row["quality"]["pythae"]
            quality.append([name, f"{ours['images']:,}", *(pair(ours.get(k), theirs.get(k), form) for k, form in (("mse", ".4f"), ("nats", ".1f"), ("fd", ".2f"), ("processor_seconds", ".0f")))])
    m, s = found["machine"], found["settings"]
    timed = [row for row in found["rows"].values() if "speed" in row]
    turns, loads = sorted({len(row["speed"]["programs"][0]["rates"]) for row in timed}), sorted(row["load"][0] for row in timed)
    where = (f"{found['date']}, {m['processor']}, {m['threads']} thread on one core, torch {m['torch']}; {' or '.join(map(str, turns))} turns of {s['seconds']:g} s of {s['clock'] or 'wall'} time each, "
             f"load average {loads[0]:.1f} to {loads[-1]:.1f} at their ends on {m['cores']} cores: other programs ran beside. "
             f"Quality: whole epochs of the first {s['images']:,} training images, one seed, {s['n']:,} test images and samples, the bound by {s['importance']} importance samples of {s['bound']} images.")
    head = ["model, data", "parameters", "pixelkiln, images/s of processor time", "pythae", "ratio (turns)", "ratio, wall clock", "share of the matrix rate, pixelkiln", "pythae"]
    return "\n\n".join([table(head, speed), table(["pixelkiln / pythae", "images seen", "squared error of a pixel", "bound, nats", "`fd`", "processor seconds"], quality), where])


def cached(found: Result) -> str:
    """Every row of cached.py."""
    rows = [[str(r["batch"]), f"{r['guidance']:g}", f"{r['cached']:.2f} s", f"{r['anew']:,.1f} s", f"{r['ratio']:.1f} ({min(r['ratios']):.1f} – {max(r['ratios']):.1f})", f"{r['wall_ratio']:.1f}",
             f"{r['difference']:.0e}"] for r in found["rows"]]
    m, s = found["machine"], found["settings"]
    where = (f"{found['date']}, {m['processor']}, {m['threads']} thread on one core, torch {m['torch']}, fp32, {found['rows'][0]['codes']} codes, {found['parameters'] / 1e6:.1f} M weights, {s['turns']} turns; "
             f"load average {m['load_before'][0]} before. Processor time; without the cache, for batches above 1, from every {s['stride']}th place.")
    head = ["images at once", "guidance", "with the cache", "without", "ratio (turns)", "ratio, wall clock", "largest difference of a logit"]
    return f"{table(head, rows)}\n\n{where}"


FAMILY_TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {  # mark in a page -> kind of result, and what writes it
    "gans:mnist": ("gans-mnist", gans),
    "gans:cifar10-steps": ("gans-cifar10-steps", gans),
    "gans:cifar10": ("gans-cifar10", gans),
    "gans:emoji": ("gans-emoji", gans),
    "gans:gaussians": ("gaussians", gaussians),
    "gans:stacked": ("stacked", stacked),
    "gans:adversaries": ("adversaries", adversaries),
    "vaes:mnist": ("vaes-mnist", gans),
    "vaes:pythae": ("pythae", pythae),
    "prior:cached": ("cached", cached),
    "codecs:mnist": ("codecs-mnist", codecs),
    "codecs:emoji": ("codecs-emoji", codecs),
}
