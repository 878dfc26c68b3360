"""What tests of resumed training share."""

from __future__ import annotations

import torch

from pixelkiln.engine.loop import Trainer


def apart(whole: Trainer, first: Trainer, second: Trainer, at: int, end: int) -> list[str]:
    """Names of the tensors in which `whole`, unbroken to step `end`, is not bit for bit `second`, which goes on from step `at` of `first`."""
    for t, steps in ((whole, range(end)), (first, range(at))):
        for k in steps:
            t.step(k)
    groups = {g: {k: v.clone() for k, v in t.items()} for g, t in first.groups().items()}
    second.restore(lambda g: groups[g], first.seen())
    for k in range(at, end):
        second.step(k)
    a, b = whole.groups(), second.groups()
    return [f"{g}: {k}" for g in a for k in a[g] if not torch.equal(a[g][k].cpu(), b[g][k].cpu())]
