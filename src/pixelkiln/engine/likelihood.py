"""Test log-likelihood in nats and bits per dimension, with what it is a likelihood of."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..core.protocols import Likelihood, Method
from ..core.rng import generator
from ..data import ImageSet
from .where import Where

__all__ = ["likelihood"]

@torch.no_grad()
def likelihood(method: Method, test: ImageSet, samples: int, seed: int, where: Where, batch: int = 100) -> dict[str, Any]:
    """Mean over test images of -log p(x): nats per image, and bits per dimension nats / (D ln 2) - per_dim / ln 2 where that makes sense.

    samples: importance samples or network evaluations where it is not exact. Every image counts, the last short batch included. In fp32.
    """
    assert isinstance(method, Likelihood)
    num = min(method.num_images, len(test))
    x = test.images[:num].float().to(where.device) / 127.5 - 1  # (N, C, H, W)
    gen = generator(seed, "likelihood")
    scores = [method.log_prob(x[i : i + batch], samples, gen) for i in range(0, num, batch)]
    nats = torch.cat([s.nats.double().cpu() for s in scores])
    first = scores[0]
    found: dict[str, Any] = {"nats": round(-float(nats.mean()), 4), "nats standard error": round(float(nats.std() / math.sqrt(num)), 4)}
    if first.per_dim is not None:
        found["bits/dim"] = round(-(float(nats.mean()) / method.shape.numel + first.per_dim) / math.log(2), 4)
    return found | {"of": first.of, "kind": ", ".join(filter(None, (first.kind, first.how))), "N": num}
