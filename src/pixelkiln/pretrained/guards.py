"""The content-safety check and the invisible watermark, where the model supplies them; what they did is recorded.

The check of Stable Diffusion compares an image's CLIP embedding with 17 concepts (and 3 that lower the thresholds). The watermark of
Stable Diffusion XL is 48 bits in the wavelet transform (package invisible-watermark), of images from 256 pixels on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError

__all__ = ["Guards"]

SMALLEST = 256  # pixels a side, below which diffusers leaves the watermark out without a word


class Guards:
    """Both guards of a pipeline, set as the user says. blank: a flagged image becomes black; record: it stays, and the flag is written down."""

    def __init__(self, pipe: Any, safety: str, watermark: str) -> None:
        self.mode, self.flags = safety, list[bool]()
        self.checker = getattr(pipe, "safety_checker", None)
        if self.checker is not None and safety != "off":
            self._listen(self.checker, safety == "record")
        self.supplies = hasattr(pipe, "watermark")
        if watermark == "off" and self.supplies:
            pipe.watermark = None
        self.marks = getattr(pipe, "watermark", None) is not None
        self.asked = watermark
        if watermark == "on" and not self.marks:
            why = "the package invisible-watermark is missing: install it" if self.supplies else f"{type(pipe).__name__} supplies none: leave the option out"
            raise UserError(f"--watermark on: {why}")

    def _listen(self, checker: Any, record: bool) -> None:
        """Note what the checker says; on a copy, since it blackens what it gets."""
        forward = type(checker).forward

        def noted(clip_input: Tensor, images: Any) -> tuple[Any, list[bool]]:
            copy = images.clone() if torch.is_tensor(images) else images.copy()
            copy, flags = forward(checker, clip_input, copy)
            self.flags += [bool(f) for f in flags]
            return (images, [False] * len(flags)) if record else (copy, flags)

        checker.forward = noted

    def facts(self, position: int, width: int, height: int) -> dict[str, str]:
        """What happened to image `position` of the last batch."""
        if self.checker is None or self.mode == "off":
            safety = "off" if self.mode == "off" else "none: the model supplies no check"
        elif position < len(self.flags):
            safety = ("flagged, " + ("made black" if self.mode == "blank" else "kept")) if self.flags[position] else "passed"
        else:
            safety = "not run"
        if self.asked == "off":
            mark = "off"
        elif not self.supplies:
            mark = "none: the model supplies none"
        elif not self.marks:
            mark = "none: the package invisible-watermark is missing"
        else:
            mark = "applied" if width >= SMALLEST else f"none: narrower than {SMALLEST} pixels"
        return {"safety": safety, "watermark": mark}
