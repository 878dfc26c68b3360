"""pixelkiln list: the catalog."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from ..core.config import nearest
from ..core.errors import UserError
from ..core.listing import listing

__all__ = ["add", "rows", "run"]

CONDITIONS = ("label", "text", "source", "mask", "layout", "domain", "coords")  # of what a recipe takes, the knobs of sampling left out


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of `list`."""
    parser.add_argument("--family", metavar="F", help="only one family: vae, gan, diffusion, classical, editing")
    parser.add_argument("--json", action="store_true", help="as JSON")


def rows(family: str | None = None) -> list[dict[str, object]]:
    """One row a recipe: name, family, what it takes and can do, paper, measured numbers."""
    found = [{k: v for k, v in facts.items() if k != "options"} for facts in listing().values()]
    families = {str(r["family"]) for r in found}
    if family is not None and family not in families:
        raise UserError(f"unknown family {family!r}; {nearest(family, families)}")
    return [r for r in found if family in (None, r["family"])]


def run(args: argparse.Namespace) -> int:
    """Print the catalog."""
    found = rows(args.family)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("recipe", "family", "conditions", "likelihood", "measured", "paper"):
        table.add_column(column, no_wrap=column in ("recipe", "family"), overflow="fold")
    for r in found:
        can = r["can"]
        assert isinstance(can, list) and isinstance(r["takes"], list) and isinstance(r["measured"], list)
        table.add_row(str(r["recipe"]), str(r["family"]), ", ".join(c for c in CONDITIONS if c in r["takes"]) or "–", "yes" if "likelihood" in can else "–",
                      "; ".join(r["measured"]), " ".join(str(r["paper"]).split(", ")[-2:]))
    console = Console()
    console.print(table, width=max(console.width, 110) if not console.is_terminal else None)
    return 0
