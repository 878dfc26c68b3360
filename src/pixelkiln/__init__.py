"""pixelkiln: every family of image generator behind one command.

    pixelkiln.load("runs/demo").sample(16)          # uint8 (16, C, H, W)
    pixelkiln.measure(pixelkiln.load("runs/demo"))  # the scores with their protocol, as `pixelkiln evaluate` prints them
    pixelkiln.open_source("path/to/images")         # any folder, Parquet, IDX or .npz as one tensor
"""

from __future__ import annotations

from .core.types import UserError
from .core.version import __version__
from .data import ImageSet, open_source
from .engine.measure import Ask, Measured, measure, measure_images
from .engine.sample import Trained, load
from .engine.train import Budget, Order, train
from .engine.where import Where

__all__ = ["Ask", "Budget", "ImageSet", "Measured", "Order", "Trained", "UserError", "Where", "__version__", "load", "measure", "measure_images", "open_source", "train"]
