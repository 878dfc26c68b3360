"""The embedded real digits.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, doi:10.24432/C50P49,
licence CC BY 4.0: the 1,797 images of its test part, 8 x 8 pixels, 17 levels of grey, as scikit-learn ships them.
"""

from __future__ import annotations

import torch

from ..core.recipe import DataConfig
from .images import ImageSet, Split, hold_out
from .prepare import prepare

__all__ = ["open_digits"]


def open_digits(config: DataConfig, split: Split) -> ImageSet:
    """1,438 train and 359 test images (each fifth), native (1, 8, 8), levels 0..16 scaled to 0..255 and rounded; classes "0".."9"."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).unsqueeze(1)  # (1797, 1, 8, 8) float64
    rows = hold_out(len(levels), split, "digits", every=5)
    images = (levels[rows] * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)[rows]
    return ImageSet(prepare(images, config), labels, tuple("0123456789"), name="digits", split=split)
