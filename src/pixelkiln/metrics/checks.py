"""What every score asks of its inputs, said once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["vectors"]


def vectors(what: str, least: int, **sets: Tensor) -> list[Tensor]:
    """Feature sets (N, d) as detached CPU tensors in float32 or better.

    ValueError, with the names of the sets, for anything but vectors of one d, fewer than `least` of them, or values that are not finite.
    """
    found = []
    for name, x in sets.items():
        if x.ndim != 2:
            raise ValueError(f"{what} needs features (N, d), and {name} is {tuple(x.shape)}")
        x = x.detach().cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if not x.isfinite().all():
            raise ValueError(f"{what}: {name} is not finite: the extractor returned NaN or infinity")
        found.append(x)
    if min(len(x) for x in found) < least:
        counts = " and ".join(f"{len(x)} {name}" for name, x in zip(sets, found))
        raise ValueError(f"{what} needs at least {least} features a set, and there are {counts}")
    if len({x.shape[1] for x in found}) > 1:
        dims = " and ".join(f"{x.shape[1]} ({name})" for name, x in zip(sets, found))
        raise ValueError(f"{what} needs features of one extractor, and their numbers of dimensions are {dims}")
    return found
