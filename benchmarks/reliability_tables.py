"""The tables of docs/reliability.md from the results of tests/faults.py and tests/mutants.py (`make fault`): functions that tables.py calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from family_tables import table

__all__ = ["RELIABILITY_TABLES"]

Result = Mapping[str, Any]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "twice SIGINT")
FAULTS: dict[tuple[str, ...], str] = {
    ("kill",): "SIGKILL before the n-th call that changes the disk",
    ("torn",): "half of what the n-th call writes, then SIGKILL (other calls: SIGKILL right after)",
    ("full",): "from the n-th call on: no space left",
    ("readonly",): "from the n-th call on: read-only file system",
    ("error",): "the n-th call alone: I/O error",
    SIGNALS: "at a random time, up to three times on one run",
    ("damage",): "a file of the newest checkpoint, or the log: a bit (first, header, middle, last), empty, half, a byte short or long, gone, a folder, `{}`, `null`; the whole checkpoint gone, "
                 "a file, two damaged copies beside it; lines cut, doubled, not UTF-8, NaN, nested 100,000 deep",
    ("recipe.json",): "damaged: refused in one line; then put back and resumed",
    ("nan",): "a weight, a gradient, a loss in the third step",
    ("clock",): "a wall clock that jumps by up to thirty years at every look",
    ("worker",): "SIGKILL to a process that decodes images, one to four times at random: it is replaced and training goes on; the third death at one task is one line, then resumed",
}
GROUPS = {"disk": ("kill", "torn", "full", "readonly", "error"), "signals": SIGNALS} | {kind: (kind,) for kind in ("damage", "recipe.json", "nan", "clock", "worker")}


def faults(found: Result) -> str:
    """Every kind of fault, how often it was tried and on how many recipes; the conditions, and what came of it."""
    of, recipes = found["by kind"], found["by recipe"].values()
    hit = sum(map(bool, recipes))
    rows = [[", ".join(k if k == "twice SIGINT" else f"`{k}`" for k in kinds), what, ", ".join(f"{of.get(k, 0):,}" for k in kinds),
             ", ".join(str(sum(k in r for r in recipes)) for k in kinds)] for kinds, what in FAULTS.items()]
    noticed = sum("NOT" not in said for said in found["controls"].values())
    where = (f"{found['date']}, {found['processor']}, torch {found['torch']}, {found['seconds'] / 60:.0f} minutes with references and controls, seed {found['seed']}: {found['faults']:,} faults on "
             f"{hit} recipes{f' ({len(recipes) - hit} not reached)' if hit < len(recipes) else ''}, {len(found['failures'])} failures; {noticed} of {len(found['controls'])} sabotages noticed. "
             f"It is a sample: all recipes together have {found['disk points in all']:,} pairs of a disk fault and its call, and {found['other cases in all']:,} other cases, signals and workers not counted.")
    return f"{table(['fault', 'what it is', 'times', 'recipes'], rows)}\n\n{where}"


def recipes(found: Result) -> str:
    """Every recipe, and how often which kind fell on it."""
    rows = [[f"`{name}`", *[str(sum(of.get(kind, 0) for kind in kinds) or "–") for kinds in GROUPS.values()], str(sum(of.values()))] for name, of in sorted(found["by recipe"].items())]
    return table(["recipe", *GROUPS, "all"], rows)


def mutants(found: Result) -> str:
    """Every kind of file, and what came of its mutants; the conditions."""
    rows = [[kind, f"{of['refused']:,}", f"{of['read']:,}", f"{of['failed']:,}"] for kind, of in found["kinds"].items()]
    where = (f"{found['date']}, {found['processor']}, hypothesis {found['hypothesis']}, seed {found['seed']}: {found['files']:,} files, of which {found['refused']:,} were refused in one line, "
             f"{found['read']:,} could still be read, and {found['failed']:,} failed.")
    return f"{table(['kind of file', 'refused', 'read', 'failed'], rows)}\n\n{where}"


RELIABILITY_TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {  # mark in the page -> kind of result, and what writes it
    "reliability:faults": ("faults", faults), "reliability:recipes": ("faults", recipes), "reliability:mutants": ("mutants", mutants),
}
