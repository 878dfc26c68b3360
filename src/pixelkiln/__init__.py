"""pixelkiln: every family of image generator behind one command.

    pixelkiln.load("runs/demo").sample(16)          # uint8 (16, C, H, W)
    pixelkiln.measure(pixelkiln.load("runs/demo"))  # the scores with their protocol, as `pixelkiln evaluate` prints them
    pixelkiln.open_source("path/to/images")         # any folder, Parquet, IDX or .npz as one tensor
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .core.errors import UserError
from .core.version import __version__

if TYPE_CHECKING:
    from .data import ImageSet, open_source
    from .engine.measure import Ask, Measured, measure, measure_images
    from .engine.sample import Trained, load
    from .engine.train import Budget, Order, train
    from .engine.where import Where

__all__ = ["Ask", "Budget", "ImageSet", "Measured", "Order", "Trained", "UserError", "Where", "__version__", "load", "measure", "measure_images", "open_source", "train"]

HOMES = {
    "data": ("ImageSet", "open_source"),
    "engine.measure": ("Ask", "Measured", "measure", "measure_images"),
    "engine.sample": ("Trained", "load"),
    "engine.train": ("Budget", "Order", "train"),
    "engine.where": ("Where",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes a second, and `pixelkiln list` does without."""
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
