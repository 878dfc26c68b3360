"""What the commands show of the catalog, kept between commands, so that `list` and `--help` need not import torch.

The listing is made from the catalog and kept in the cache folder with a stamp of the package's files; it is made anew when any of them changes.
A user's own recipes are never kept: their code is read each time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cache import keep, recall

__all__ = ["Option", "listing", "options", "stamp"]

PACKAGE = Path(__file__).resolve().parent.parent
SIZES = ("tiny", "small", "base")


@dataclass(frozen=True)
class Option:
    """One field of a recipe that a command may set: its dotted name, the words for its type, its default as text."""

    name: str
    words: str
    default: str


def stamp(package: Path = PACKAGE) -> str:
    """Digest of path, size and time of change of every source file of the package."""
    facts = [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in sorted(package.rglob("*.py"))]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def listing() -> dict[str, Any]:
    """By name of recipe: family, takes, can, paper, summary, measured, and its options for each size."""
    name = "catalog-" + hashlib.blake2b(str(PACKAGE).encode(), digest_size=6).hexdigest()  # one for each installation
    kept, now = recall(name), stamp()
    if kept.get("stamp") != now:
        kept = {"stamp": now, "recipes": _make()}
        keep(name, kept)
    return dict(kept["recipes"])


def _make() -> dict[str, Any]:
    """The listing from the catalog itself."""
    from .catalog import builtin
    from .protocols import describe

    found = {}
    for name, make in builtin().items():
        recipe = make("small")
        measured = [f"{e.metric} {e.value:g} on {e.data}" for e in recipe.expect] or ["unmeasured"]
        facts = {"recipe": name, "family": recipe.family, **describe(recipe.last.method)}
        facts |= {"paper": recipe.paper, "summary": recipe.summary, "measured": measured}
        found[name] = facts | {"options": {size: [asdict(o) for o in _options(name, size)] for size in SIZES}}
    return found


def _options(name: str, size: str) -> list[Option]:
    from .catalog import find, overridable
    from .config import flat_fields, variants

    found: dict[str, Option] = {}
    leaves = list(overridable(find(name)(size)))
    for option, leaf in leaves:
        found[option] = Option(option, leaf.words, _text(leaf.value))
    for option, leaf in leaves:  # of the members of a union that are not taken
        for member, kind in variants(leaf.kind).items():
            for other in flat_fields(kind(), f"{option}."):
                found.setdefault(other.name, Option(other.name, other.words, f"{_text(other.value)} of {member}"))
    return list(found.values())


def _text(value: Any) -> str:
    """A default as text."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def options(name: str, size: str) -> list[Option]:
    """What a command may set of a recipe; an unknown name gets the nearest ones (UserError)."""
    known = {} if ":" in name else listing()
    if (wanted := name.replace("_", "-")) in known:
        return [Option(**facts) for facts in known[wanted]["options"][size]]
    return _options(name, size)
