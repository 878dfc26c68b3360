"""Pictures of the user's for a trained run, prepared as its training images were: to edit them, to encode them, to walk between them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.types import ImageShape, UserError
from .decode import decode
from .encoded import Encoded, printable
from .folder import READ, walk

__all__ = ["pictures"]


def pictures(path: Path, shape: ImageShape, config: DataConfig) -> Tensor:
    """An image file, or all images below a folder by name, as uint8 (N, *shape): upright, on the background, fitted as `config` says.

    Errors: `UserError` where there is no image, and as `decode`.
    """
    files = [path]
    if path.is_dir():
        files = [path / name for name in sorted(walk(path).files) if os.path.splitext(name)[1].lower() in READ]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no such image: give a PNG, JPEG, WebP or BMP file, or a folder of them")
    told = replace(config, channels=shape.channels)
    found = [decode(Encoded(printable(str(file)), file), told, (shape.height, shape.width)) for file in files]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
