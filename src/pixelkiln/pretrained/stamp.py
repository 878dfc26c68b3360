"""The recipe that an image carries: enough to make it again, as JSON in the PNG's field `pixelkiln`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.config import from_json, to_json
from ..core.errors import UserError
from ..core.images import read_texts
from ..core.version import __version__
from .order import Order, Setup
from .studio import Painted

__all__ = ["Recipe", "pixels", "read_recipe", "stamped"]

FIELD, FORMAT = "pixelkiln", 1


@dataclass(frozen=True)
class Recipe:
    """How an image was made. mates: prompts and seeds of the batch in which it was computed; position: its own place there."""

    setup: Setup
    order: Order
    mates: tuple[tuple[str, int], ...]
    position: int
    digests: Mapping[str, str]
    facts: Mapping[str, Any]
    pixels: str
    format: int = FORMAT

    def orders(self) -> list[Order]:
        """The whole batch: networks round differently in batches of other sizes."""
        return [self.order if i == self.position else replace(self.order, prompt=p, seed=s) for i, (p, s) in enumerate(self.mates)]


def pixels(image: Tensor) -> str:
    """SHA-256 of a picture's size and bytes."""
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()


def stamped(setup: Setup, batch: Sequence[Painted], position: int, digests: Mapping[str, str]) -> dict[str, str]:
    """Text fields of the PNG of one image of a batch."""
    done = batch[position]
    mates = tuple((p.order.prompt, p.order.seed) for p in batch)
    recipe = Recipe(setup, done.order, mates, position, dict(digests), dict(done.facts), pixels(done.image))
    return {"Software": f"pixelkiln {__version__}", "Description": done.order.prompt, FIELD: json.dumps(to_json(recipe), ensure_ascii=False)}


def read_recipe(path: Path) -> Recipe:
    """The recipe in an image. Errors: `UserError` where there is none, or one that cannot be used."""
    text = read_texts(path).get(FIELD)
    if text is None:
        raise UserError(f"{path} carries no recipe: it was not made by pixelkiln imagine, or another program has saved it anew")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its recipe is damaged: take the original file") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path}: its recipe is of another version of pixelkiln than {__version__}: use that one")
    recipe: Recipe = from_json(Recipe, data, str(path))
    if not 0 <= recipe.position < len(recipe.mates) <= 4096:
        raise UserError(f"{path}: its recipe is damaged: take the original file")
    return recipe
