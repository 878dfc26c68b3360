"""Traversals: one unit of a latent at a time goes from one end to the other, and the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.images import to_uint8
from ..core.protocols import Codec, Latent
from ..core.types import Request, UserError
from .access import Access
from .codes import codes_of
from .sample import Trained, seeds_for

__all__ = ["busiest", "traverse", "traversed"]

SHOWN = 10  # units, where none are named
PART = 250  # images made at a time
LOOKED_AT = 500  # training images whose codes say which units vary most


def traversed(z: Tensor, units: Sequence[int], span: float, steps: int) -> Tensor:
    """A latent z (...) as (len(units), steps, ...): in row r, unit units[r] of the flattened z goes evenly from -span to span."""
    out = z.flatten().repeat(len(units), steps, 1)  # (U, steps, J)
    out[torch.arange(len(units)), :, torch.tensor(units)] = torch.linspace(-span, span, steps).to(z)
    return out.view(len(units), steps, *z.shape)


def busiest(trained: Trained, num: int = SHOWN) -> list[int]:
    """The `num` units of the code that vary most over some training images, falling. Errors: `UserError` where the images are gone."""
    try:
        train = Access().open(trained.facts["data"]["source"], trained.opened.stage.data, "train")
    except UserError as e:
        raise UserError(f"which units vary most is seen in training images, and these cannot be read ({e}): name some, --units 0,1,2") from None
    rows = torch.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).long()
    return codes_of(trained, train.images_of(rows)).var(0, correction=0).sort(descending=True, stable=True).indices[:num].tolist()


@torch.no_grad()
def traverse(trained: Trained, seed: int = 0, image: Tensor | None = None, units: Sequence[int] | None = None, span: float = 3.0, steps: int = 9,
             label: Any = None) -> tuple[Tensor, list[int]]:
    """Images uint8 (U, steps, C, H, W), one row a unit, and the units; around the latent of a seed, or the code of an image uint8 (C, H, W).

    units: numbers of the flattened latent (default: the ten that vary most where the method encodes to vectors, else the first ten). The latent is
    standard normal, so that `span` is in its deviations. Errors: `UserError` for a method without a latent space, a unit that it does not have, an
    image where it does not encode.
    """
    method, device, what = trained.method, torch.device(trained.where.device), trained.facts["recipe"]
    if not isinstance(method, Latent):
        raise UserError(f"{what} has no latent space to traverse: give a run with one, such as a vae's")
    if image is not None and not isinstance(method, Codec):
        raise UserError(f"{what} cannot encode images: traverse around a seed (leave --image out)")
    z = method.latents(seeds_for(seed, 1))[0]
    if image is not None:
        z = codes_of(trained, image[None])[0].view_as(z)
    size = z.numel()
    if units is None:
        units = busiest(trained) if isinstance(method, Codec) else range(min(SHOWN, size))
    if wrong := [u for u in units if not 0 <= u < size]:
        raise UserError(f"--units {wrong[0]}: the latent of {what} has units 0 to {size - 1}")
    rows = traversed(z.cpu(), units, span, steps).flatten(0, 1)  # (U steps, ...)
    seeds = seeds_for(seed, 1) * len(rows)
    request = Request(seeds, trained.condition(seeds, label))
    found = []
    for start in range(0, len(rows), PART):
        part, order = rows[start : start + PART].to(device), request.take(slice(start, start + PART))
        with trained.where.autocast():
            if image is not None and isinstance(method, Codec):
                x = method.decode(part)
            else:
                x = method.from_latents(part, replace(order, cond=order.cond.to(device)))
        found.append(to_uint8(x.float().clamp(-1, 1)).cpu())
    return torch.cat(found).unflatten(0, (len(units), steps)), list(units)
