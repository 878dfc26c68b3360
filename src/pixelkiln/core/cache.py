"""Small facts kept between commands: JSON in the cache folder, which may be lost, damaged or unwritable without harm."""

from __future__ import annotations

import contextlib
from typing import Any

from .errors import UserError
from .files import cache_dir, read_json, write_json

__all__ = ["keep", "recall", "settle"]

BROKEN = (OSError, RuntimeError, UserError)  # no permission, no home folder, not JSON


def recall(name: str) -> dict[str, Any]:
    """What was kept under the name; {} where there is nothing that can be read."""
    with contextlib.suppress(*BROKEN):
        found = read_json(cache_dir() / f"{name}.json")
        return found if isinstance(found, dict) else {}
    return {}


def keep(name: str, facts: dict[str, Any]) -> None:
    """Keep facts under a name; a folder that cannot be written costs time, never the command."""
    with contextlib.suppress(*BROKEN):
        write_json(cache_dir() / f"{name}.json", facts)


def settle(name: str, slot: str, found: Any) -> Any:
    """What stands in a slot under the name: `found`, unless another process has put something there in the meantime, which then stays."""
    known = recall(name)
    if slot not in known:
        keep(name, known | {slot: found})
    return known.get(slot, found)
