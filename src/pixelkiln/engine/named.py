"""Which extractor the user names: the small classifier, a published network, a TorchScript file, or a function of theirs.

TorchScript files and modules run code. They are opened because the command names them, and for no other reason: no run folder, cache
or data set can name one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.catalog import module_of
from ..core.config import nearest
from ..core.files import sha256
from ..core.types import UserError
from ..data import ImageSet
from .extractor import FeatureExtractor, Named, rgb
from .features import extractor_for
from .inception import inception
from .pretrained import MODELS, pretrained

__all__ = ["KNOWN", "extractor_named"]

KNOWN = ("cnn", "inception", "inception-tf", *MODELS)
SCRIPTS = (".ts", ".pt", ".torchscript")
PROBES = 8  # images whose features tell one function from another
Say = Callable[[str], None]


def extractor_named(name: str | None, train: ImageSet, weights: str | None = None, say: Say = lambda _: None) -> FeatureExtractor:
    """The extractor of a name: None or one of KNOWN, FILE.ts (TorchScript: uint8 (N, 3, H, W) -> (N, d)), or module:function (the same).

    weights: a file for inception, a folder or a name on the Hub for dinov2 and clip. Errors: `UserError` for what is none of these.
    """
    if weights is not None and name not in KNOWN[1:]:
        raise UserError(f"--weights {weights} belongs to an extractor: name it with --extractor {', '.join(KNOWN[1:])}")
    if name is None or name == "cnn":
        return extractor_for(train, log=say)
    if name in ("inception", "inception-tf"):
        return inception(None if weights is None else Path(weights), legacy=name == "inception-tf", say=say)
    if name in MODELS:
        return pretrained(name, weights)
    probe = train.images_of(torch.arange(min(PROBES, len(train))))
    if Path(name).suffix in SCRIPTS:
        return _script(Path(name), probe)
    if ":" in name:
        return _function(name, probe)
    raise UserError(f"unknown extractor {name!r}; {nearest(name, KNOWN)}; or give a TorchScript FILE.ts, or module:function")


def _script(file: Path, probe: Tensor) -> Named:
    """A TorchScript file, whose code is run."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch advises another format
        try:
            net = torch.jit.load(str(file), map_location="cpu").eval()
        except RuntimeError as e:
            raise UserError(f"{file}: not a TorchScript file ({str(e).splitlines()[0][:100]}): save it with torch.jit.save") from None
    return _probed(file.stem, sha256(file)[:8], net, probe)


def _function(name: str, probe: Tensor) -> Named:
    """A function of a module or file of the user's; what it makes of `probe` stands for its weights."""
    where, _, function = name.rpartition(":")
    made = getattr(module_of(where), function, None)
    if not callable(made):
        raise UserError(f"{where} has no function {function!r}: it maps uint8 images (N, 3, H, W) to features (N, d)")
    return _probed(function, "", made, probe)


def _probed(name: str, weights: str, embed: Callable[[Tensor], Any], probe: Tensor) -> Named:
    """The extractor, once it has shown how many features it makes."""
    with torch.no_grad():
        first = embed(rgb(probe))
    if not isinstance(first, Tensor) or first.ndim != 2 or len(first) != len(probe):
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise UserError(f"{name} makes {got} of {len(probe)} images: an extractor returns one row of features (N, d) an image")
    weights = weights or hashlib.sha256(first.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:8]
    return Named(name, weights, f"-{name}", first.shape[1], "as it is, RGB, 8 bits", embed)
